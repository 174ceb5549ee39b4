"""Filling in what a visitor has painted over, by `editing.restore`: Markov chains on the posterior."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
from PIL import Image

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.editing.examples import data_size, in_units
from starflow_jax.editing.operators import Mask
from starflow_jax.editing.posterior_sampling import ChainOptions
from starflow_jax.editing.restoration import Restored, restore
from starflow_jax.sampling.image_requests import class_index
from starflow_jax.studio.background_work import Device, Outcome, Progress, in_background
from starflow_jax.studio.opened_model import OpenedModel

# The chains of each choice: few that are soon done, or as many as `starflow edit` has by default.
CHOICES = {
    "quick": ChainOptions(chains=8, candidates=8, burn_in=100, draws=50, thin=1),
    "thorough": ChainOptions(),
}
_PAINTED = 0.5  # the share of a pixel that must be painted over


@dataclasses.dataclass(frozen=True)
class Filling:
    """A request to fill in.

    Attributes:
      label: a class, "any" for whichever fits, or "none"; None for a model without classes.
      caption: of a model that reads captions; None for none.
      chains: one of `CHOICES`; seed: of all draws.
    """

    label: str | None = None
    caption: str | None = None
    chains: str = "quick"
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.chains in CHOICES, f"chains must be one of {', '.join(CHOICES)}, got {self.chains!r}")
        check_integer("seed", self.seed, minimum=0)


@dataclasses.dataclass(frozen=True, eq=False)
class Filled:
    """What was filled in.

    Attributes:
      pixels: uint8 [C, T, H, W, channels], a draw of every chain; a picture is one frame.
      original: uint8 [T, H, W, channels]; shown: the same, what is hidden in grey.
      missing: bool [T, H, W], what was hidden.
      classes: the classes of the chains with their shares, the most frequent first; empty where there are none.
      acceptance: mean probability of acceptance; r_hat: the largest split R-hat of what was hidden; ess: the smallest
        effective sample size.
    """

    pixels: np.ndarray
    original: np.ndarray
    shown: np.ndarray
    missing: np.ndarray
    classes: tuple[tuple[str, float], ...]
    acceptance: float
    r_hat: float
    ess: float


def painted(alpha: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The pixels that are painted over on an enlarged picture, bool [rows, columns].

    Args:
      alpha: uint8 or bool [h, w], above 0 where there is paint; sides of any length from `rows` and `columns`.

    Raises:
      ValueError: a picture of another shape, or one that is smaller.
    """
    alpha = np.asarray(alpha)
    check(
        alpha.ndim == 2 and alpha.shape[0] >= rows and alpha.shape[1] >= columns,
        f"the painted picture must be [h, w] with at least {rows} rows and {columns} columns, got {list(alpha.shape)}",
    )
    share = Image.fromarray(np.float32(alpha > 0)).resize((columns, rows), Image.Resampling.BOX)
    return np.asarray(share) >= _PAINTED


def hidden(painting: np.ndarray, frames: int, first: int, last: int) -> np.ndarray:
    """What is missing, bool [T, H, W]: the painting in the frames `first` to `last`, counted from 0; all of them where
    nothing is painted.

    Raises:
      ValueError: frames that the data have not, or all or nothing would be missing.
    """
    check(
        0 <= first <= last < frames,
        f"frames must be from 0 to {frames - 1}, in order, got {first} to {last}",
    )
    whole = frames > 1 and not painting.any() and (first, last) != (0, frames - 1)
    missing = np.zeros((frames, *painting.shape), bool)
    missing[first : last + 1] = True if whole else painting
    check(bool(missing.any()), "paint over the part that is to be filled in")
    check(not bool(missing.all()), "leave a part of the picture unpainted, from which the rest is filled in")
    return missing


def fill_in(
    model: OpenedModel, pixels: np.ndarray, missing: np.ndarray, filling: Filling, device: Device
) -> Generator[Progress | Outcome[Filled], None, None]:
    """Draws what is hidden, reporting moves; closing the generator ends the chains at their next report.

    Args:
      pixels: uint8 [T, H, W, C], at least as many frames as the model was trained on, of which the first are taken.
      missing: bool [T, H, W]; device: held by the chains.

    Raises:
      ValueError: a clip that is too short, or a condition that the model does not have.
    """
    size = data_size(model.run)
    frames = size[0] if model.videos else 1
    check(len(pixels) >= frames, f"the clip must have {frames} frames or more, got {len(pixels)}")
    pixels = pixels[:frames]
    check(missing.shape == pixels.shape[:3], f"the mask must be {list(pixels.shape[:3])}, got {list(missing.shape)}")
    whole = pixels if model.videos else pixels[0]
    y = in_units(whole[None], 256, model.config.data, whole=True)
    mask = Mask(~(missing if model.videos else missing[0])[..., None])
    cond, options = _condition(model, filling), CHOICES[filling.chains]

    def work(report: Callable[[int], None]) -> Filled:
        found = restore(model.run, y, mask, cond=cond, options=options, seed=filling.seed, progress=report)
        return _filled(model, found, pixels, missing)

    yield from in_background(work, device)


def moves_of(filling: Filling) -> int:
    """About how many moves will be reported."""
    options = CHOICES[filling.chains]
    return options.burn_in + options.draws * options.thin


def _condition(model: OpenedModel, filling: Filling) -> Any:
    if filling.caption:
        check(model.config.reads_captions, "captions need a run that reads captions, got one without")
        return [filling.caption]
    if filling.label in (None, "none") or not model.classes:
        return None
    if filling.label == "any":
        return "any"
    index = class_index(model.config, _as_index(filling.label))
    check(
        isinstance(index, int) and 0 <= index < len(model.classes),
        f"class must be 0 to {len(model.classes) - 1}, got {filling.label!r}",
    )
    return np.full(1, index, np.int32)


def _as_index(label: str | None) -> int | str:
    return int(label) if label is not None and label.isascii() and label.isdecimal() else str(label)


def _filled(model: OpenedModel, found: Restored, pixels: np.ndarray, missing: np.ndarray) -> Filled:
    drawn = found.pixels[0]
    shown = np.where(missing[..., None], np.uint8(127), pixels)
    classes: tuple[tuple[str, float], ...] = ()
    if found.labels is not None:
        counts = np.bincount(found.labels[0], minlength=len(model.classes)) / found.labels.shape[1]
        classes = tuple((model.classes[k], float(counts[k])) for k in np.argsort(-counts, kind="stable") if counts[k])
    draws = found.draws
    return Filled(
        pixels=drawn if model.videos else drawn[:, None],
        original=pixels,
        shown=shown,
        missing=missing,
        classes=classes,
        acceptance=float(draws.acceptance[0, 0]),
        r_hat=_largest(draws.r_hat[0]),
        ess=-_largest(-draws.ess[0]),
    )


def _largest(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else float("nan")
