"""Run as a program on eight fake devices: which parameters the loops of an inverse over a mesh cast and gather.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/inverse_on_eight_devices.py [MESH ... | compile]

Prints one JSON object: with `compile`, the casts and the gathers of kernels inside loops of one program. Otherwise, by
mesh, both with parameters as stored and with parameters that are ready, whether the samples of the two are equal, and
in float32 the largest relative error against one device.
`tests/test_ready_parameters.py` runs it and judges, and compiles the same inverse for TPUs.
"""

import dataclasses
import functools
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
from random_flows import normal, random_flow

from starflow_jax.core.config import FlowConfig, MeshConfig
from starflow_jax.flows.guidance import make_guidance
from starflow_jax.flows.parameters import abstract, merge, split
from starflow_jax.planning.collectives import collectives
from starflow_jax.planning.hlo import parse
from starflow_jax.sharding.layout import located
from starflow_jax.sharding.mesh import make_layout
from starflow_jax.sharding.rules import partition_spec
from starflow_jax.solvers import Jacobi, inverse

MESHES = {
    "fsdp 4, tensor 2": MeshConfig(data=1, fsdp=4, tensor=2),
    "fsdp 8": MeshConfig(data=1, fsdp=8),
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "fsdp 2, tensor 2, sequence 2": MeshConfig(data=1, fsdp=2, tensor=2, sequence=2),
}
# Sizes by which no activation has the shape of a kernel.
FLOW = FlowConfig(
    channels=3, image_size=4, width=128, deep_width=256, num_blocks=2, layers_per_block=(1, 2), head_dim=32, rope=True,
    sos=True, text_dim=10, text_length=4, cond_top_only=True, scale="softplus", final_norm=True, soft_clip=4.0,
    order="L2R",
)  # fmt: skip
BATCH = 8
SHAPE = (BATCH, FLOW.image_size, FLOW.image_size, FLOW.channels)
TEXT = (BATCH, FLOW.text_length, FLOW.text_dim)


def program(config, layout, ready):
    """A guided inverse, of parameters, noise and text states."""
    definition, _ = abstract(config, layout)
    solver = Jacobi(block=8, tolerance=1e-12, max_iterations=8)

    def samples(params, z, text):
        guidance = make_guidance(config.family, text, 0.5)
        return inverse(merge(definition, params), z, text, solver=solver, guidance=guidance, ready=ready).x

    return jax.jit(samples)


def structs(config, layout):
    """The arguments of `program` without values."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=layout.batch(shape)) for shape in (SHAPE, TEXT)]
    return (located(layout, abstract(config, layout)[1]), *arrays)


def kernel_shapes(config, layout, *, exact):
    """Shapes of kernels on one device, as sorted sizes above 1: one layer and all, as stored and as gathered.

    exact: whether output heads count, which are computed in float32.
    """
    shapes = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract(config, layout)[1]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith("kernel") or ("proj_out" in name and not exact):
            continue
        stored = partition_spec(name, leaf.ndim)
        for cuts in (stored, tuple(None if cut == "fsdp" else cut for cut in stored), ()):
            shape = layout.sharding(leaf.shape, cuts).shard_shape(leaf.shape)
            layers = 1 if "layers" in name else 0
            inputs, outputs = shape[layers], shape[layers + 1 :]
            for form in ((inputs, *outputs), (inputs, math.prod(outputs))):
                shapes |= {sizes(form), sizes((*shape[:layers], *form))}
    return shapes


def sizes(shape):
    return tuple(sorted(size for size in shape if size > 1))


def cast_in_loops(text, shapes):
    """Kernels that are cast from float32 to bfloat16 inside loops."""
    found = parse(text)
    casts = []
    for name in found.inside_loops():
        lines = found.computations[name]
        for line in lines.values():
            if line.opcode != "convert" or line.arrays[0].dtype != "bf16" or sizes(line.arrays[0].shape) not in shapes:
                continue
            # Compilers for CPUs, which lack bfloat16, add casts of their own, without the name of a traced operation.
            if "convert_element_type" in line.attributes:
                casts.append(list(line.arrays[0].shape))
    return casts


def gathered_in_loops(text, shapes):
    """Kernels that are gathered inside loops."""
    loops = parse(text).inside_loops()
    return [
        list(one.shape)
        for one in collectives(text)
        if one.computation in loops and one.kind in ("all-gather", "all-reduce") and sizes(one.shape) in shapes
    ]


def loops_of(text, config, layout):
    """What the loops of a compiled inverse do with kernels."""
    return {
        "casts": cast_in_loops(text, kernel_shapes(config, layout, exact=False)),
        "gathers": gathered_in_loops(text, kernel_shapes(config, layout, exact=True)),
    }


def run(config, layout, *, ready):
    """The samples, and the text of the program."""
    params, z, text = split(random_flow(config))[1], normal(SHAPE), normal(TEXT, 3)
    if layout is not None:
        params = jax.tree.map(jax.device_put, params, layout.tree(params))
        z, text = (jax.device_put(array, layout.batch(array.shape)) for array in (z, text))
    compiled = program(config, layout, ready).lower(params, z, text).compile()
    return np.asarray(compiled(params, z, text)), compiled.as_text()


def main():
    found = {}
    if sys.argv[1:] == ["compile"]:
        layout, config = make_layout(next(iter(MESHES.values()))), dataclasses.replace(FLOW, dtype="bfloat16")
        text = program(config, layout, ready=True).lower(*structs(config, layout)).compile().as_text()
        print(json.dumps(loops_of(text, config, layout)))
        return
    bfloat16 = dataclasses.replace(FLOW, dtype="bfloat16")
    one_device = functools.cache(lambda: run(FLOW, None, ready=True)[0])
    for name in sys.argv[1:] or MESHES:
        layout = make_layout(MESHES[name])
        values, texts = zip(*(run(bfloat16, layout, ready=ready) for ready in (False, True)), strict=True)
        exact, text = run(FLOW, layout, ready=True)
        found[name] = {
            "stored": loops_of(texts[0], bfloat16, layout),
            "ready": loops_of(texts[1], bfloat16, layout),
            "ready in float32": loops_of(text, FLOW, layout),
            "equal": bool(np.isfinite(values[0]).all() and np.array_equal(*values)),
            "error": float(np.linalg.norm(exact - one_device()) / np.linalg.norm(one_device())),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
