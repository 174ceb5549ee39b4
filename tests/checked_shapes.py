"""The type checker of the import hook in `conftest.py`: arguments and results of functions, with their shapes."""

from typing import Any

from beartype import BeartypeConf, beartype

# An int is accepted where a float is expected, as in PEP 484.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function):
    """`function`, which checks its annotations at every call.

    jaxtyping gives this checker two functions of the same signature: one without the annotation of the result, called
    before the checked function, and one with it, called afterwards. The second one checks the result alone, since
    checking the arguments again would double the cost.

    Constructors are left alone: JAX rebuilds the dataclasses of pytrees with whatever leaves a transformation has
    (ShapeDtypeStructs, shardings, None).
    """
    if function.__name__ == "__init__":
        return function
    annotations = function.__annotations__
    if annotations.get("return", Any) is not Any:
        function.__annotations__ = annotations = {"return": annotations["return"]}
    return _check(function) if any(value is not Any for value in annotations.values()) else function
