"""LPIPS on VGG16 (Zhang et al., "The Unreasonable Effectiveness of Deep Features", arXiv 1801.03924).

Two images are compared in five layers of a classifier: features are normalised to unit length at every position, their
squared differences weighted by channel, averaged over positions and summed over layers.

The weights are files that the user provides, with the tensor names of the packages that publish them:

- of the classifier, torchvision's VGG16: `features.0.weight` [64, 3, 3, 3] and `.bias`, then 2, 5, 7, 10, 12, 14, 17,
  19, 21, 24, 26, 28 (other tensors in the file, such as `classifier.*`, are ignored);
- of the channels, the package `lpips`: `lin0.model.1.weight` [1, 64, 1, 1] to `lin4.model.1.weight` [1, 512, 1, 1].

A file with both, saved from the whole module of `lpips`, names the classifier's tensors `net.slice1.0.weight` and so
on, with the indices of torchvision.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.models.autoencoders.protocol import Params
from starflow_jax.models.autoencoders.torch_layout import from_tensors
from starflow_jax.tensor_formats.tensor_folders import Tensors, read_tensors

# Widths of VGG16's convolutions by stage; every stage but the first begins with 2x2 max pooling.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SMALLEST = 16  # rows and columns that four poolings reduce to one
# Mean and standard deviation of ImageNet's pixels in [-1, 1], which normalise the classifier's input.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


def read_lpips(paths: Iterable[Path]) -> Params:
    """Reads the weights, float32, from one file or several.

    Raises:
      ValueError: a file that is missing or damaged, or tensors that are missing or of another shape.
    """
    tensors: dict[str, np.ndarray] = {}
    paths = list(paths)
    for path in paths:
        check(path.is_file(), f"LPIPS needs its weights, and {path} does not exist (see docs/autoencoders.md)")
        tensors |= read_tensors(path)
    try:
        return lpips_params(tensors)
    except ValueError as error:
        raise ValueError(f"LPIPS weights {', '.join(map(str, paths))}: {error}") from error


def lpips_params(tensors: Tensors) -> Params:
    """The weights from named tensors; tensors that are not needed are ignored.

    Raises:
      ValueError: tensors that are missing or of another shape.
    """
    expected = abstract_lpips()
    renamed = {_torchvision_name(name): value for name, value in tensors.items()}
    names = {f"features.{index}.{leaf}" for index in expected["features"] for leaf in ("weight", "bias")}
    names |= {f"{name}.model.1.weight" for name in expected if name.startswith("lin")}
    return from_tensors(
        expected,
        {name: value for name, value in renamed.items() if name in names},
        lambda path: re.sub(r"^(lin\d)\.", r"\1.model.1.", path),
    )


def abstract_lpips() -> dict[str, Any]:
    """ShapeDtypeStructs of the weights: `features`, by torchvision's index; `lin0` .. `lin4`."""
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    features, layer_index, inputs = {}, 0, 3
    for stage in STAGES:
        for width in stage:
            features[str(layer_index)] = {"kernel": struct(3, 3, inputs, width), "bias": struct(width)}
            layer_index, inputs = layer_index + 2, width  # the ReLU has an index, too
        layer_index += 1  # the max pooling
    heads = {f"lin{index}": {"kernel": struct(1, 1, stage[-1], 1)} for index, stage in enumerate(STAGES)}
    return {"features": features} | heads


def lpips(params: Params, a: jax.Array, b: jax.Array) -> jax.Array:
    """The distance float32 [B] of images a, b in [-1, 1], [B, H, W, C] with C of 3 or 1 (grey); 0 for equal images."""
    total = jnp.zeros(a.shape[0])
    for index, (one, other) in enumerate(zip(_features(params, a), _features(params, b), strict=True)):
        square = (_unit(one) - _unit(other)) ** 2
        weights = params[f"lin{index}"]["kernel"].reshape(-1)
        total = total + jnp.mean(jnp.einsum("bhwc,c->bhw", square, weights, precision="highest"), axis=(1, 2))
    return total


def _features(params: Params, x: jax.Array) -> list[jax.Array]:
    """The output of the last ReLU of every stage."""
    x = (jnp.broadcast_to(x, (*x.shape[:-1], 3)) - jnp.asarray(_SHIFT)) / jnp.asarray(_SCALE)
    outputs, layer_index = [], 0
    for index, stage in enumerate(STAGES):
        if index:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for _ in stage:
            layer = params["features"][str(layer_index)]
            x = jax.lax.conv_general_dilated(
                x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
            )
            x = jax.nn.relu(x + layer["bias"])
            layer_index += 2
        layer_index += 1
        outputs.append(x)
    return outputs


def _unit(x: jax.Array) -> jax.Array:
    """Normalises to length 1 at every position; zero stays zero, also in the gradient."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    return x / (jnp.sqrt(jnp.where(square > 0, square, 1.0)) + 1e-10)


def _torchvision_name(name: str) -> str:
    return re.sub(r"^net\.slice\d\.(\d+)\.", r"features.\1.", name)
