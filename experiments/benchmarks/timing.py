"""Timing of compiled programs in alternation, shared by the benchmarks."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def compiled(function: Callable, *arguments: Any) -> tuple[Callable[[], Any], float]:
    """`function` compiled ahead of time and bound to `arguments`, and the compile time in seconds."""
    program, seconds = compiled_program(function, *arguments)
    return lambda: jax.block_until_ready(program(*arguments)), seconds


def compiled_program(function: Callable, *arguments: Any) -> tuple[jax.stages.Compiled, float]:
    """`function` compiled ahead of time for `arguments`, and the compile time in seconds."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    return program, time.perf_counter() - start


def largest_array(program: jax.stages.Compiled) -> list[int]:
    """The shape of the largest array in a compiled program, inside fused operations included."""
    shapes = {tuple(map(int, sizes.split(","))) for sizes in re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", program.as_text())}
    return list(max(shapes, key=math.prod, default=()))


def best_seconds(programs: dict[str, Callable[[], Any]], *, rounds: int) -> dict[str, float]:
    """The shortest time of each program, in seconds.

    Every round runs all programs once, one after the other, so that other load on the machine affects all of them; the
    shortest of several rounds is the least disturbed one. The first run is not counted.
    """
    best = dict.fromkeys(programs, float("inf"))
    for index in range(rounds + 1):
        for name, run in programs.items():
            start = time.perf_counter()
            run()
            if index:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def square_product(size: int) -> Callable[[], Any]:
    """A compiled float32 product of two size x size matrices, which measures the speed of the machine."""
    left, right = (jax.random.normal(jax.random.key(i), (size, size)) for i in range(2))
    return compiled(jnp.dot, left, right)[0]
