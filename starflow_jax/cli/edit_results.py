"""The output of `starflow edit`: files, printed lines and figures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from starflow_jax.cli.errors import CommandError

if TYPE_CHECKING:
    from starflow_jax.editing.operators import Operator
    from starflow_jax.editing.restoration import Restored
    from starflow_jax.sampling.loaded_run import Run

_SHOWN = 16  # chains in a picture
_GREY = 96  # of missing pixels


def write_restored(
    arguments: argparse.Namespace,
    model: Run,
    restored: Restored,
    y: np.ndarray,
    operator: Operator,
    truth: np.ndarray | None,
    seconds: float,
) -> None:
    """Writes what was restored: in pictures the measurement, the mean and the chains of an input are one row.

    Args:
      y: the measurements; truth: float32 [M, *size], whole inputs, None where there are none.
      seconds: that the command took.
    """
    from starflow_jax.core.figures import write_json

    _check_finite(restored.clean)
    draws = restored.draws
    rows = _with_measurement(model, restored, y, operator)
    arrays: dict[str, Any] = {
        "video" if restored.pixels.ndim == 6 else "image": restored.pixels,
        "x": restored.clean,
        "mean": draws.mean,
        "log_posterior": draws.log_posterior,
    }
    _write(arguments, model, rows, restored.pixels, arrays)
    figures = restored_figures(restored)
    if truth is not None and truth.shape[1:] == restored.clean.shape[2:]:
        figures["rms_error_of_draws"] = float(np.sqrt(np.mean((restored.clean - truth[:, None]) ** 2)))
    count, chains = restored.pixels.shape[:2]
    ess = figures["effective_sample_size"]
    print(
        f"{count} inputs, {chains} chains each, {draws.moves} moves after a burn-in of {draws.burn_in} "
        f"in {seconds:.1f} s; acceptance {_shown(figures['acceptance'])}, step {_shown(figures['step_size'])}"
    )
    print(
        f"effective sample size of {figures['draws']} draws: values {ess['median']:.1f} (median), log posterior "
        f"{figures['log_posterior_effective_sample_size']:.1f}; split R-hat {figures['r_hat']['median']:.2f} (median)"
    )
    print(f"written: {arguments.out}")
    if arguments.json is not None:
        record = {"workdir": str(model.workdir), "step": model.step, "out": str(arguments.out)}
        record |= {"operation": arguments.operation, "seed": arguments.seed or 0, "seconds": seconds}
        write_json(arguments.json, {**record, **figures})
        print(f"JSON: {arguments.json}")


def restored_figures(restored: Restored) -> dict[str, Any]:
    """The figures of the chains; of posteriors together, medians and extremes over values that move."""
    draws = restored.draws
    ess, r_hat = draws.ess[np.isfinite(draws.ess)], draws.r_hat[np.isfinite(draws.ess)]
    count, chains, kept = draws.log_posterior.shape
    used = ~np.isnan(draws.acceptance).all(axis=0)
    return {
        "inputs": count,
        "chains": chains,
        "draws": chains * kept,
        "moves": draws.moves,
        "burn_in": draws.burn_in,
        "sigma": restored.sigma,
        "acceptance": [float(value) for value in draws.acceptance[:, used].mean(axis=0)],
        "step_size": [float(value) for value in np.median(draws.steps[:, used], axis=0)],
        "effective_sample_size": _spread(ess),
        "log_posterior_effective_sample_size": float(np.median(draws.log_posterior_ess)),
        "r_hat": _spread(r_hat),
        "log_posterior": [float(value) for value in draws.log_posterior.mean(axis=(1, 2))],
        "root_mean_square_residual": float(np.sqrt(draws.error.mean())),
    }


def write_between(arguments: argparse.Namespace, model: Run, x: np.ndarray, seconds: float) -> None:
    """Writes float32 [n, k, *size], n rows of k images or clips."""
    from starflow_jax.core.figures import write_json
    from starflow_jax.sampling.image_sampling import to_pixels

    _check_finite(x)
    pixels = to_pixels(x.reshape(-1, *x.shape[2:]), model.config.data, None).reshape(x.shape)
    name = "video" if x.ndim == 6 else "image"
    _write(arguments, model, pixels, pixels, {name: pixels, "x": x})
    print(f"{len(x)} rows of {x.shape[1]} in {seconds:.1f} s; written: {arguments.out}")
    if arguments.json is not None:
        record = {"workdir": str(model.workdir), "step": model.step, "out": str(arguments.out), "rows": len(x)}
        write_json(arguments.json, {**record, "operation": arguments.operation, "seconds": seconds})
        print(f"JSON: {arguments.json}")


def _check_finite(x: np.ndarray) -> None:
    bad = int(np.count_nonzero(~np.isfinite(x)))
    if bad:
        raise CommandError(f"{bad} values of the results are not finite, so nothing is written")


def _with_measurement(model: Run, restored: Restored, y: np.ndarray, operator: Operator) -> np.ndarray:
    """Rows of a picture: the measurement where it is a picture, the mean of the chains, and some of them."""
    from starflow_jax.editing.operators import Mask
    from starflow_jax.sampling.image_sampling import to_pixels

    pixels = restored.pixels
    size = pixels.shape[2:]
    parts = [pixels.astype(np.float64).mean(axis=1, keepdims=True).round().astype(np.uint8), pixels[:, :_SHOWN]]
    if y.ndim == pixels.ndim - 1 and y.shape[-1] in (1, size[-1]):
        shown = np.rint((np.clip(y, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
        if isinstance(operator, Mask):
            if not model.config.data.on_latents:
                shown = to_pixels(y, model.config.data, None)
            shown = np.where(np.broadcast_to(operator.visible, size), shown, _GREY).astype(np.uint8)
        factor = size[-2] // shown.shape[-2]
        shown = shown.repeat(factor, axis=-3).repeat(factor, axis=-2)
        if shown.shape[-3:-1] == size[-3:-1]:
            parts.insert(0, np.broadcast_to(shown, (len(y), *size))[:, None])
    return np.concatenate(parts, axis=1)


def _write(
    arguments: argparse.Namespace, model: Run, rows: np.ndarray, pixels: np.ndarray, arrays: dict[str, Any]
) -> None:
    """Writes the results: `rows` [n, k, (T,) H, W, C] in one picture or video, `pixels` as files of a folder."""
    from starflow_jax.core.atomic_writing import replacing, replacing_folder
    from starflow_jax.evaluation.samples.sample_grids import enlargement
    from starflow_jax.media import image_grid, video_strip, write_png, write_video

    out: Path = arguments.out
    clips = rows.ndim == 6
    scale = arguments.scale or enlargement(*rows.shape[-3:-1])
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npz":
        with replacing(out) as temporary:
            np.savez_compressed(temporary, **arrays)
    elif out.suffix == ".png":
        flat = rows.reshape(-1, *rows.shape[2:])
        write_png(out, video_strip(flat) if clips else image_grid(flat, rows.shape[1]), scale=scale)
    elif out.suffix:
        steps = range(rows.shape[2])
        frames = np.stack([image_grid(rows[:, :, t].reshape(-1, *rows.shape[3:]), rows.shape[1]) for t in steps])
        write_video(out, frames, fps=_fps(model), scale=scale)
    else:
        with replacing_folder(out) as folder:
            for index, results in enumerate(pixels):
                for chain, result in enumerate(results):
                    name = f"{index:0{len(str(len(pixels) - 1))}d}-{chain:0{len(str(len(results) - 1))}d}"
                    if clips:
                        write_video(folder / f"{name}.gif", result, fps=_fps(model), scale=scale)
                    else:
                        write_png(folder / f"{name}.png", result, scale=scale)


def _fps(model: Run) -> float:
    from starflow_jax.sampling.video_requests import data_fps

    return data_fps(model.config)


def _spread(values: np.ndarray) -> dict[str, float]:
    if not values.size:
        return {"median": float("nan"), "smallest": float("nan"), "largest": float("nan")}
    return {"median": float(np.median(values)), "smallest": float(values.min()), "largest": float(values.max())}


def _shown(values: list[float]) -> str:
    return " and ".join(f"{value:.3g}" for value in values)
