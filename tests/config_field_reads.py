"""Which fields of the configuration's dataclasses are read, by static analysis of the package.

A field counts as read where the package, outside of `core/config`, reads an attribute of that name from an expression
whose type is inferred as that dataclass (from annotations of parameters, of fields and of returned values, through
assignments and loops). Where no type can be inferred, a read counts for the one dataclass that declares the name, as
long as no other class of the package declares it too. A read inside `core/config` counts only in a method or property
that is read itself; checks (`__post_init__` and what it calls) do not.

Limits: names are typed by module rather than by function, so a variable may be of several types. A field that is read
but whose value has no effect is not noticed, nor is one that is read by dead code, or one that is passed on by
`dataclasses.asdict(...)` to something that ignores it.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_BINDING = (ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.For, ast.comprehension)


@dataclasses.dataclass
class ConfigClass:
    """A dataclass of `core/config`: its bases, the types of its fields, and its other members."""

    name: str
    bases: list[str]
    fields: dict[str, ast.expr]
    methods: dict[str, ast.FunctionDef]
    tuples: set[str]  # words in tuples of strings at the top of its file, which loops pass to getattr


def config_classes(files: Iterable[Path]) -> dict[str, ConfigClass]:
    """The dataclasses that the files define, by name."""
    classes = {}
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        words = {
            one.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
            for one in node.value.elts
            if isinstance(one, ast.Constant) and isinstance(one.value, str)
        }
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                fields = {
                    entry.target.id: entry.annotation
                    for entry in node.body
                    if isinstance(entry, ast.AnnAssign)
                    and isinstance(entry.target, ast.Name)
                    and "ClassVar" not in ast.unparse(entry.annotation)
                }
                methods = {entry.name: entry for entry in node.body if isinstance(entry, ast.FunctionDef)}
                bases = [ast.unparse(base) for base in node.bases]
                classes[node.name] = ConfigClass(node.name, bases, fields, methods, words)
    return classes


class Reads:
    """Reads of attributes of the configuration in a package.

    Attributes:
      of: names that are read, by the class that they are read from.
      untyped: names that are read from expressions of no known type.
    """

    def __init__(self, classes: Mapping[str, ConfigClass], files: Iterable[Path]):
        self.classes = classes
        self.of: dict[str, set[str]] = defaultdict(set)
        self.untyped: set[str] = set()
        # Attributes of other classes: of the package, and of values that are everywhere.
        self.declared = {name for kind in (dict, list, str, Path) for name in dir(kind)}
        self._attributes: dict[str, set[str]] = defaultdict(set)  # types of annotated attributes of all classes
        self._returns: dict[str, set[str]] = defaultdict(set)
        # What is looked up many times: the classes in an annotation, and the nodes directly below a node.
        self._found: dict[ast.expr, set[str]] = {}
        self._below: dict[ast.AST, list[ast.AST]] = {}
        trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
        self._configured = self._parts(
            (
                "ExperimentConfig",
                "AutoencoderExperiment",
                "LearnedInverseExperiment",
                "PostTrainingExperiment",
                "SweepConfig",
            )
        )
        for cls in classes.values():
            for field, annotation in cls.fields.items():
                self._attributes[field] |= self._mentioned(annotation)
            for method, node in cls.methods.items():
                self._returns[method] |= self._mentioned(node.returns)
                self._attributes[method] |= self._mentioned(node.returns)
        for tree in trees:
            self._declarations(tree)
        for tree in trees:
            self._scope(tree, {})
        self._inside()

    def unread(self) -> list[str]:
        """Fields that nothing reads, as "Class.field"."""
        missing = []
        for name in sorted(self._configured):
            cls = self.classes[name]
            for field in cls.fields:
                owners = [other for other in self.classes.values() if field in other.fields or field in other.methods]
                alone = len(owners) == 1 and field not in self.declared
                typed = any(field in self.of[one] for one in (*self._family(name), *self._children(name)))
                if not typed and not (alone and field in self.untyped):
                    missing.append(f"{name}.{field}")
        return missing

    def _parts(self, roots: Iterable[str]) -> set[str]:
        """The classes that a configuration is made of, from its root; all where none of the roots is a class."""
        pending = [root for root in roots if root in self.classes] or list(self.classes)
        parts: set[str] = set()
        while pending:
            name = pending.pop()
            if name not in parts:
                parts |= {name}
                annotations = self.classes[name].fields.values()
                pending += [*self._family(name), *(one for each in annotations for one in self._mentioned(each))]
        return parts

    def _family(self, name: str) -> Iterator[str]:
        yield name
        for base in self.classes[name].bases:
            if base in self.classes:
                yield from self._family(base)

    def _children(self, name: str) -> list[str]:
        return [other for other in self.classes if other != name and name in self._family(other)]

    def _mentioned(self, annotation: ast.expr | None) -> set[str]:
        """The configuration classes in an annotation, whether alone, optional or inside a tuple."""
        if annotation is None:
            return set()
        if annotation not in self._found:
            names = set(re.findall(r"\w+", ast.unparse(annotation)))
            self._found[annotation] = names & set(self.classes)
        return self._found[annotation]

    def _declarations(self, tree: ast.AST) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                self._returns[node.name] |= self._mentioned(node.returns)
            if not isinstance(node, ast.ClassDef):
                continue
            for entry in ast.walk(node):
                if isinstance(entry, ast.FunctionDef):
                    self.declared.add(entry.name)
                    self._attributes[entry.name] |= self._mentioned(entry.returns)
                elif isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
                    self.declared.add(entry.target.id)
                    self._attributes[entry.target.id] |= self._mentioned(entry.annotation)
                elif isinstance(entry, ast.Attribute) and isinstance(entry.ctx, ast.Store):
                    self.declared.add(entry.attr)

    def _type(self, node: ast.expr, env: Mapping[str, set[str]]) -> set[str]:
        """The configuration classes that an expression, or what it holds, may be of."""
        if isinstance(node, ast.Name):
            return env.get(node.id, set())
        if isinstance(node, ast.Attribute):
            base = self._type(node.value, env)
            own = [self.classes[one] for name in base for one in self._family(name)]
            declared = [cls.fields[node.attr] for cls in own if node.attr in cls.fields]
            declared += [cls.methods[node.attr].returns for cls in own if node.attr in cls.methods]
            if declared:  # perhaps by several classes, where the base may be of each
                return set().union(*map(self._mentioned, declared))
            return self._attributes.get(node.attr, set())
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in self.classes:
                return {name}
            if name in ("replace", "zip", "enumerate", "reversed", "sorted", "list", "tuple", "next", "iter", "max"):
                return set().union(*(self._type(one, env) for one in node.args))
            mentioned = set().union(*(self._mentioned(one) for one in node.args)) if name == "build" else set()
            return self._returns.get(name, set()) | mentioned
        if isinstance(node, ast.BoolOp | ast.Tuple | ast.List | ast.IfExp | ast.Starred | ast.NamedExpr):
            return set().union(
                *(self._type(one, env) for one in ast.iter_child_nodes(node) if isinstance(one, ast.expr))
            )
        if isinstance(node, ast.Subscript | ast.Await):
            return self._type(node.value, env)
        if isinstance(node, ast.GeneratorExp | ast.ListComp):
            return self._type(node.elt, self._bound(node.generators, env))
        return set()

    def _bound(self, generators: list[ast.comprehension], env: Mapping[str, set[str]]) -> dict[str, set[str]]:
        env = dict(env)
        for generator in generators:
            self._bind(generator.target, self._type(generator.iter, env), env)
        return env

    def _bind(self, target: ast.expr, types: set[str], env: dict[str, set[str]]) -> None:
        for name in ast.walk(target):
            if isinstance(name, ast.Name):
                env[name.id] = env.get(name.id, set()) | types

    def _scope(self, node: ast.AST, env: dict[str, set[str]]) -> None:
        """Collects the reads below a node, names bound as far as `env` and the scopes inside say."""
        scope = isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        local = dict(env) if scope else env
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            arguments = node.args
            for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                local[one.arg] = self._mentioned(one.annotation)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef):
            binding = [inner for inner in self._walk(node) if isinstance(inner, _BINDING)]
            for _ in range(2):  # an assignment may read what a later line of a loop binds
                for inner in binding:
                    if isinstance(inner, ast.Assign):
                        for target in inner.targets:
                            if isinstance(target, ast.Name | ast.Tuple):
                                self._pair(target, inner.value, local)
                    elif isinstance(inner, ast.AnnAssign):
                        if isinstance(inner.target, ast.Name):
                            local[inner.target.id] = self._mentioned(inner.annotation)
                    elif isinstance(inner, ast.NamedExpr):
                        self._bind(inner.target, self._type(inner.value, local), local)
                    else:
                        self._bind(inner.target, self._type(inner.iter, local), local)
        self._read(node, local)
        for child in self._below_of(node):
            self._scope(child, local)

    def _walk(self, node: ast.AST) -> list[ast.AST]:
        """A node and all below it, as `ast.walk`."""
        nodes = [node]
        for one in nodes:  # which grows
            nodes += self._below_of(one)
        return nodes

    def _below_of(self, node: ast.AST) -> list[ast.AST]:
        if node not in self._below:
            self._below[node] = list(ast.iter_child_nodes(node))
        return self._below[node]

    def _pair(self, target: ast.expr, value: ast.expr, env: dict[str, set[str]]) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, other in zip(target.elts, value.elts, strict=True):
                self._pair(one, other, env)
        elif isinstance(target, ast.Name | ast.Tuple):
            self._bind(target, self._type(value, env), env)

    def _read(self, node: ast.AST, env: Mapping[str, set[str]]) -> None:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            self._count(self._type(node.value, env), {node.attr})
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "getattr" and isinstance(node.args[1], ast.Constant):
                self._count(self._type(node.args[0], env), {str(node.args[1].value)})
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called.endswith("asdict") and node.args and isinstance(node.args[0], ast.Attribute):
                for name in self._type(node.args[0], env):  # a part of a configuration, passed on as a mapping
                    self._count({name}, set(self.classes[name].fields))
            if isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
                self._key(node.args[0])  # a configuration that was recorded as JSON
        elif isinstance(node, ast.Subscript):
            self._key(node.slice)

    def _key(self, node: ast.expr) -> None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            self.untyped.add(node.value)

    def _count(self, types: set[str], names: set[str]) -> None:
        for cls in types:
            self.of[cls] |= names
        if not types:
            self.untyped |= names

    def _inside(self) -> None:
        """Adds what is read by methods and properties of the configuration that are read themselves."""
        followed: set[tuple[str, str]] = set()
        while True:
            live = {
                (name, method)
                for name, cls in self.classes.items()
                for method in cls.methods
                if method not in ("__post_init__",) and self._is_read(name, method)
            } - followed
            if not live:
                return
            followed |= live
            for name, method in live:
                node = self.classes[name].methods[method]
                self._scope(node, {})
                env = {"self": {name}}
                for inner in ast.walk(node):
                    self._read_self(inner, env, self.classes[name].tuples)

    def _read_self(self, node: ast.AST, env: Mapping[str, set[str]], words: set[str]) -> None:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            self._count(env["self"], {node.attr})
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            self._count(self._type(node.value, env), {node.attr})
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and ast.unparse(node.args[0]) == "self":
            self._count(env["self"], words)

    def _is_read(self, name: str, method: str) -> bool:
        family = (*self._family(name), *self._children(name))
        owners = [other for other in self.classes.values() if method in other.methods]
        return any(method in self.of[one] for one in family) or (len(owners) == 1 and method in self.untyped)
