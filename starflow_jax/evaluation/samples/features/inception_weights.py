"""Weights of FID's Inception, from the file that pytorch-fid and torch-fidelity publish for it.

Both use the same names of tensors: `Conv2d_1a_3x3.conv.weight` [32, 3, 3, 3], `Conv2d_1a_3x3.bn.weight`, `.bias`,
`.running_mean` and `.running_var` [32], ..., `Mixed_7c.branch_pool.*`, `fc.weight` [1008, 2048], `fc.bias` [1008].
PyTorch is not needed, and nothing in a file is executed (`porting.open_tensors`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from starflow_jax.core.config.checks import check
from starflow_jax.evaluation.samples.features.inception import CLASSES, Inception
from starflow_jax.models.autoencoders.torch_layout import from_tensors
from starflow_jax.nn.module_parameters import Params, split
from starflow_jax.tensor_formats.tensor_folders import Tensors, read_tensors

_EPSILON = 1e-3  # epsilon of the network's batch norms
_COUNTER = ".num_batches_tracked"  # stored by PyTorch beside the statistics of a batch norm; unused


def read_inception(path: Path) -> Params:
    """The parameters of `Inception`, float32, from a file of tensors (`torch.save` or safetensors).

    Raises:
      ValueError: one sentence that names the file: missing, damaged, or of another network.
    """
    check(path.is_file(), f"Inception weights must be a file, got {path}")
    tensors = read_tensors(path)
    try:
        return inception_params(tensors)
    except ValueError as error:
        raise ValueError(f"Inception weights {path}: {error}") from error


def inception_params(tensors: Tensors) -> Params:
    """The parameters from named tensors, batch norms folded into the convolutions before them.

    Raises:
      ValueError: tensors that are missing, not known, of another shape, or not finite.
    """
    last = tensors.get("fc.weight")
    check(
        last is None or last.shape[:1] != (1000,),
        f"fc.weight must have {CLASSES} classes, got 1000: these are the weights of torchvision, whose network "
        "differs from that of FID",
    )
    weights = {name: value for name, value in tensors.items() if not name.endswith(_COUNTER)}
    return _folded(from_tensors(_with_norms(abstract_inception()[1]), weights))


@functools.cache
def abstract_inception() -> tuple[nnx.GraphDef, Params]:
    """The network's definition, for `nn.module_parameters.merge`, and ShapeDtypeStructs of its parameters."""
    definition, params = split(nnx.eval_shape(lambda: Inception(nnx.Rngs(0))))
    return definition, params


def _with_norms(params: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of the file: a convolution without bias, and a batch norm beside it."""
    tree: dict[str, Any] = {}
    for name, value in params.items():
        if "conv" in value:
            vector = value["conv"]["bias"]
            norm = {leaf: vector for leaf in ("scale", "bias", "running_mean", "running_var")}
            tree[name] = {"conv": {"kernel": value["conv"]["kernel"]}, "bn": norm}
        else:
            tree[name] = value if "kernel" in value else _with_norms(value)
    return tree


def _folded(tree: Mapping[str, Any]) -> Params:
    params: Params = {}
    for name, value in tree.items():
        if "bn" in value:
            norm = {leaf: array.astype(np.float64) for leaf, array in value["bn"].items()}
            check(bool((norm["running_var"] >= 0).all()), f"{name}.bn.running_var must not be negative")
            factor = norm["scale"] / np.sqrt(norm["running_var"] + _EPSILON)
            kernel, bias = value["conv"]["kernel"] * factor, norm["bias"] - norm["running_mean"] * factor
            params[name] = {"conv": {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}}
        else:
            params[name] = value if "kernel" in value else _folded(value)
    return jax.tree.map(np.asarray, params)
