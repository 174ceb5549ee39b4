"""What looks at pictures (or clips) for the metrics: a network that gives features, and logits where it classifies."""

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
from starflow_jax.evaluation.samples.inception import Resize, network_input
from starflow_jax.evaluation.samples.inception_weights import abstract_inception, read_inception
from starflow_jax.evaluation.samples.moments import Moments, total_moments
from starflow_jax.evaluation.samples.network_fingerprint import Marks, fixed_pictures, marks
from starflow_jax.nn.parameters import Params, merge
from starflow_jax.sharding.layout import Layout, gathered, placed, spread

# Features [B, d] of pictures uint8 [B, H, W, C] or clips [B, T, H, W, C], or those and logits [B, classes].
Look = Callable[[np.ndarray], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A feature network.

    Attributes:
      name: for tables.
      digest: of its weights or code. Code does not tell which weights it reads: `answers` do.
      look: pictures uint8 [B, ..., H, W, C] to features [B, d], or to (features, logits [B, classes]).
      channels: that it reads; None for any.
      answers: to fixed pictures (`network_answers`), by which kept features are known as its own; None: not asked.
    """

    name: str
    digest: str
    look: Look
    channels: tuple[int, ...] | None = None
    answers: Marks | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """What a network said of n pictures: features float32 [n, d]; logits float32 [n, classes], None without classes."""

    features: np.ndarray
    logits: np.ndarray | None


def look_at(network: FeatureNetwork, images: np.ndarray, batch_size: int) -> Seen:
    """Features of n pictures or clips, `batch_size` at a time; the last batch is filled up, so that one program does.

    Raises:
      ValueError: an answer that is not as `FeatureNetwork` says, or not finite.
    """
    parts = []
    for first in range(0, len(images), batch_size):
        rows = images[first : first + batch_size]
        answer = network.look(rows[np.resize(np.arange(len(rows)), batch_size)])
        parts.append(tuple(part[: len(rows)] for part in _checked(network.name, answer, batch_size)))
    columns = list(zip(*parts, strict=True))
    return Seen(np.concatenate(columns[0]), np.concatenate(columns[1]) if len(columns) > 1 else None)


def answers_of(network: FeatureNetwork, shape: tuple[int, ...]) -> Marks:
    """What it says of fixed pictures of a shape (H, W, C); raises ValueError as `look_at` does."""
    seen = look_at(network, fixed_pictures(shape), 2)
    return marks(seen.features, *(() if seen.logits is None else (seen.logits,)))


def feature_moments(network: FeatureNetwork, batches: Iterable[np.ndarray]) -> Moments:
    """Mean and covariance of the features of batches uint8 [B, ..., H, W, C], in one pass.

    With `frechet_distance` of two of them this is FID, or on clips and a network of clips FVD.
    """
    return total_moments(look_at(network, images, len(images)).features for images in batches)


def inception_network(path: Path, *, resize: Resize = "half-pixel", layout: Layout | None = None) -> FeatureNetwork:
    """FID's Inception from a file of weights; over a layout each device looks at its share of a batch.

    Raises:
      ValueError: see `read_inception`.
    """
    params = read_inception(path)
    known = f"{digest_of_weights(params)} {resize}"
    on_device = spread(layout, params) if layout is not None else jax.device_put(params)
    return FeatureNetwork(
        f"Inception ({path.name}, {resize})",
        known,
        lambda images: _inception(layout, resize, on_device, spread(layout, images)),
        (1, 3),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _inception(layout: Layout | None, resize: Resize, params: Params, images: jax.Array) -> Any:
    x = network_input(placed(layout, images, "batch"), resize)
    return gathered(layout, merge(abstract_inception()[0], params)(x))


def digest_of_weights(params: Any) -> str:
    """Of arrays that this process holds, and of their names; the same on every process."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        found.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:16]


def named_network(name: str) -> FeatureNetwork:
    """A network that is a function of the user's, named "module:function"; importing it runs the user's code.

    Raises:
      ValueError: a module that cannot be imported, or that has no such function.
    """
    function, code = named_function(name)
    return FeatureNetwork(name, code, function)


def named_function(name: str) -> tuple[Callable[..., Any], str]:
    """The function of a "module:function", and a digest of its name, the module's file and the file it stands in.

    Raises:
      ValueError: a module that cannot be imported, or that has no such function.
    """
    module_name, _, attribute = name.partition(":")
    check(bool(module_name and attribute), f"a function must be named MODULE:FUNCTION, got {name!r}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's code does
        raise ValueError(f"module {module_name} cannot be imported: {type(error).__name__}: {error}") from error
    function: Any = module
    for part in attribute.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise ValueError(f"module {module_name} has no function {attribute}")
    return function, hashlib.sha256(b"\0".join([name.encode(), _source(module), _source(function)])).hexdigest()[:16]


def _source(thing: Any) -> bytes:
    """The file that a module or a function stands in; nothing where there is none."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(thing) if callable(thing) else thing)
        return Path(file).read_bytes() if file else b""
    except (TypeError, ValueError, OSError):
        return b""


def _checked(name: str, answer: Any, count: int) -> Iterator[np.ndarray]:
    parts = answer if isinstance(answer, tuple) else (answer,)
    check(len(parts) in (1, 2), f"{name} must give features, or (features, logits), got {len(parts)} values")
    for what, part in zip(("features", "logits"), parts, strict=False):
        try:
            array = np.asarray(part).astype(np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must give {what} as numbers, got {type(part).__name__}") from error
        check(
            array.ndim == 2 and len(array) == count and array.shape[1] > 0,
            f"{name} must give {what} [{count}, d] of {count} pictures, got {list(array.shape)}",
        )
        bad = int(np.count_nonzero(~np.isfinite(array)))
        check(bad == 0, f"{name} must give finite {what}, got {bad} values that are not")
        yield array
