"""Builds frozen dataclasses from an experiment file, from command-line overrides, and from JSON.

The type annotations of the dataclasses are the only declaration: the known names, the allowed values and the parsing of
command-line values all follow from them.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import json
import numbers
import runpy
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from starflow_jax.core.config.checks import shown
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.regular_files import parse_json

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any] | ConfigDict, *, path: str = "config") -> T:
    """Builds the dataclass `cls`, and the dataclasses inside it, from nested mappings.

    Lists become tuples, and integers become floats where a float is declared; nothing else is converted.

    Args:
      cls: a dataclass whose fields have plain annotations (numbers, strings, Literal, tuple, optional,
        dataclass).
      values: field values by name; fields with defaults may be missing.
      path: the name of this level in error messages.

    Raises:
      ValueError: an unknown or missing field, a value of another type, or a value that the dataclass rejects.
    """
    if isinstance(values, ConfigDict):
        values = values.to_dict()
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} must be a mapping of the fields of {cls.__name__}, got {shown(values)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise ValueError(_unknown(path, str(name), list(fields)))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ValueError(f"{path}.{name} is missing, and has no default")
    hints = typing.get_type_hints(cls)
    converted = {name: _convert(value, hints[name], f"{path}.{name}") for name, value in values.items()}
    try:
        return cls(**converted)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_config(path_spec: str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Reads the experiment file of a flow; see `load_experiment`."""
    return load_experiment(ExperimentConfig, path_spec, overrides)


def load_experiment(cls: type[T], path_spec: str, overrides: Sequence[str] = ()) -> T:
    """Reads an experiment file.

    The file is a Python program, which is executed. It defines `get_config()` or `get_config(variant)`, which returns a
    ConfigDict. If defaults depend on other fields, such as on the data at `data.path`, it also defines
    `complete(values)`, which takes the nested mapping after the overrides and returns the complete one.

    Args:
      cls: the dataclass that the file describes.
      path_spec: `path.py`, or `path.py:variant`, whose variant is passed to `get_config`.
      overrides: `--config.train.lr=1e-4` (the prefix may be left out); later ones win.

    Raises:
      ValueError: a missing file, a file that fails, an unknown name, or a value of another type.
    """
    values, complete = read_experiment_file(path_spec)
    values = apply_overrides(values, overrides, cls)
    return build(cls, values if complete is None else complete(values))


Complete = Callable[[dict[str, Any]], Mapping[str, Any]]


def read_experiment_file(path_spec: str) -> tuple[dict[str, Any], Complete | None]:
    """What `get_config` of an experiment file returns, as a nested mapping, and its `complete`, if it defines one.

    Args:
      path_spec: as for `load_experiment`.

    Raises:
      ValueError: a missing file, or a file that fails.
    """
    name, _, variant = path_spec.partition(".py:")
    path = Path(name + ".py" if variant else path_spec)
    if not path.is_file():
        raise ValueError(f"config file {path} does not exist")
    try:
        defined = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:  # the file is arbitrary Python, which may call exit
        raise ValueError(f"config file {path} failed with {type(error).__name__}: {error}") from error
    get_config, complete = defined.get("get_config"), defined.get("complete")
    if not callable(get_config):
        raise ValueError(f"config file {path} must define get_config(), and does not")
    if variant and not inspect.signature(get_config).parameters:
        raise ValueError(f"config file {path} has no variants, got {variant!r}")
    try:
        values = get_config(variant) if variant else get_config()
    except (Exception, SystemExit) as error:
        raise ValueError(f"get_config of {path} failed with {type(error).__name__}: {error}") from error
    if not isinstance(values, Mapping | ConfigDict):
        raise ValueError(f"get_config of {path} must return a ConfigDict, got {type(values).__name__}")
    return (values.to_dict() if isinstance(values, ConfigDict) else dict(values)), complete


def apply_overrides(
    values: Mapping[str, Any], overrides: Sequence[str], cls: type = ExperimentConfig
) -> dict[str, Any]:
    """A copy of the nested mapping of a dataclass (`cls`) with overrides of the form `a.b=value` applied.

    A value is parsed as the declared type of its field: a Python literal; `true`, `false` or `none` in any case; or
    bare text for strings.

    Raises:
      ValueError: no `=`, an unknown name (similar names are listed), or a value of another type.
    """
    result: dict[str, Any] = _copy(values)
    for override in overrides:
        dotted, equals, text = override.removeprefix("--").removeprefix("config.").partition("=")
        if not equals:
            raise ValueError(f"an override must be --config.NAME=VALUE, got {override!r}")
        _override(cls, result, dotted.split("."), text)
    return result


