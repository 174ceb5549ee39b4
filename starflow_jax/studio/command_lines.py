"""The command lines that repeat what a page has done, quoted for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

import numpy as np

from starflow_jax.editing.posterior_sampling import ChainOptions
from starflow_jax.sampling.sample_requests import SampleRequest, SolverRequest
from starflow_jax.studio.opened_model import OpenedModel

MASK_FILE, EXAMPLE_FILE = "mask.npy", "example.npy"  # that the page offers to save
# The fields of a request and their options, in the order in which they are shown.
_OPTIONS = {
    "num": "--num",
    "label": "--class",
    "image": "--image",
    "continued": "--continue",
    "video": "--video",
    "frames": "--frames",
    "guidance": "--guidance",
    "temperature": "--temperature",
}


def sample_command(
    model: OpenedModel, request: SampleRequest, files: Mapping[str, str] | None = None, *, step: int | None = None
) -> str:
    """`starflow sample` with the samples of a request.

    Args:
      files: the names of the given files, by field, in place of the paths of their uploads.
      step: of another checkpoint; None for that of the model.
    """
    words = ["starflow", "sample", *(model.arguments if step is None else model.arguments_at(step))]
    for field, option in _OPTIONS.items():
        value = (files or {}).get(field, getattr(request, field))
        if value is not None:
            words += [option, f"{value:g}" if isinstance(value, float) else str(value)]
    # As one word, since a caption may begin with a dash.
    words += [f"--caption={caption}" for caption in request.captions or ()]
    solver = request.solver.name if isinstance(request.solver, SolverRequest) else request.solver
    if isinstance(solver, str):
        words += ["--solver", solver]
    words += ["--seed", str(request.seed)]
    if request.stream:
        words.append("--stream")
    return shlex.join([*words, "--out", "drawn.gif" if model.videos else "drawn.png"])


def inpaint_command(
    model: OpenedModel,
    file: str,
    mask: str,
    options: ChainOptions,
    *,
    label: str | None,
    caption: str | None,
    seed: int,
) -> str:
    """`starflow edit inpaint` with the same chains; `mask`: what is missing, as `mask_name` says it."""
    words = ["starflow", "edit", "inpaint", file, *model.arguments, "--mask", mask]
    if label is not None:
        words += ["--class", label]
    if caption:
        words.append(f"--caption={caption}")
    words += ["--chains", str(options.chains), "--candidates", str(options.candidates)]
    words += ["--steps", str(options.draws * options.thin), "--burn-in", str(options.burn_in)]
    return shlex.join([*words, "--seed", str(seed), "--out", "filled.gif" if model.videos else "filled.png"])


def mask_name(missing: np.ndarray) -> str:
    """The value of `--mask` for what is missing, bool [T, H, W]: whole frames by their numbers, else `MASK_FILE`."""
    whole = missing.all(axis=(1, 2))
    if len(missing) > 1 and np.array_equal(missing.any(axis=(1, 2)), whole):
        frames = np.flatnonzero(whole)
        if len(frames) == frames[-1] - frames[0] + 1:
            return f"frames:{frames[0]}-{frames[-1]}"
    return MASK_FILE


def score_command(model: OpenedModel, file: str, caption: str, *, draws: int, seed: int) -> str | None:
    """`starflow score` of a dropped clip under one caption; None for what that command does not read."""
    if not (model.videos and model.arguments[0] == "--workdir"):
        return None
    words = ["starflow", "score", *model.arguments, "--video", file]
    if caption:
        words.append(f"--caption={caption}")
    return shlex.join([*words, "--draws", str(draws), "--seed", str(seed), "--out", "scores"])
