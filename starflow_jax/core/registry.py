"""Registries of implementations by name; each implementation is registered in the file that defines it."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

T = TypeVar("T")


class Registry:
    """Implementations of one kind by name.

    A file of `package` adds an implementation by decorating it with `@REGISTRY.register("name")` at the top level of
    the module. No other list has to be edited: `names` finds the decorators in the source of the package without
    importing it (so `starflow COMMAND --help` does not import JAX), and `get` imports only the module that registers
    the requested name. Code outside of the package, such as an experiment file, registers when it is imported.

    Attributes:
      kind: the kind of implementation, for messages ("solver").
      constant: the name of the registry as the decorators write it ("SOLVERS").
      package: the package whose files, including those of subpackages, register implementations.
    """

    def __init__(self, kind: str, constant: str, package: str):
        self.kind, self.constant, self.package = kind, constant, package
        self._entries: dict[str, tuple[Any, dict[str, Any]]] = {}

    def register(self, name: str, **details: Any) -> Callable[[T], T]:
        """A decorator that adds an implementation (a function or a class) under `name`.

        Args:
          name: the name used in configurations and on the command line.
          **details: stored with the implementation, see `details`.

        Raises:
          ValueError: another implementation has this name.
        """

        def add(implementation: T) -> T:
            existing = self._entries.get(name)
            if existing is not None and _origin(existing[0]) != _origin(implementation):
                raise ValueError(
                    f"{self.kind} {name!r} is registered by {_origin(existing[0])}, and again by "
                    f"{_origin(implementation)}"
                )
            self._entries[name] = (implementation, details)
            return implementation

        return add

    def names(self) -> tuple[str, ...]:
        """The sorted names of all implementations; no module of the package is imported."""
        return tuple(sorted({*self._entries, *self._declared()}))

    def check(self, field: str, name: str) -> None:
        """Raises ValueError with the name of `field` and the allowed values unless `name` is registered."""
        names = self.names()
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"{field} must be one of {', '.join(map(repr, names))}, got {name!r}{hint}")

    def get(self, name: str) -> Any:
        """The implementation registered as `name`; the module that registers it is imported.

        Raises:
          ValueError: no implementation has this name.
        """
        return self._entry(name)[0]

    def details(self, name: str) -> dict[str, Any]:
        """The keyword arguments that were given to `register`. If they are literals, no module is imported.

        Raises:
          ValueError: no implementation has this name.
        """
        self.check(self.kind, name)
        if name not in self._entries:
            module, decorator = self._declared()[name]
            call = ast.parse(decorator, mode="eval").body
            try:
                assert isinstance(call, ast.Call)
                return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
            except ValueError:  # not a literal
                importlib.import_module(module)
        return self._entries[name][1]

    def _entry(self, name: str) -> tuple[Any, dict[str, Any]]:
        self.check(self.kind, name)
        if name not in self._entries:
            importlib.import_module(self._declared()[name][0])
        return self._entries[name]

    def _declared(self) -> Mapping[str, tuple[str, str]]:
        return _declarations(self.package, self.constant)


@functools.cache  # configurations call it often, and the files of a package do not change during a run
def _declarations(package: str, constant: str) -> Mapping[str, tuple[str, str]]:
    """Maps every name that is registered in the package to its module and the source text of its decorator."""
    pattern = re.compile(rf'^@({constant}\.register\(\s*"([^"]+)".*?\))\n(?=@|def |class )', re.MULTILINE | re.DOTALL)
    declarations: dict[str, tuple[str, str]] = {}
    for module, path in _modules(package):
        for decorator, name in pattern.findall(path.read_text(encoding="utf-8")):
            if name in declarations:
                raise ValueError(
                    f"{name!r} is registered in {constant} by {declarations[name][0]}, and again by {module}"
                )
            declarations[name] = (module, decorator)
    return MappingProxyType(declarations)


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    """The modules of a package and of its subpackages, with their files; only the top-level package is imported."""
    top, *inner = package.split(".")
    spec = find_spec(top)
    for root in [] if spec is None else list(spec.submodule_search_locations or ()):
        folder = Path(root, *inner)
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            yield ".".join((package, *parts)), path


def _origin(implementation: Any) -> str:
    return f"{getattr(implementation, '__module__', '?')}.{getattr(implementation, '__qualname__', '?')}"
