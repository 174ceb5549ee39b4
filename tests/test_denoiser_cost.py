"""The denoiser's target costs no second pass through the flow: products counted, program by program."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from random_flows import VIDEO, normal

from starflow_jax.experiments.benchmarks.counting import dense_products
from starflow_jax.flows.likelihood import objective
from starflow_jax.flows.parameters import abstract, merge
from starflow_jax.training.step.train_step import loss_and_gradients

SCRIPT = Path(__file__).parents[1] / "experiments" / "benchmarks" / "denoiser_cost.py"
CLIP, TEXT = normal((2, 4, 4, 4, 2)), normal((2, 3, 6), 3)


def flow_loss(definition, params, x):
    return objective(merge(definition, params).forward(x, TEXT)).loss


def products_of_gradients(config, *of):
    """Products of the flow's loss and its gradients by the parameters ("params"), the input ("x") or both."""
    definition, params = abstract(dataclasses.replace(config, denoiser=None))
    places = tuple(("params", "x").index(name) for name in of)
    return dense_products(jax.grad(functools.partial(flow_loss, definition), argnums=places), params, CLIP)


def test_a_product_counts_once_a_turn():
    a, b = jnp.zeros((2, 3)), jnp.zeros((3, 5))
    assert dense_products(lambda a, b: a @ b, a, b) == 2 * 3 * 5
    turns = lambda a: jax.lax.scan(lambda carry, _: (carry @ jnp.ones((3, 3)), None), a, length=7)  # noqa: E731
    assert dense_products(turns, a) == 7 * 2 * 3 * 3


@pytest.mark.parametrize("sos", [True, False])
def test_the_gradient_of_the_input_is_free_or_one_small_product(sos):
    """The sequence that enters a block holds the start token, a parameter, so its gradient is there already.

    Without a start token, the c channels of every token enter D channels once: one product of B N c D.
    """
    config = dataclasses.replace(VIDEO, sos=sos)
    tokens, channels = CLIP.size // VIDEO.token_channels, VIDEO.token_channels
    extra = products_of_gradients(config, "params", "x") - products_of_gradients(config, "params")
    assert extra == (0 if sos else tokens * channels * VIDEO.width)


def test_training_the_denoiser_adds_its_own_products_and_nothing_of_the_flow():
    definition, params = abstract(VIDEO)

    def denoiser_loss(own, params, x):
        return jnp.mean(merge(definition, {**params, "denoiser": own}).denoiser(x, TEXT) ** 2)

    together = dense_products(functools.partial(loss_and_gradients, definition, noise_std=0.3), params, CLIP, TEXT)
    own = dense_products(jax.grad(denoiser_loss), params["denoiser"], params, CLIP)
    flow = products_of_gradients(VIDEO, "params")
    assert together == flow + own
    assert products_of_gradients(VIDEO, "x") > flow / 2  # what a naive implementation would add


@pytest.mark.slow
def test_the_quick_benchmark_reports_times_and_products(tmp_path):
    out = tmp_path / "cost.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    figures = json.loads(out.read_text())
    assert all(seconds > 0 for seconds in figures["seconds"].values())
    naive = figures["ratios"]["products"]["the same with a second pass / without"]
    assert naive > figures["ratios"]["products"]["training with the denoiser / without"]
    assert "second pass" in run.stdout
