"""The benchmarks of kernels run without an accelerator, list what they leave out, and write what they print."""

from __future__ import annotations

import importlib
import json
import math

import jax
import jax.numpy as jnp
import pytest

from starflow_jax.experiments.benchmarks import attention
from starflow_jax.experiments.benchmarks.decoding_step import operations

TUNED = ("--interpret", "--slots", "130", "--heads", "1", "--batch", "1", "--rounds", "1")


def run(name, tmp_path, *options):
    out = tmp_path / "figures.json"
    module = importlib.import_module(f"starflow_jax.experiments.benchmarks.{name}")
    assert module.main([*options, "--json", str(out)]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    ("name", "options", "column"),
    [
        ("attention", ("--quick",), "TFLOP/s"),
        ("jacobi_update", ("--quick",), "of copy"),
        pytest.param("quantised", ("--quick",), "of float32", marks=pytest.mark.slow),
        pytest.param("decoding_step", ("--quick",), "us per operation", marks=pytest.mark.slow),
        pytest.param(
            "tune_attention",
            ("--interpret", "--slots", "130", "--heads", "1", "--batch", "1", "--rounds", "1"),
            "blocks",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_short_run_prints_a_table_and_writes_it(name, options, column, tmp_path, capsys):
    figures = run(name, tmp_path, *options)
    printed = capsys.readouterr().out
    assert column in printed and figures["device"]
    assert figures["lines" if "lines" in figures else "shapes" if "shapes" in figures else "choices"]


def test_the_table_lists_what_does_not_run():
    """No cuDNN, no kernel for CPUs: each is a sentence, not a row of zeros."""
    shape = attention.QUICK[-1]
    result = attention.measure(shape, 1, 1e9)
    table = attention.table([result])
    assert "cudnn: runs on NVIDIA GPUs only" in table and "fused: implementation='pallas'" in table
    assert set(result["ways"]) == {"xla"} and not result["ratios"]


def test_operations_of_a_loop_are_counted_for_every_iteration():
    """Twice the iterations, about twice the operations, though the program has the same length."""

    def program(iterations):
        x = jnp.ones((4, 4))
        return jax.jit(lambda a: jax.lax.fori_loop(0, iterations, lambda _, b: jnp.sin(b @ a), a)).lower(x).compile()

    one, two, four = (operations(program(n)) for n in (1000, 2000, 4000))
    assert math.isclose((four - two) / 2000, (two - one) / 1000, rel_tol=0.01)
    assert (two - one) / 1000 >= 2
