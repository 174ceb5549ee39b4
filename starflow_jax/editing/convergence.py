"""Whether chains have converged, and how many independent draws theirs are worth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

# Numbers of draws that are computed with at once: Fourier transforms take about 64 bytes for each.
_TOGETHER = 2**22


def split_r_hat(draws: Float[np.ndarray, "C S *rest"]) -> Float[np.ndarray, "*rest"]:
    """Split R-hat of C chains of S draws each: near 1 where the chains agree (Gelman et al., Bayesian Data Analysis).

    Both halves of every chain count as chains; the square root of the ratio of the variance of all draws to that inside
    of chains. NaN for fewer than 4 draws; 1 where nothing moves at all.
    """
    return _of_slices(_split_r_hat, draws)


def _split_r_hat(draws: Float[np.ndarray, "C S n"]) -> Float[np.ndarray, "n"]:
    half = draws.shape[1] // 2
    halves = np.concatenate([draws[:, :half], draws[:, -half:]])
    within = halves.var(axis=1, ddof=1).mean(axis=0)
    between = halves.mean(axis=1).var(axis=0, ddof=1)
    total = (half - 1) / half * within + between
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.sqrt(total / within)
    found: np.ndarray = np.where(total == 0.0, 1.0, ratio)
    return found


def effective_sample_size(draws: Float[np.ndarray, "C S *rest"]) -> Float[np.ndarray, "*rest"]:
    """The effective number of draws of C chains of S draws each.

    It is that of Stan and ArviZ (Vehtari, Gelman, Simpson, Carpenter and Buerkner 2021, section 3.2, without ranks):
    autocorrelations of all halves of chains together, summed up to the end of Geyer's initial monotone sequence. At
    most C S log10(C S). NaN for fewer than 4 draws, and where nothing moves.
    """
    return _of_slices(_effective_sample_size, draws)


def _of_slices(
    function: Callable[..., np.ndarray], draws: Float[np.ndarray, "C S *rest"]
) -> Float[np.ndarray, "*rest"]:
    """A function of draws in float64, of some values at a time; NaN for fewer than 4 draws."""
    chains, count, *rest = draws.shape
    if count < 4:
        return np.full(rest, np.nan)
    flat = np.asarray(draws).reshape(chains, count, -1)
    width = max(1, _TOGETHER // (chains * count))
    parts = [function(flat[:, :, at : at + width].astype(np.float64)) for at in range(0, flat.shape[2], width)]
    return np.concatenate(parts).reshape(rest)


def _effective_sample_size(draws: Float[np.ndarray, "C S n"]) -> Float[np.ndarray, "n"]:
    half = draws.shape[1] // 2
    halves = np.concatenate([draws[:, :half], draws[:, -half:]])
    count = halves.shape[1]
    covariance = _autocovariance(halves).mean(axis=0)
    total = covariance[0] + halves.mean(axis=1).var(axis=0, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = 1.0 - (covariance[0] * count / (count - 1) - covariance) / total
    correlation[0] = 1.0
    pairs = correlation[: count - count % 2].reshape(-1, 2, *draws.shape[2:]).sum(axis=1)
    initial = np.logical_and.accumulate(pairs > 0.0)
    time = -1.0 + 2.0 * np.where(initial, np.minimum.accumulate(pairs), 0.0).sum(axis=0)
    size = halves.shape[0] * count
    found: np.ndarray = np.where(total > 0.0, size / np.maximum(time, 1.0 / np.log10(size)), np.nan)
    return found


def _autocovariance(draws: Float[np.ndarray, "C S *rest"]) -> Float[np.ndarray, "C S *rest"]:
    """Autocovariances of every chain by lag, divided by the number of draws."""
    count = draws.shape[1]
    centred = draws - draws.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(centred, 2 * count, axis=1)
    found: np.ndarray = np.fft.irfft(np.abs(spectrum) ** 2, 2 * count, axis=1)[:, :count] / count
    return found
