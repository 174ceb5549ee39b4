"""Checkpoints as training scripts write them, made with PyTorch: `python tests/training_checkpoints.py FOLDER`.

It wrote the files of these names in tests/goldens/torch_files, with PyTorch 2.14, NumPy 2.4 and OmegaConf 2.4. Where
PyTorch is installed, the tests write them anew.
"""

import argparse
import collections
import datetime
import enum
import functools
import pathlib
import random
import sys
import types
from pathlib import Path


class Phase(enum.Enum):
    """What a run is doing."""

    WARMUP = 1


def write_training_state(path, torch, **options):
    """A state of parameters beside everything that a training script keeps for itself."""
    import numpy as np

    torch.manual_seed(0)
    random.seed(0)
    history = collections.defaultdict(list)
    history["loss"] += [1.0, np.float64(0.5)]
    tensors = {"blocks.0.proj_in.weight": torch.arange(6.0).reshape(2, 3), "n_averaged": torch.tensor(7)}
    state = {
        "model": collections.OrderedDict(tensors),
        "ema": {name: 2 * value for name, value in tensors.items()},
        "double": {"blocks.0.proj_in.weight": torch.arange(6.0, dtype=torch.float64)},
        "args": argparse.Namespace(lr=1e-4, phase=Phase.WARMUP, path=pathlib.Path("runs")),
        "extra": types.SimpleNamespace(a=1),
        "phase": Phase.WARMUP,
        "history": history,
        "seen": {1, 2, 3},
        "frozen": frozenset(["a"]),
        "queue": collections.deque([1, 2], maxlen=4),
        "counter": collections.Counter("aab"),
        "best": np.float32(0.25),
        "step": np.int64(3),
        "array": np.arange(3),
        "dtype": np.dtype("float32"),
        "numpy": np.random.RandomState(0).get_state(),
        "generator": np.random.default_rng(0).bit_generator.state,
        "python": random.getstate(),
        "torch": torch.get_rng_state()[:8].clone(),
        "when": datetime.datetime(2024, 1, 1),
        "schedule": functools.partial(max, 1),
        "bounds": {(0, 1): torch.ones(2), (("a",), 2.0): "x", 1.5: 2, None: 3, True: 4},
        "kinds": [torch.bfloat16, torch.device("cpu"), torch.Size([2]), torch.strided, 2**100, 3 + 4j, b"bytes"],
        "cls": collections.UserDict,
    }
    torch.save(state, path, **options)


def write_tensor_kinds(path, torch, **options):
    """Tensors of every kind, under one state."""
    state = {
        "plain": torch.arange(3.0),
        "complex": torch.tensor([1 + 2j]),
        "complex128": torch.tensor([1 + 2j], dtype=torch.complex128),
        "float8": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
        "sparse": torch.eye(2).to_sparse(),
        "csr": torch.eye(2).to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 10, torch.qint8),
        "meta": torch.empty(2, device="meta"),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "conjugated": torch.tensor([1 + 2j]).conj(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "buffer": torch.nn.Buffer(torch.ones(1)),
    }
    torch.save(state, path, **options)


def write_lightning(path, torch, **options):
    """What Lightning's Trainer saves, with hyperparameters of OmegaConf."""
    from omegaconf import OmegaConf

    torch.manual_seed(0)
    module = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    config = OmegaConf.create({"model": {"width": 4, "layers": [1, 2]}, "name": "${model.width}"})
    state = {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.2.0",
        "state_dict": collections.OrderedDict((f"model.blocks.0.{n}", v) for n, v in module.state_dict().items()),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}, "current": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "kth_value": None}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "config",
        "hyper_parameters": config,
    }
    torch.save(state, path, **options)


WRITERS = {
    "training.pth": (write_training_state, {}),
    "training_protocol5.pth": (write_training_state, {"pickle_protocol": 5}),
    "training_legacy.pt": (write_training_state, {"_use_new_zipfile_serialization": False}),
    "kinds.pth": (write_tensor_kinds, {}),
    "lightning.ckpt": (write_lightning, {}),
}

if __name__ == "__main__":
    import torch

    sys.modules["training_checkpoints"] = sys.modules["__main__"]
    Phase.__module__ = "training_checkpoints"
    for name, (write, options) in WRITERS.items():
        write(Path(sys.argv[1]) / name, torch, **options)
