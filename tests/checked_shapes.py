"""The type checker of the import hook in `conftest.py`: arguments and results of functions, with their shapes."""

from beartype import BeartypeConf, beartype

# An int is accepted where a float is expected, as in PEP 484.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function):
    """`function`, which checks its annotations at every call.

    Constructors are left alone: JAX rebuilds the dataclasses of pytrees with whatever leaves a transformation has
    (ShapeDtypeStructs, shardings, None).
    """
    return function if function.__name__ == "__init__" else _check(function)
