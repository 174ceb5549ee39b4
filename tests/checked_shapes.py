"""The type checker of the import hook in `conftest.py`: arguments and results of functions, with their shapes."""

from beartype import beartype


def check(function):
    """`function`, which checks its annotations at every call.

    Constructors are left alone: JAX rebuilds the dataclasses of pytrees with whatever leaves a transformation has
    (ShapeDtypeStructs, shardings, None).
    """
    return function if function.__name__ == "__init__" else beartype(function)
