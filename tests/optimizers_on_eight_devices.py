"""Two updates of every optimizer over a mesh of eight CPU devices and on one; prints the largest differences."""

import dataclasses
import json

import jax
import numpy as np
from eight_devices import MESHES, STARFLOW, worst

from starflow_jax.core.config.optimizer_config import AdafactorConfig, OptimizerConfig
from starflow_jax.sharding.mesh import make_layout
from starflow_jax.training.step.optimizer import apply_updates, init_optimizer
from starflow_jax.training.step.train_step import init_state

OPTIMIZERS = {
    "lion": OptimizerConfig("lion", moment_dtype="bfloat16"),
    "adafactor": OptimizerConfig("adafactor", adafactor=AdafactorConfig(factor_from=16)),
    "muon": OptimizerConfig("muon"),
    "schedule-free": OptimizerConfig("schedule-free"),
}


def updated(train, params, layout):
    """Parameters after two updates with random gradients, over the mesh of `layout` or on one device."""

    def put(tree):
        return tree if layout is None else jax.tree.map(jax.device_put, tree, layout.tree(tree))

    params = put(params)
    state = put(init_optimizer(train, params))
    update = jax.jit(lambda p, s, g: apply_updates(train, p, s, g, step=0, lr=1e-2)[:2])
    for seed in range(2):
        rng = np.random.default_rng(seed)
        grads = put(jax.tree.map(lambda leaf, rng=rng: rng.normal(size=leaf.shape).astype(np.float32), params))
        params, state = update(params, state, grads)
    return jax.device_get(params)


def main():
    params = jax.device_get(init_state(STARFLOW).params)
    found = {}
    for name, optimizer in OPTIMIZERS.items():
        decay = "constant" if name == "schedule-free" else "cosine"
        train = dataclasses.replace(STARFLOW.train, optimizer=optimizer, decay=decay, ema=0.0)
        layout = make_layout(MESHES["fsdp 4, tensor 2"])
        found[name] = worst(updated(train, params, layout), updated(train, params, None))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
