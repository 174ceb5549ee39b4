"""Measures the cost of the learned denoiser in training, and shows that its target costs nothing extra.

    python experiments/benchmarks/denoiser_cost.py --json cost.json
    python experiments/benchmarks/denoiser_cost.py --quick                # a tiny flow, seconds

The denoiser is trained on the gradient of the loss with respect to the noisy input. Backpropagation to the parameters
passes through every activation anyway and, with a learned start token, also through the input of the flow, so that
gradient needs no further product. The following programs are timed in alternation in one run, with random weights of
experiments/moving_digits.py, and the best of several rounds is reported:

- "parameters": loss and gradients of the flow's parameters; the cost of training without a denoiser.
- "parameters and input": the same with the gradient of the input, from the same backward pass.
- "second pass": a separate forward and backward pass for the gradient of the input.
- "denoiser": loss and gradients of the denoiser for a given target.
- "step without", "step with": whole training steps, including the optimizer, without and with a denoiser.

A naive implementation costs "parameters" + "second pass" + "denoiser". Dense products are counted exactly from the
programs, including every iteration of a loop.

Expected: the gradient of the input adds no product and no time beyond noise; a second pass adds two thirds of the cost
of the flow (forward and backward, without the products for the gradients of the weights).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from counting import dense_products
from timing import best_seconds, compiled

from starflow_jax.core.config import ExperimentConfig, load_config
from starflow_jax.data import train_loader
from starflow_jax.flows.likelihood import objective
from starflow_jax.flows.parameters import abstract, merge
from starflow_jax.training.step.inputs import noisy_pixels, open_source, word_encoder
from starflow_jax.training.step.optimizer import DENOISER
from starflow_jax.training.step.train_step import TrainState, init_state, loss_and_gradients, train_step

_EXPERIMENT = Path(__file__).resolve().parents[1] / "moving_digits.py"


class DenoiserCost:
    """The programs of one experiment on one batch of its data.

    Attributes:
      config: the experiment, with a denoiser; without: the same experiment without a denoiser.
      programs: functions and their arguments by name.
    """

    def __init__(self, config: ExperimentConfig):
        self.config = config
        self.without = dataclasses.replace(
            config,
            flow=dataclasses.replace(config.flow, denoiser=None),
            sample=dataclasses.replace(config.sample, denoise="none"),
        )
        source = open_source(config.data, "train", flow=config.flow)
        self.levels = source.levels
        batch = {name: jnp.asarray(a) for name, a in next(train_loader(source, config.train.batch_size, 0)).items()}
        x = noisy_pixels(jax.random.key(1), batch["image"], self.levels, config.data)
        text = word_encoder(config).states(batch["text"])
        state = _perturbed(init_state(config))
        bare = TrainState(state.step, _flow_only(state.params), _flow_only_moments(self.without), None, state.key)
        ema = None if state.ema is None else _flow_only(state.ema)
        bare = bare.replace(ema=ema)
        arguments = (state.params, x, text)
        self.programs: dict[str, tuple[Callable, tuple[Any, ...]]] = {
            "parameters": (self.parameters, (bare.params, x, text)),
            "parameters and input": (self.parameters_and_input, (bare.params, x, text)),
            "second pass": (self.input_alone, (bare.params, x, text)),
            "denoiser": (self.denoiser, (*arguments, jnp.zeros_like(x))),
            "one backward pass, denoiser": (self.together, arguments),
            "step without": (self.step(self.without), (bare, batch)),
            "step with": (self.step(config), (state, batch)),
        }

    def loss(self, params, x, text):
        """The flow's objective."""
        return objective(merge(abstract(self.without.flow)[0], params).forward(x, text)).loss

    def parameters(self, params, x, text):
        """Loss and gradients in training without a denoiser."""
        return jax.value_and_grad(self.loss)(params, x, text)

    def parameters_and_input(self, params, x, text):
        """The same with the gradient of the input, from one backward pass."""
        return jax.value_and_grad(self.loss, argnums=(0, 1))(params, x, text)

    def input_alone(self, params, x, text):
        """A separate pass for the gradient of the input only."""
        return jax.grad(self.loss, argnums=1)(params, x, text)

    def denoiser(self, params, x, text, target):
        """Loss and gradients of the denoiser."""
        definition = abstract(self.config.flow)[0]

        def loss(denoiser_params):
            return jnp.mean((merge(definition, {**params, DENOISER: denoiser_params}).denoiser(x, text) - target) ** 2)

        return jax.value_and_grad(loss)(params[DENOISER])

    def together(self, params, x, text):
        """Loss and gradients in training with a denoiser."""
        std = self.config.data.noise_std
        return loss_and_gradients(abstract(self.config.flow)[0], params, x, text, noise_std=std)[:2]

    def step(self, config: ExperimentConfig) -> Callable:
        """A function that makes one whole update."""
        return lambda state, batch: train_step(config, abstract(config.flow)[0], self.levels, state, batch)

    def products(self) -> dict[str, int]:
        """Multiply-adds in the dense products of every program."""
        return {name: dense_products(function, *arguments) for name, (function, arguments) in self.programs.items()}

    def seconds(self, rounds: int) -> dict[str, float]:
        """Best time of every program in seconds; the programs run in alternation."""
        runs = {name: compiled(function, *arguments)[0] for name, (function, arguments) in self.programs.items()}
        return best_seconds(runs, rounds=rounds)


def _perturbed(state: TrainState) -> TrainState:
    """Replaces all weights by random ones, because projections start at zero, and products with zeros may be faster."""
    leaves, tree = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    perturbed = [leaf + 0.02 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return state.replace(params=jax.tree.unflatten(tree, perturbed))


def _flow_only(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name != DENOISER}


def _flow_only_moments(config: ExperimentConfig) -> dict[str, Any]:
    return init_state(config).opt_state


def ratios(values: dict[str, float]) -> dict[str, float]:
    """The ratios below the table, of seconds or of products."""
    base, extra = values["parameters"], values["denoiser"]
    return {
        "input gradient from the same pass / parameters alone": values["parameters and input"] / base,
        "input gradient from a second pass / parameters alone": (base + values["second pass"]) / base,
        "training with the denoiser / without": values["one backward pass, denoiser"] / base,
        "the same with a second pass / without": (base + values["second pass"] + extra) / base,
        "whole step with the denoiser / without": values["step with"] / values["step without"],
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the numbers there")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each program, of which the best counts")
    parser.add_argument("--quick", action="store_true", help="a tiny flow once: shows that everything runs")
    options = parser.parse_args(arguments)
    cost = DenoiserCost(load_config(f"{_EXPERIMENT}:tiny" if options.quick else str(_EXPERIMENT)))
    products = cost.products()
    seconds = cost.seconds(1 if options.quick else options.rounds)
    print(f"{cost.config.name}, batch {cost.config.train.batch_size}")
    for name in cost.programs:
        print(f"{name:32}{seconds[name]:9.4f} s {products[name] / 1e9:9.3f} G multiply-adds")
    by_time, by_count = ratios(seconds), ratios(products)
    print()
    for name in by_time:
        print(f"{name:56}{by_time[name]:6.3f} in time {by_count[name]:6.3f} in products")
    if options.json:
        versions = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
        figures = {**versions, "experiment": cost.config.name, "batch": cost.config.train.batch_size}
        figures |= {"seconds": seconds, "multiply_adds": products}
        options.json.write_text(json.dumps({**figures, "ratios": {"time": by_time, "products": by_count}}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
