"""Run as a program on eight fake devices: flows with adaptive norms over meshes against one device.

Conditions are of every token, of every example (a class), and of all examples (a noise level).
Prints one JSON object: by flow and mesh, the largest errors of log-likelihoods, of gradients relative to the largest
value of their leaf, and of an inverse; and the mesh axes of a modulation kernel. `tests/test_adaptive_norm.py` judges.
"""

import dataclasses
import json

import jax
import numpy as np
from random_flows import normal, random_flow
from test_adaptive_norm import ATOMS, LENGTHS, WITH_CLASSES

import starflow_jax as sf
from starflow_jax.core.config import MeshConfig
from starflow_jax.flows.parameters import abstract, merge, split
from starflow_jax.sharding import make_layout
from starflow_jax.solvers import Jacobi

MESHES = {
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "fsdp 4, sequence 2": MeshConfig(data=1, fsdp=4, sequence=2),
}
BATCH, TOKENS = 8, 6  # tokens that the sequence axis divides
FLOW = dataclasses.replace(ATOMS, image_size=(TOKENS, 1), orders=None, default_classes=None)
CLASSES = dataclasses.replace(WITH_CLASSES, norm="adaptive")
LEVELS = dataclasses.replace(CLASSES, num_classes=0, noise_levels=(0.1, 1.0))
IMAGES = normal((BATCH, 4, 4, 1))
# By the kind of the condition: the flow, data, a condition, and other arguments.
CASES = {
    "of tokens": (
        FLOW,
        normal((BATCH, TOKENS, 1, 2)),
        np.arange(TOKENS * BATCH, dtype=np.int32).reshape(BATCH, TOKENS) % 3,
        {"lengths": np.resize(LENGTHS, BATCH)},
    ),
    "of examples": (CLASSES, IMAGES, np.resize(np.array([0, 2, -1, 1], np.int32), BATCH), {}),
    "of all": (LEVELS, IMAGES, None, {"noise_level": 0.4}),
}


def measured(config, params, x, cond, options, layout):
    """Log-likelihoods, gradients and the inverse of noise."""
    definition = abstract(config, layout)[0]
    given = params if layout is None else jax.device_put(params, layout.tree(params))

    def loss(params):
        log_p = merge(definition, params).log_prob(x, cond, **options)
        return -log_p.mean(), log_p

    gradients, log_p = jax.jit(jax.grad(loss, has_aux=True))(given)
    solver = Jacobi(block=2, tolerance=1e-12)
    back = jax.jit(lambda p: sf.inverse(merge(definition, p), x, cond, solver=solver, **options).x)(given)
    kernel = given["blocks"]["0"]["transformer"]["layers"]["attention"]["norm"]["modulation"]["kernel"]
    return jax.device_get((log_p, gradients, back)), [str(axis) for axis in getattr(kernel.sharding, "spec", ())]


def largest_error(expected, found):
    """The largest difference of a leaf relative to its largest value, or to a thousandth of that of all leaves."""
    pairs = list(zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True))
    least = 1e-3 * max(abs(a).max() for a, _ in pairs)
    return float(max(abs(a - b).max() / max(abs(a).max(), least) for a, b in pairs))


found = {}
for case, (config, x, cond, options) in CASES.items():
    params = split(random_flow(config))[1]
    (log_p, gradients, back), _ = measured(config, params, x, cond, options, None)
    for name, mesh in MESHES.items():
        (other_log_p, other_gradients, other_back), spec = measured(config, params, x, cond, options, make_layout(mesh))
        found[f"{case}, {name}"] = {
            "log p": float(abs(log_p - other_log_p).max()),
            "gradients": largest_error(gradients, other_gradients),
            "inverse": float(abs(back - other_back).max()),
            "kernel": spec,
        }
print(json.dumps(found))
