"""Run as a program on eight fake devices: draws, tuning, annealing and rounds of a flow over a mesh against one device.

Prints one JSON object: the devices that hold the points and the parameters, and errors. `tests/test_targets.py` judges.
"""

import json
import tempfile

import jax
import jax.numpy as jnp
from random_flows import CLASSES, random_flow

import starflow_jax as sf
from starflow_jax.core.config import MeshConfig
from starflow_jax.flows.parameters import abstract, merge, split
from starflow_jax.sharding import make_layout

NUM = 64


def log_density(x: jax.Array) -> jax.Array:
    """A normal density, not normalised."""
    return -0.5 * jnp.sum((x.reshape(len(x), -1) - 0.2) ** 2, axis=1)


params = split(random_flow(CLASSES))[1]
layout = make_layout(MeshConfig(data=2, fsdp=2, tensor=2))
divided = sf.distribution(merge(abstract(CLASSES, layout)[0], jax.device_put(params, layout.tree(params))))
alone = sf.distribution(random_flow(CLASSES))
label, key = jnp.asarray(1), jax.random.key(0)


def error(actual: jax.Array, wanted: jax.Array) -> float:
    """The largest difference, relative to the largest value."""
    actual, wanted = jax.device_get(actual), jax.device_get(wanted)
    return float(abs(actual - wanted).max() / abs(wanted).max())


errors = {}
drawn = [sf.targets.draw(one, log_density, key, NUM, condition=label, batch_size=32) for one in (divided, alone)]
errors["draw"] = error(drawn[0].log_weights, drawn[1].log_weights)
tuned = [
    sf.targets.tune(
        one, drawn[1].x, key, steps=3, batch_size=8, target=log_density, reverse=0.5, condition=label, lr=1e-2
    )
    for one in (divided, alone)
]
errors["losses"] = error(tuned[0][1], tuned[1][1])
annealed = [sf.targets.anneal(one, log_density, key, NUM, condition=label, conditional=0.9) for one, _ in tuned]
errors["log z"] = error(annealed[0].log_z, annealed[1].log_z)

# Rounds, of which the mesh makes the second one after reading the first from a folder.
options = {"num": NUM, "steps": 2, "batch_size": 8, "condition": label, "annealing": {"conditional": 0.9}}
with tempfile.TemporaryDirectory() as folder:
    sf.targets.fit(divided, log_density, key, rounds=1, folder=folder, **options)
    resumed = sf.targets.fit(divided, log_density, key, rounds=2, folder=folder, **options)
whole = sf.targets.fit(alone, log_density, key, rounds=2, **options)
errors["rounds"] = max(abs(a.log_z - b.log_z) for a, b in zip(resumed.rounds, whole.rounds, strict=True))

kernel = max(jax.tree.leaves(resumed.distribution.params), key=lambda leaf: leaf.size)
print(
    json.dumps(
        {
            "devices": len(annealed[0].samples.x.sharding.device_set),
            "divided": not kernel.sharding.is_fully_replicated,
            "levels": [int(one.levels) for one in annealed],
            "errors": errors,
        }
    )
)
