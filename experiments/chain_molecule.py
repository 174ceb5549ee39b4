"""A TARFlow for molecules, on a chain of twelve atoms of three kinds whose density is known (`chain_potential.py`).

    python experiments/chain_potential.py chain.npz
    starflow train --config experiments/chain_molecule.py --workdir runs/chain
    starflow evaluate --workdir runs/chain
    starflow draw-target --workdir runs/chain --target experiments/chain_potential.py:log_density --out drawn.npz

The switches of the variant of TARFlow that samples peptides ("Prose", arXiv 2508.18175): a token for each atom, classes
of atoms with look-ahead, given orders, adaptive layer norms, SwiGLU, layer norms of queries and keys, and sinusoidal
positions in the order of a block.
Data: `data.path`, conformations [N, 12, 3] in angstrom.
Hardware: any CPU; 600 updates on 128 conformations each, two to three minutes of CPU time.
Expected: `starflow evaluate` gave a mean log-likelihood of -28.07 ± 0.04 nats on the test split (seed 0); the mean of
the exact log-density is -2.57 ± 0.04.
Variants: "" for a CPU, "tiny" for tests, and "full" with that paper's sizes and optimizer, which was only planned:
`starflow plan --config experiments/chain_molecule.py:full`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from starflow_jax.experiments.chain_potential import ATOMS, BACKBONE, KINDS, SIDE

# Named orders of the atoms. The raster order is residue by residue.
RESIDUES_FORWARDS = tuple(range(ATOMS))
BACKBONE_FIRST = (*BACKBONE, *SIDE)
BACKBONE_LAST = (*SIDE, *BACKBONE)
ORDERS = (RESIDUES_FORWARDS, RESIDUES_FORWARDS[::-1], BACKBONE_FIRST, BACKBONE_LAST[::-1])


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; ValueError for an unknown variant."""
    if variant not in ("", "tiny", "full"):
        raise ValueError(f"variant must be '', 'tiny' or 'full', got {variant!r}")
    config = ConfigDict(
        {
            "name": "chain-molecule",
            "flow": {
                "family": "tarflow",
                "channels": 3,
                "image_size": (ATOMS, 1),
                "width": 64,
                "num_blocks": 4,
                "layers_per_block": 1,
                "head_dim": 32,
                "orders": ORDERS,
                "token_classes": max(KINDS) + 1,
                "default_classes": KINDS,
                "look_ahead": True,
                "norm": "adaptive",
                "mlp": "swiglu",
                "expansion": 2,
                "qk_norm": "layer",
                "positions": "sinusoidal",
                # One unit for all coordinates, about their standard deviation.
                "pixel_map": {"kind": "affine", "shift": (0.0,) * (3 * ATOMS), "scale": (2.0,) * (3 * ATOMS)},
            },
            "data": {"source": "vectors", "path": "chain.npz", "noise": "none"},
            "train": {
                "steps": 600,
                "batch_size": 128,
                "lr": 2e-3,
                "min_lr": 1e-6,
                "warmup": 30,
                "weight_decay": 4e-4,
                "grad_clip": 1.0,
                "skip_after": None,
                "ema": 0.99,
                "steps_per_call": 50,
                "log_every": 100,
                "checkpoint_every": 600,
                "sample_every": 600,
                "evaluate_every": 600,
            },
            "sample": {"num": 1000, "solver": "sequential"},
            "evaluate": {"batch_size": 1024},
            "seed": 0,
        }
    )
    if variant == "full":
        config.name = "chain-molecule-full"
        config.flow.update({"width": 384, "head_dim": 64, "num_blocks": 8, "layers_per_block": 8, "expansion": 4})
        config.flow.orders = ORDERS * 2
        # OneCycle: 5 % of the updates from lr / 500 to lr, then a cosine.
        config.train.update({"steps": 500_000, "batch_size": 512, "lr": 1e-4, "min_lr": 2e-7, "warmup": 25_000})
        config.train.update({"log_every": 1000, "checkpoint_every": 10_000, "sample_every": 10_000})
        config.train.update({"evaluate_every": 10_000, "ema": 0.999})
    if variant == "tiny":
        config.name = "chain-molecule-tiny"
        config.flow.update({"width": 16, "num_blocks": 2, "layers_per_block": 1, "head_dim": 16})
        config.flow.orders = ORDERS[1:3]
        config.train.update({"steps": 10, "batch_size": 8, "warmup": 1, "steps_per_call": 5, "log_every": 5})
        config.train.update({"checkpoint_every": 10, "sample_every": 10, "evaluate_every": 10})
        config.sample.num = 8
    return config
