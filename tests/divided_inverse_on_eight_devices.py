"""Run as a program on eight fake devices: inverses of one sample over meshes that divide the slots of its cache.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/divided_inverse_on_eight_devices.py

Prints one JSON object: by case, the error of the sample relative to one device, the solver's iterations on both, and
the collectives inside loops as [kind, shape, times]. `tests/test_divided_cache.py` runs it and judges.
"""

import dataclasses
import json
import sys

import jax
import numpy as np
from random_flows import IMAGE, VIDEO, normal, random_flow

from starflow_jax.core.config import MeshConfig
from starflow_jax.flows.guidance import make_guidance
from starflow_jax.flows.parameters import abstract, merge, split
from starflow_jax.planning.collectives import collectives
from starflow_jax.planning.hlo import parse
from starflow_jax.sharding.mesh import make_layout
from starflow_jax.solvers import Jacobi, Sequential, inverse

# Five frames of 4 x 4 tokens in chunks of 6: neither they nor the text divide over the devices.
JACOBI = Jacobi(block=6, growth=2, tolerance=1e-12, max_iterations=24)
CASES = {
    "an image, sequential": (IMAGE, (1, 4, 4, 2), Sequential(), MeshConfig(data=1, sequence=8)),
    "an image, Jacobi": (IMAGE, (1, 4, 4, 2), dataclasses.replace(JACOBI, block=8), MeshConfig(data=1, sequence=8)),
    "a video, sequential": (VIDEO, (1, 5, 4, 4, 2), Sequential(), MeshConfig(data=1, tensor=2, sequence=4)),
    "a video, Jacobi": (VIDEO, (1, 5, 4, 4, 2), JACOBI, MeshConfig(data=1, tensor=2, sequence=4)),
    "a batch of videos, Jacobi": (VIDEO, (2, 5, 4, 4, 2), JACOBI, MeshConfig(data=2, sequence=4)),
}


def run(config, shape, solver, layout):
    """A guided inverse, and the text of its program."""
    definition, _ = abstract(config, layout)
    params, z = split(random_flow(config))[1], normal(shape)
    text = normal((shape[0], config.text_length, config.text_dim), 3)
    if layout is not None:
        params = jax.tree.map(jax.device_put, params, layout.tree(params))

    def sample(params, z, text):
        guidance = make_guidance(config.family, text, 0.5)
        inverted = inverse(merge(definition, params), z, text, solver=solver, guidance=guidance)
        return inverted.x, [report.iterations for report in inverted.reports]

    compiled = jax.jit(sample).lower(params, z, text).compile()
    x, iterations = jax.device_get(compiled(params, z, text))
    return x, [int(np.sum(each)) for each in iterations], compiled.as_text()


def main():
    found = {}
    for name in sys.argv[1:] or CASES:
        config, shape, solver, mesh = CASES[name]
        config = dataclasses.replace(config, cache="slots", denoiser=None)
        expected, iterations, _ = run(config, shape, solver, None)
        x, theirs, text = run(config, shape, solver, make_layout(mesh))
        loops = parse(text).inside_loops()
        found[name] = {
            "error": float(np.linalg.norm(x - expected) / np.linalg.norm(expected)),
            "iterations": [theirs, iterations],
            "moved": [[c.kind, list(c.shape), c.times] for c in collectives(text) if c.computation in loops],
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
