"""Run as a program on eight fake devices: a flow with adaptive norms over meshes against one device.

Prints one JSON object: by mesh, the largest errors of log-likelihoods, of gradients relative to their largest value,
and of an inverse; and the mesh axes of a modulation kernel. `tests/test_adaptive_norm.py` judges.
"""

import dataclasses
import json

import jax
import numpy as np
from random_flows import normal, random_flow
from test_adaptive_norm import ATOMS, LENGTHS

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
x = normal((BATCH, TOKENS, 1, 2))
classes = np.arange(TOKENS * BATCH, dtype=np.int32).reshape(BATCH, TOKENS) % 3
lengths = np.resize(LENGTHS, BATCH)
params = split(random_flow(FLOW))[1]


def measured(layout):
    """Log-likelihoods, gradients and the inverse of noise."""
    definition = abstract(FLOW, layout)[0]
    given = params if layout is None else jax.device_put(params, layout.tree(params))

    def loss(params):
        log_p = merge(definition, params).log_prob(x, classes, lengths=lengths)
        return -log_p.mean(), log_p

    gradients, log_p = jax.jit(jax.grad(loss, has_aux=True))(given)
    solver = Jacobi(block=3, tolerance=1e-12)
    back = jax.jit(lambda p: sf.inverse(merge(definition, p), x, classes, lengths=lengths, solver=solver).x)(given)
    kernel = given["blocks"]["0"]["transformer"]["layers"]["attention"]["norm"]["modulation"]["kernel"]
    return jax.device_get((log_p, gradients, back)), [str(axis) for axis in getattr(kernel.sharding, "spec", ())]


(log_p, gradients, back), _ = measured(None)
found = {}
for name, mesh in MESHES.items():
    (other_log_p, other_gradients, other_back), spec = measured(make_layout(mesh))
    pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(other_gradients), strict=True)
    largest = max(abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    found[name] = {
        "log p": float(abs(log_p - other_log_p).max()),
        "gradients": float(max(abs(a - b).max() for a, b in pairs) / largest),
        "inverse": float(abs(back - other_back).max()),
        "kernel": spec,
    }
print(json.dumps(found))
