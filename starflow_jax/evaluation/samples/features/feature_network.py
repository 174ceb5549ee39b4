"""Feature networks of images and clips for the metrics: features, and logits where the network classifies."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.evaluation.samples.features.inception import Resize, network_input
from starflow_jax.evaluation.samples.features.inception_weights import abstract_inception, read_inception
from starflow_jax.evaluation.samples.features.moments import Moments, total_moments
from starflow_jax.evaluation.samples.features.network_fingerprint import Fingerprint, fingerprint, fixed_images
from starflow_jax.nn.module_parameters import Params, merge
from starflow_jax.sharding.layout import Layout, gathered, placed, spread

# From images uint8 [B, H, W, C] or clips uint8 [B, T, H, W, C] to features [B, d], or to these and logits [B, classes].
FeatureFunction = Callable[[np.ndarray], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A feature network.

    Attributes:
      name: for tables.
      digest: hash of its weights or of its code. Code does not determine the weights that it reads; `fingerprint` does.
      apply: from images to features, see `FeatureFunction`.
      channels: numbers of channels that the network reads; None for any.
      fingerprint: of its outputs on fixed images, by which stored features are matched to it; None where not computed.
    """

    name: str
    digest: str
    apply: FeatureFunction
    channels: tuple[int, ...] | None = None
    fingerprint: Fingerprint | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Outputs of a network for n images: features float32 [n, d]; logits float32 [n, classes], or None."""

    features: np.ndarray
    logits: np.ndarray | None


def extract_features(network: FeatureNetwork, images: np.ndarray, batch_size: int) -> Features:
    """Features of n images or clips, computed in batches; the last batch is padded, so that one program is compiled.

    Raises:
      ValueError: an output of the network that is not as `FeatureFunction` says, or not finite.
    """
    parts = []
    for first in range(0, len(images), batch_size):
        rows = images[first : first + batch_size]
        output = network.apply(rows[np.resize(np.arange(len(rows)), batch_size)])
        parts.append(tuple(part[: len(rows)] for part in _checked(network.name, output, batch_size)))
    columns = list(zip(*parts, strict=True))
    return Features(np.concatenate(columns[0]), np.concatenate(columns[1]) if len(columns) > 1 else None)


def network_fingerprint(network: FeatureNetwork, shape: tuple[int, ...]) -> Fingerprint:
    """The fingerprint of a network's outputs on images of a shape (H, W, C).

    Raises:
      ValueError: see `extract_features`.
    """
    output = extract_features(network, fixed_images(shape), 2)
    return fingerprint(output.features, *(() if output.logits is None else (output.logits,)))


def feature_moments(network: FeatureNetwork, batches: Iterable[np.ndarray]) -> Moments:
    """Mean and covariance of the features of batches uint8 [B, ..., H, W, C], in one pass.

    `frechet_distance` of two of them is FID, or FVD for clips and a network of clips.
    """
    return total_moments(extract_features(network, images, len(images)).features for images in batches)


def inception_network(path: Path, *, resize: Resize = "half-pixel", layout: Layout | None = None) -> FeatureNetwork:
    """The Inception network of FID from a file of weights; over a layout every device reads its shard of a batch.

    Raises:
      ValueError: see `read_inception`.
    """
    params = read_inception(path)
    digest = f"{weights_digest(params)} {resize}"
    on_device = spread(layout, params) if layout is not None else jax.device_put(params)
    return FeatureNetwork(
        f"Inception ({path.name}, {resize})",
        digest,
        lambda images: _inception(layout, resize, on_device, spread(layout, images)),
        (1, 3),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _inception(layout: Layout | None, resize: Resize, params: Params, images: jax.Array) -> Any:
    x = network_input(placed(layout, images, "batch"), resize)
    return gathered(layout, merge(abstract_inception()[0], params)(x))


def weights_digest(params: Any) -> str:
    """Hash of arrays and their names, 16 hexadecimal digits; the same on every process that holds them."""
    sha256 = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        sha256.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        sha256.update(np.ascontiguousarray(leaf).tobytes())
    return sha256.hexdigest()[:16]


def named_network(name: str) -> FeatureNetwork:
    """A user-defined function, named "module:function", as a network; importing it runs the code of the module.

    Raises:
      ValueError: the module cannot be imported, or has no such function.
    """
    function, code = named_function(name)
    return FeatureNetwork(name, code, function)


def named_function(name: str) -> tuple[Callable[..., Any], str]:
    """The function of a "module:function", and a hash of its name, its module and the file that defines it.

    Raises:
      ValueError: the module cannot be imported, or has no such function.
    """
    module_name, _, attribute = name.partition(":")
    check(bool(module_name and attribute), f"a function must be given as MODULE:FUNCTION, got {name!r}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # user code may raise anything
        raise ValueError(f"module {module_name} cannot be imported: {type(error).__name__}: {error}") from error
    function: Any = module
    for part in attribute.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise ValueError(f"module {module_name} has no function {attribute}")
    return function, hashlib.sha256(b"\0".join([name.encode(), _source(module), _source(function)])).hexdigest()[:16]


def _source(defined: Any) -> bytes:
    """The source file that defines a module or a function; empty where there is none."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(defined) if callable(defined) else defined)
        return Path(file).read_bytes() if file else b""
    except (TypeError, ValueError, OSError):
        return b""


def _checked(name: str, output: Any, count: int) -> Iterator[np.ndarray]:
    parts = output if isinstance(output, tuple) else (output,)
    check(len(parts) in (1, 2), f"{name} must return features or (features, logits), got {len(parts)} values")
    for what, part in zip(("features", "logits"), parts, strict=False):
        try:
            array = np.asarray(part).astype(np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must return {what} as numbers, got {type(part).__name__}") from error
        check(
            array.ndim == 2 and len(array) == count and array.shape[1] > 0,
            f"{name} must return {what} [{count}, d] for {count} images, got {list(array.shape)}",
        )
        bad = int(np.count_nonzero(~np.isfinite(array)))
        check(bad == 0, f"{name} must return finite {what}, got {bad} values that are not")
        yield array
