"""Ablation of the denoisers: PSNR and SSIM of clips whose training noise was removed in different ways."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.choices import Denoise
from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.figures import text_table
from starflow_jax.evaluation.likelihood.image_likelihood import standard_error
from starflow_jax.evaluation.video.psnr_ssim import psnr, ssim
from starflow_jax.flows import learned_denoise, score_denoise
from starflow_jax.flows.parameters import Params, abstract, merge


@dataclasses.dataclass(frozen=True)
class DenoiserQuality:
    """Quality of clips whose training noise was removed by one method.

    Attributes:
      method: "none", "score" or "learned".
      psnr, ssim: means over clips (dB, and 1 at most); psnr_error, ssim_error: their standard errors.
      clips: number of clips.
    """

    method: Denoise
    psnr: float
    psnr_error: float
    ssim: float
    ssim_error: float
    clips: int

    @classmethod
    def from_clips(cls, method: Denoise, denoised: np.ndarray, clean: np.ndarray) -> DenoiserQuality:
        """Compares clips, clipped to [-1, 1], with clean clips."""
        denoised = np.clip(denoised, -1.0, 1.0)
        decibels, similarity = psnr(denoised, clean), ssim(denoised, clean)
        return cls(
            method=method,
            psnr=float(decibels.mean()),
            psnr_error=standard_error(decibels),
            ssim=float(similarity.mean()),
            ssim_error=standard_error(similarity),
            clips=len(denoised),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def denoiser_ablation(
    params: Params,
    config: FlowConfig,
    clean: np.ndarray,
    cond: np.ndarray | None,
    key: jax.Array,
    *,
    noise_std: float,
    batch_size: int = 16,
) -> list[DenoiserQuality]:
    """Adds the training noise to clean clips and removes it: not at all, by the score, by the learned denoiser.

    All methods get the same noise, which depends only on the key and the index of the clip.

    Args:
      params: of a flow of `config`, as `flows.parameters.split` gives them.
      clean: float [n, T, H, W, C] or [n, H, W, C] in [-1, 1].
      cond: condition of the flow, one row for each clip, or None.
      key: of the noise; noise_std: sigma_n that the flow was trained with.
      batch_size: clips at a time, the last batch padded.

    Returns:
      One result for each method; a flow without a learned denoiser has two.

    Raises:
      ValueError: a number out of range, no clips, or a condition for another number of them.
    """
    check_integer("batch_size", batch_size, minimum=1)
    check(noise_std > 0, f"noise_std must be above 0, got {noise_std}")
    check(len(clean) > 0, "clips must contain at least one clip, got none")
    check(cond is None or len(cond) == len(clean), "cond must have one row per clip")
    methods: list[Denoise] = ["none", "score", *(["learned"] if config.denoiser is not None else [])]  # type: ignore[list-item]
    denoised: dict[Denoise, list[np.ndarray]] = {method: [] for method in methods}
    size = min(batch_size, len(clean))
    for first in range(0, len(clean), size):
        rows = np.resize(np.arange(first, min(first + size, len(clean))), size)
        noisy = _with_noise(key, jnp.asarray(clean[rows], jnp.float32), rows, noise_std)
        given = None if cond is None else cond[rows]
        for method in methods:
            denoised[method].append(np.asarray(_denoised(config, method, params, noisy, given, noise_std)))
    return [DenoiserQuality.from_clips(m, np.concatenate(denoised[m])[: len(clean)], clean) for m in methods]


def denoisers_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table, also readable as text, of `DenoiserQuality.to_dict()` values."""
    names = {"none": "no denoiser", "score": "score", "learned": "learned (flow-score matching)"}
    table: list[tuple[str, ...]] = [("denoiser", "PSNR dB", "s.e.", "SSIM", "s.e.", "clips")]
    for row in rows:
        numbers = (
            f"{row['psnr']:.2f}",
            _error(row["psnr_error"], 2),
            f"{row['ssim']:.4f}",
            _error(row["ssim_error"], 4),
        )
        table.append((names[row["method"]], *numbers, str(row["clips"])))
    return text_table(table)


def _error(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


@jax.jit
def _with_noise(key: jax.Array, clean: jax.Array, indices: jax.Array, noise_std: jax.Array | float) -> jax.Array:
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    return clean + noise_std * jax.vmap(lambda k: jax.random.normal(k, clean.shape[1:]))(keys)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _denoised(
    config: FlowConfig,
    method: Denoise,
    params: Params,
    noisy: jax.Array,
    cond: jax.Array | None,
    noise_std: jax.Array | float,
) -> jax.Array:
    flow = merge(abstract(config)[0], params)
    if method == "none":
        return noisy
    return (score_denoise if method == "score" else learned_denoise)(flow, noisy, cond, noise_std)
