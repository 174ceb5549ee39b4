"""Run as a program on eight fake devices: quantised flows over a mesh against one device.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/quantised_on_eight_devices.py

Prints one JSON object by scheme: "layers", the mean difference of the outputs of bfloat16 layers relative to their mean
magnitude; "flow", the largest difference of the log-likelihoods of a float32 flow; and "exchanged", by layer, the
collectives that it compiles to, each with its type and shape.
`tests/test_quantised.py` runs it and judges.
"""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from random_flows import CLASSES, normal, random_flow

from starflow_jax.core.config import MeshConfig
from starflow_jax.flows.parameters import abstract, merge, split
from starflow_jax.nn.linear import Compute
from starflow_jax.nn.quantised_linear import QuantisedLinear
from starflow_jax.nn.stored_kernels import quantised_kernel
from starflow_jax.sharding.mesh import make_layout
from starflow_jax.sharding.rules import partition_spec
from starflow_jax.training.checkpoints.quantised_streams import quantised_params

WIDTH, BATCH = 64, 8
# An instruction of a compiled program that exchanges data: the type and shape of its result (those of the first array
# of several), and its kind.
COLLECTIVE = re.compile(
    r"= \(?(\w+\[[\d,]*\]).* (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)
LAYOUT = make_layout(MeshConfig(data=2, fsdp=2, tensor=2))


def layer(name, scheme, layout, inputs=WIDTH):
    """A layer with random weights, on the devices of `layout`."""
    compute = Compute(dtype="bfloat16", layout=layout, quantise=scheme)
    made = QuantisedLinear(inputs, WIDTH, jax.random.key(0), name=name, compute=compute)
    numbers, scale = quantised_kernel(np.asarray(normal((inputs, WIDTH))), scheme)
    if layout is not None:
        sharding = layout.sharding(numbers.shape, partition_spec(f"{name}/kernel", numbers.ndim))
        numbers = jax.device_put(numbers, sharding)
    made.kernel.set_value(jnp.asarray(numbers))
    made.scale.set_value(jnp.asarray(scale))
    return made


def layers(scheme):
    """The difference of layers whose outputs, and whose inputs are divided."""
    differences = []
    for name in ("up", "down"):
        x = normal((BATCH, 4, WIDTH))
        one, over = (
            np.asarray(jax.jit(lambda layer, x: layer(x))(layer(name, scheme, layout), x), np.float32)
            for layout in (None, LAYOUT)
        )
        differences.append(np.mean(np.abs(over - one)) / np.mean(np.abs(one)))
    return float(max(differences))


def flow(scheme):
    """The difference of log-likelihoods of a float32 flow."""
    config = dataclasses.replace(CLASSES, quantise=scheme)
    params = quantised_params(config, split(random_flow(CLASSES))[1])
    x, labels = normal((BATCH, 4, 4, 1)), jnp.arange(BATCH) % 3
    found = []
    for layout in (None, LAYOUT):
        definition, like = abstract(config, layout)
        placed = jax.device_put(params, None if layout is None else layout.tree(like))
        log_prob = jax.jit(lambda params, x, definition=definition: merge(definition, params).log_prob(x, labels))
        found.append(np.asarray(log_prob(placed, x)))
    return float(np.max(np.abs(found[1] - found[0])))


def exchanged(scheme):
    """The collectives of compiled layers, as [kind, type and shape].

    Of 96 inputs in groups of 32, a device has a group and a half.
    """
    found = {}
    for name, inputs in (("up", WIDTH), ("down", WIDTH), ("down", 96)):
        made = layer(name, scheme, LAYOUT, inputs)
        text = jax.jit(lambda layer, x: layer(x)).lower(made, normal((BATCH, 4, inputs))).compile().as_text()
        found[f"{name} of {inputs}"] = sorted([kind, shape] for shape, kind in COLLECTIVE.findall(text))
    return found


def figures(scheme):
    return {"layers": layers(scheme), "flow": flow(scheme), "exchanged": exchanged(scheme)}


if __name__ == "__main__":
    print(json.dumps({scheme: figures(scheme) for scheme in ("int8", "fp8", "int4")}))
