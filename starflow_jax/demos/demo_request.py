"""The request of a demo, as one checked value, and the call that carries it out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.demos.digits_demo import RUN_FOLDER, demo_config, run_demo
from starflow_jax.demos.video_demo import run_video_demo

MAX_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class DemoRequest:
    """A request to train on handwritten digits, and to evaluate and sample the result.

    Attributes:
      video: whether to train on clips of moving digits instead of images.
      out: folder of the results; None for "demo", with `video` for "demo_video".
      seed: of the experiment; None for the seed of its file.
      tiny: whether to train a model that takes seconds and learns little.
      progress: whether to show a progress bar.

    Raises:
      ValueError: the seed is out of range.
    """

    video: bool = False
    out: Path | None = None
    seed: int | None = None
    tiny: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if self.seed is not None:
            check_integer("seed", self.seed, minimum=0)
            check(self.seed <= MAX_SEED, f"seed must be at most {MAX_SEED}, got {self.seed}")

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return self.out or Path("demo_video" if self.video else "demo")

    @property
    def workdir(self) -> Path:
        """The folder of the training run."""
        return self.folder / RUN_FOLDER


def run_request(request: DemoRequest) -> dict[str, Any] | None:
    """Runs a demo, or the part of it that an earlier call did not finish.

    Returns:
      The content of report.json; None if training was interrupted, which the same call resumes.

    Raises:
      ValueError: see `digits_demo.demo_config` and `digits_demo.claim`; or a damaged checkpoint.
    """
    config = demo_config("moving_digits" if request.video else "digits", tiny=request.tiny, seed=request.seed)
    run = run_video_demo if request.video else run_demo
    return run(config, request.folder, progress=request.progress)
