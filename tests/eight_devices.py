"""Run as a program on eight fake devices: five updates of a tiny flow on one of them, and on meshes of all.

    python tests/eight_devices.py FOLDER [MESH ...]

Prints one JSON object: by mesh, the largest relative errors of losses, gradients and parameters against one device, and
how the parameters lie. The text of every compiled program goes to FOLDER. `tests/test_mesh.py` runs it and judges.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np

from starflow_jax.core.config import (
    DataConfig,
    DenoiserConfig,
    ExperimentConfig,
    FlowConfig,
    MeshConfig,
    TextConfig,
    TrainConfig,
)
from starflow_jax.sharding import make_layout
from starflow_jax.training.step.train_step import init_state, train_steps

MESHES = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(data=1, fsdp=8),
    "slices 2, fsdp 4": MeshConfig(slices=2, data=1, fsdp=4),
    "slices 2, fsdp 2, tensor 2": MeshConfig(slices=2, data=1, fsdp=2, tensor=2),
    "data 4, fsdp 2": MeshConfig(data=4, fsdp=2),
    "fsdp 4, tensor 2": MeshConfig(data=1, fsdp=4, tensor=2),
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "data 4, sequence 2": MeshConfig(data=4, sequence=2),
    "fsdp 2, tensor 2, sequence 2": MeshConfig(data=1, fsdp=2, tensor=2, sequence=2),
}
LEVELS, STEPS, BATCH = 17, 5, 16

STARFLOW = ExperimentConfig(
    name="mesh",
    flow=FlowConfig(
        channels=2, image_size=4, width=80, deep_width=160, num_blocks=2, layers_per_block=(1, 2), head_dim=20,
        rope=True, sos=True, text_dim=8, text_length=4, cond_top_only=True, scale="softplus",
        final_norm=True, soft_clip=4.0, order="L2R", bias=False, temporal_causal=True, shallow_local=True,
        remat="block", denoiser=DenoiserConfig(1, True, 2, 2),
    ),
    data=DataConfig(source="npz", path="none", noise="gaussian", noise_std=0.3, label_drop=0.2),
    text=TextConfig(tuple("abcdefgh")),
    train=TrainConfig(steps=8, batch_size=BATCH, lr=1e-4, grad_clip=1.0, ema=0.9, noise_weight=True, latent_norm=1e-3),
)  # fmt: skip


def batches(config):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, LEVELS, (STEPS, BATCH, 2, 4, 4, 2)).astype(np.uint8),
        "label": np.zeros((STEPS, BATCH), np.int32),
        "text": rng.integers(0, 9, (STEPS, BATCH, 4)).astype(np.int32),
    }


def placed(config, layout, tree):
    return tree if layout is None else jax.tree.map(lambda a: jax.device_put(a, layout.batch(a.shape, 1)), tree)


def disturbed(state):
    """Away from the identity map that a new flow is, so that every parameter has a gradient."""
    rng = np.random.default_rng(3)
    # On the host: on the devices every shape and sharding would be another program.
    moved = jax.tree.map(
        lambda a: jax.device_put(np.asarray(a) + 0.05 * rng.normal(size=a.shape).astype(a.dtype), a.sharding),
        state.params,
    )
    return state.replace(params=moved, ema=copied(moved))


def copied(tree):
    """The same values in other buffers, which a program may overwrite."""
    return jax.tree.map(lambda a: jax.device_put(np.array(a), a.sharding), tree)


def run(config, layout):
    state = disturbed(init_state(config, layout))
    data = placed(config, layout, batches(config))
    # The number of updates is an argument of the program: one compilation serves both calls and the text.
    compiled = train_steps.lower(config, LEVELS, state, data, STEPS, layout).compile()
    # Adam's first mean after one update is the gradient, but for a factor.
    once, _ = compiled(copied(state), data, 1)
    grads = jax.device_get({name: group[0].mu for name, group in once.opt_state.items()})
    places = (
        {
            "/".join(k.key for k in path): str(a.sharding.spec)
            for path, a in jax.tree_util.tree_leaves_with_path(state.params)
        }
        if layout
        else {}
    )
    after, metrics = compiled(state, data, STEPS)
    same = layout is None or all(
        a.sharding.is_equivalent_to(s, a.ndim)
        for a, s in zip(jax.tree.leaves(after), jax.tree.leaves(layout.tree(after)), strict=True)
    )
    return jax.device_get(metrics["loss"]), grads, jax.device_get(after.params), compiled.as_text(), places, same


def worst(ours, expected):
    """Largest distance of any array, relative to that array's norm.

    Not entry by entry: Adam turns a gradient that is all rounding into a whole step of either sign.
    """

    def error(a, b):
        return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))

    return max(jax.tree.leaves(jax.tree.map(error, ours, expected)))


def main():
    out = Path(sys.argv[1])
    reference = run(STARFLOW, None)
    found = {}
    cases = {name: (STARFLOW, mesh) for name, mesh in MESHES.items()}
    parts = dataclasses.replace(STARFLOW, train=dataclasses.replace(STARFLOW.train, accumulate=2))
    cases["one device, accumulated"] = (parts, None)
    cases["fsdp 4, tensor 2, accumulated"] = (parts, MESHES["fsdp 4, tensor 2"])
    for name in sys.argv[2:] or cases:
        config, mesh = cases[name]
        layout = None if mesh is None else make_layout(mesh)
        losses, grads, params, program, places, same = run(config, layout)
        (out / f"{name}.hlo").write_text(program)
        found[name] = {
            "loss": worst(losses, reference[0]),
            "gradients": worst(grads, reference[1]),
            "parameters": worst(params, reference[2]),
            "places": places,
            "stays": same,
        }
        print(name, {k: v for k, v in found[name].items() if k != "places"}, file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
