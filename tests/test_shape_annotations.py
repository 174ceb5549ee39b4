"""The public functions of the numerical packages state the shapes of their arrays, and these are checked in tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import pytest
from conftest import CHECKED
from jaxtyping import TypeCheckError
from test_imports import modules

from starflow_jax.flows.affine import Affine
from starflow_jax.flows.order import patchify

PACKAGES = ("flows", "kernels", "models", "nn", "sampling", "solvers")
# Names of array types that state no shape, unless they stand inside of a jaxtyping annotation.
ARRAYS = {"AnyArray", "Array", "ArrayLike", "HostArray", "ndarray"}
# jaxtyping's annotations with a shape.
SHAPED = {"Bool", "Float", "Int", "Integer", "Key", "Num", "Shaped", "UInt8"}
# Operators that a class defines for Python and not for callers; constructors and calls are public.
PUBLIC_OPERATORS = {"__init__", "__call__"}


def numerical_modules() -> dict[str, Path]:
    return {name: path for name, path in modules().items() if name.split(".")[0] in PACKAGES}


def public_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Public functions of a module and public methods of its public classes; fields of dataclasses are none."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and (
                    not method.name.startswith("_") or method.name in PUBLIC_OPERATORS
                ):
                    yield f"{node.name}.{method.name}", method


def has_bare_array(annotation: ast.AST) -> bool:
    """Whether an annotation names an array type outside of a shape."""
    if isinstance(annotation, ast.Subscript) and _last_name(annotation.value) in SHAPED:
        return False
    return _last_name(annotation) in ARRAYS or any(map(has_bare_array, ast.iter_child_nodes(annotation)))


def _last_name(node: ast.AST) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


def bare_arrays(function: ast.FunctionDef) -> list[str]:
    """The parameters of a function, and "result", that are annotated as an array of any shape."""
    a = function.args
    parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    annotations = {p.arg: p.annotation for p in parameters} | {"result": function.returns}
    return [name for name, annotation in annotations.items() if annotation is not None and has_bare_array(annotation)]


def test_every_public_function_states_its_shapes():
    found = {
        f"{module}.{name}": bare
        for module, path in numerical_modules().items()
        for name, function in public_functions(ast.parse(path.read_text(encoding="utf-8")))
        if (bare := bare_arrays(function))
    }
    assert not found, "array annotations without a shape, such as Float[Array, 'B N D']"


@pytest.mark.parametrize(
    ("annotation", "bare"),
    [
        ("jax.Array", True),
        ("np.ndarray | None", True),
        ("tuple[jax.Array, ...]", True),
        ("Float[Array, 'B N D'] | jax.Array", True),
        ("Float[Array, 'B N D'] | None", False),
        ("Int[np.ndarray | Array, 'B']", False),
        ("dict[str, Float[np.ndarray, '...']]", False),
    ],
)
def test_bare_arrays_are_recognised(annotation, bare):
    assert has_bare_array(ast.parse(annotation, mode="eval").body) is bare


def test_the_hook_covers_every_module():
    assert set(CHECKED) == {f"starflow_jax.{package}" for package in PACKAGES}
    assert {name.split(".")[0] for name in numerical_modules()} == set(PACKAGES)


def test_shapes_are_strings():
    """Without quotes a shape is an expression, which the checker cannot evaluate and therefore skips."""
    for module, path in numerical_modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and _last_name(node.value) in SHAPED:
                _, shape = node.slice.elts
                assert isinstance(shape, ast.Constant) and isinstance(shape.value, str), (
                    f"{module}: {ast.unparse(node)}"
                )


def test_a_wrong_number_of_axes_is_refused():
    assert patchify(jnp.zeros((1, 4, 4, 3)), 2, "starflow").shape == (1, 2, 2, 12)
    with pytest.raises(TypeCheckError):
        patchify(jnp.zeros((4, 3)), 2, "starflow")


def test_different_sizes_of_one_letter_are_refused():
    affine = Affine(jnp.zeros((2, 3, 4)), jnp.ones((2, 3, 4)))
    z, span = jnp.zeros((2, 3, 4)), jnp.zeros((2, 2), int)
    affine.update(z, z, span)
    with pytest.raises(TypeCheckError):
        affine.update(z, z[:1], span)  # which would broadcast


def test_a_wrong_type_is_refused():
    with pytest.raises(TypeCheckError):
        patchify(jnp.zeros((1, 4, 4, 3)), "2", "starflow")
