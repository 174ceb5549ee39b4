"""Run as a program on four fake devices: an autoencoder encodes, and a decoder is trained, on one and on all of them.

    python tests/autoencoder_devices.py

Prints one JSON object; `tests/test_reconstruction.py` runs it and judges.
"""

import json

import jax
import numpy as np

from starflow_jax.core.config import AutoencoderExperiment, MeshConfig, SourceConfig
from starflow_jax.core.config.autoencoder_config import LossConfig, ReconstructionConfig
from starflow_jax.models.autoencoders.kl.model import AutoencoderKL
from starflow_jax.reconstruction.update import Objective, init_state, update
from starflow_jax.sharding import make_layout
from starflow_jax.training.step.frozen_autoencoder import Frozen


def main() -> None:
    autoencoder = AutoencoderKL((4, 8), 1, 2, 1, 4)
    params = jax.tree.map(np.asarray, autoencoder.init(jax.random.key(0)))
    layout = make_layout(MeshConfig(data=2, fsdp=2))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)

    def latents(layout):
        encoder = Frozen(autoencoder, params).over(layout)
        encode = jax.jit(lambda encoder, x: encoder.latents(x, 256, layout))
        return np.asarray(encode(encoder, pixels)), encoder.params

    alone, _ = latents(None)
    spread, placed = latents(layout)
    kernel = placed["encoder"]["down_blocks"]["0"]["resnets"]["0"]["conv1"]["kernel"]

    loss = LossConfig(latent_noise=0.1, adversarial=0.5, discriminator_width=4, discriminator_layers=1)
    train = ReconstructionConfig(steps=4, batch_size=4, lr=1e-3)
    objective = Objective(AutoencoderExperiment("d", SourceConfig(), 8, loss, train, autoencoder="a"), autoencoder)

    def trained(layout):
        state, frozen = init_state(objective, params)
        if layout is not None:
            state, frozen = (jax.device_put(tree, layout.tree(tree)) for tree in (state, frozen))
        losses = []
        for _ in range(2):
            batch = pixels if layout is None else layout.assemble(pixels)
            state, metrics = update(objective, 256, state, frozen, None, batch, layout)
            losses.append(float(metrics["loss"]))
        return losses, jax.tree.map(np.asarray, state.ema)

    one, many = trained(None), trained(layout)
    # Kernels: norms do not see some directions of biases, whose gradient is rounding alone, which Adam scales up.
    leaves = zip(jax.tree_util.tree_leaves_with_path(one[1]), jax.tree.leaves(many[1]), strict=True)
    moved = [float(np.abs(a - b).max()) for (path, a), b in leaves if path[-1].key == "kernel"]
    figures = {
        "latents": float(np.abs(alone - spread).max()),
        "kernel": [str(axis) for axis in kernel.sharding.spec],
        "losses": [one[0], many[0]],
        "parameters": max(moved),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