def to_json(config: Any) -> str:
    """A dataclass as indented JSON, which `from_json` reads back unchanged."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str, cls: type[T] = ExperimentConfig) -> T:  # type: ignore[assignment]
    """The dataclass from the JSON that `to_json` wrote.

    Raises:
      ValueError: the text is not JSON, or does not describe this dataclass.
    """
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"a configuration must be JSON, got an error at {error}") from error
    return build(cls, values)


def _override(cls: Any, values: dict[str, Any], names: list[str], text: str) -> None:
    path = "config"
    for name in names[:-1]:
        inner = _dataclass_of(_hint(cls, name, path))
        path = f"{path}.{name}"
        if inner is None:
            raise ValueError(f"{path} has no fields, so {'.'.join(names)} cannot be set")
        if values.get(name) is None:
            values[name] = {}
        elif dataclasses.is_dataclass(values[name]):
            values[name] = dataclasses.asdict(values[name])
        elif not isinstance(values[name], Mapping):
            raise ValueError(f"{path} must be a mapping of the fields of {inner.__name__}, got {shown(values[name])}")
        values, cls = values[name], inner
    hint = _hint(cls, names[-1], path)
    values[names[-1]] = _parse(text, hint, f"{path}.{names[-1]}")


def _hint(cls: Any, name: str, path: str) -> Any:
    hints = typing.get_type_hints(cls)
    if name not in hints:
        raise ValueError(_unknown(path, name, list(hints)))
    return hints[name]


def _parse(text: str, hint: Any, path: str) -> Any:
    literal = {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
    try:
        value = ast.literal_eval(literal)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all errors that literal_eval documents
        value = text
    try:
        return _convert(value, hint, path)
    except ValueError:
        if value is text:
            raise
        # "7" is a number as a literal, but it is also a valid value of a string field.
        return _convert(text, hint, path) if _accepts_text(hint) else _convert(value, hint, path)


def _accepts_text(hint: Any) -> bool:
    if typing.get_origin(hint) is typing.Literal:  # one of its values may be "none"
        return any(isinstance(word, str) for word in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:  # even if its members are text
        return False
    return hint is str or any(_accepts_text(member) for member in typing.get_args(hint))


def _convert(value: Any, hint: Any, path: str) -> Any:
    """Converts `value` to the type that `hint` declares; raises ValueError with `path` if that is impossible."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, path)
    if origin is typing.Literal:
        if value not in arguments or isinstance(value, bool | float):
            near = _near(str(value), [str(argument) for argument in arguments])
            raise ValueError(f"{path} must be one of {', '.join(map(repr, arguments))}, got {shown(value)}{near}")
        return value
    if origin is tuple:
        return _convert_tuple(value, arguments, path)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, path=path)  # type: ignore[arg-type]
    if hint is float and _is_number(value, numbers.Real):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{path} must be a number that a float can hold, got {shown(value)}") from None
    if hint is int and _is_number(value, numbers.Integral):
        return int(value)
    if hint in (bool, str, type(None)) and isinstance(value, hint):
        return value
    raise ValueError(f"{path} must be {_describe(hint)}, got {shown(value)}")


def _convert_union(value: Any, members: tuple[Any, ...], path: str) -> Any:
    if value is None and type(None) in members:
        return None
    members = tuple(member for member in members if member is not type(None))
    if len(members) == 1:
        return _convert(value, members[0], path)  # its message is more specific than "int or None"
    for member in members:
        try:
            return _convert(value, member, path)
        except ValueError:
            continue
    raise ValueError(f"{path} must be {' or '.join(map(_describe, members))}, got {shown(value)}")


def _convert_tuple(value: Any, members: tuple[Any, ...], path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{path} must be {_describe_tuple(members)}, got {shown(value)}")
    if len(members) == 2 and members[1] is Ellipsis:
        members = (members[0],) * len(value)
    if len(value) != len(members):
        raise ValueError(f"{path} must have {len(members)} entries, got {len(value)}: {shown(value)}")
    return tuple(
        _convert(item, member, f"{path}[{index}]")
        for index, (item, member) in enumerate(zip(value, members, strict=True))
    )


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _describe(hint: Any) -> str:
    names: dict[Any, str] = {int: "an integer", float: "a number", str: "text", bool: "True or False"}
    if hint in names:
        return names[hint]
    if typing.get_origin(hint) is tuple:
        return _describe_tuple(typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(_describe, typing.get_args(hint)))
    return str(getattr(hint, "__name__", hint))


def _describe_tuple(members: tuple[Any, ...]) -> str:
    if members[-1] is Ellipsis:
        return f"a list, each {_describe(members[0])}"
    return f"a list of {len(members)}: {', '.join(map(_describe, members))}"


def _dataclass_of(hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return hint
    return next((member for member in typing.get_args(hint) if dataclasses.is_dataclass(member)), None)


def _unknown(path: str, name: str, names: list[str]) -> str:
    near = _near(name, names)
    return f"{path} has no field {name!r}{near or '; it has ' + ', '.join(names)}"


def _near(name: str, names: list[str]) -> str:
    matches = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def _copy(values: Any) -> Any:
    if isinstance(values, ConfigDict):
        values = values.to_dict()
    return {key: _copy(value) for key, value in values.items()} if isinstance(values, Mapping) else values
