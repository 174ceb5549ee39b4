"""Run as a program on eight fake devices: a distribution over a mesh against the same one on one of them.

Prints one JSON object: the devices that hold the samples, and relative errors. `tests/test_distribution.py` judges.
"""

import json

import jax
import jax.numpy as jnp
from random_flows import CLASSES, random_flow

import starflow_jax as sf
from starflow_jax.core.config import MeshConfig
from starflow_jax.flows.parameters import abstract, merge, split
from starflow_jax.sharding import make_layout

params = split(random_flow(CLASSES))[1]
layout = make_layout(MeshConfig(data=2, fsdp=2, tensor=2))
spread = jax.device_put(params, layout.tree(params))
alone = sf.distribution(random_flow(CLASSES))
divided = sf.distribution(merge(abstract(CLASSES, layout)[0], spread))
assert divided.layout == layout
labels, key = jnp.arange(8) % 3, jax.random.key(0)
expected = alone.sample_and_log_prob(key, (), labels)
found = divided.sample_and_log_prob(key, (), labels)
again = divided.log_prob(found[0], labels)


def error(actual: jax.Array, wanted: jax.Array) -> float:
    """The largest difference, relative to the largest value."""
    return float(jnp.max(jnp.abs(jax.device_get(actual) - jax.device_get(wanted))) / jnp.max(jnp.abs(wanted)))


errors = {"x": error(found[0], expected[0]), "log q": error(found[1], expected[1]), "log p": error(again, expected[1])}
print(json.dumps({"devices": len(found[0].sharding.device_set), "errors": errors}))
