"""Samples the videos of VBench's prompts into a folder, and resumes after an interruption.

`OUT/vbench.json` records all settings and checksums that the videos depend on; a call with other settings is an error.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.figures import write_json
from starflow_jax.core.regular_files import parse_json, read_text
from starflow_jax.core.request_errors import RequestError, require
from starflow_jax.core.storage.local_moves import move_over
from starflow_jax.flows.parameters import Params
from starflow_jax.media import write_mp4
from starflow_jax.sampling.denoising import denoise_fields, recorded_denoising
from starflow_jax.sampling.latent_shapes import RunAutoencoder
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sampling.sample_requests import VBenchRequest
from starflow_jax.sampling.solver_choice import choose_solver, solver_figures
from starflow_jax.sampling.video_requests import data_fps, video_size
from starflow_jax.sampling.videos.vbench_names import WantedVideo
from starflow_jax.sampling.videos.video_plan import VideoPlan, caption_reader, plan_videos
from starflow_jax.sampling.videos.video_sampling import draw_plan
from starflow_jax.solvers import AnySolver
from starflow_jax.training.checkpoints.digests import digest, json_digest
from starflow_jax.training.step.frozen_text import FrozenText, prompts

RECORD = "vbench.json"
_FORMAT = "starflow vbench 2"


@dataclasses.dataclass(frozen=True, eq=False)
class VBenchExport:
    """An export with everything resolved that its request leaves open.

    Attributes:
      run: the trained model; request: the request; wanted: the videos.
      reader: the text encoder; autoencoder: of a model of latents, else None; solver: the solver that inverts blocks.
      fps: frames per second.
      options: arguments of `plan_videos` that are recorded: frames, size, guidance, temperature, denoise, aspect.
    """

    run: Run
    request: VBenchRequest
    wanted: tuple[WantedVideo, ...]
    reader: FrozenText
    autoencoder: RunAutoencoder | None
    solver: AnySolver
    fps: float
    options: dict[str, Any]

    def plan(self, videos: Sequence[WantedVideo]) -> VideoPlan:
        """The plan of some of the videos.

        Raises:
          ValueError: see `plan_videos`.
        """
        return plan_videos(
            self.run.config,
            [video.prompt for video in videos],
            solver=self.solver,
            learned=self.run.learned_for(self.solver),
            batch_size=self.request.batch_size,
            places=[video.place for video in videos],
            reader=self.reader,
            autoencoder=self.autoencoder,
            fps=self.request.fps,
            # Not among the options, which are recorded: the videos are the same.
            parameters=self.request.parameters,
            **self.options,
        )

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """Everything that the videos depend on, as JSON values."""
        request, config, options = self.request, self.run.config, self.options
        window = self.plan(self.wanted[:1]).kind.window
        learned = self.run.learned_for(self.solver)
        [prompt] = prompts(config, ["PROMPT"], size=options["size"], aspect=request.aspect, fps=request.fps)
        settings = options | {
            "format": _FORMAT,
            "step": self.run.step,
            "ema": self.run.ema,
            "seed": request.seed,
            "fps": self.fps,
            "scale": request.scale,
            "solver": solver_figures(self.solver),
            "window": None if window is None else dataclasses.asdict(window),
            "prompts_read": prompt,
            **model_identity(config, self.run.params, self.reader, self.autoencoder),
            **({} if learned is None else {"learned_inverse": digest(learned.params)}),
        }
        return json.loads(json.dumps(settings))

    @property
    def missing(self) -> list[WantedVideo]:
        """The videos that are not in the folder yet."""
        return [video for video in self.wanted if not (self.request.out / video.file).exists()]

    @property
    def _located_record(self) -> dict[str, Any]:
        """The record with the folder of the run, which is not compared."""
        return self.record | {"workdir": str(self.run.workdir)}

    def claim(self) -> None:
        """Writes the record into a new folder, or compares it with that of an earlier call.

        Raises:
          RequestError: the folder holds other files, or videos with other settings.
        """
        out, path = self.request.out, self.request.out / RECORD
        if not path.is_file():
            is_occupied = out.is_dir() and any(out.iterdir())
            require(
                not is_occupied,
                "{out} must be a new folder or one of starflow vbench, got {0}, which contains other files",
                out,
            )
            write_json(path, self._located_record | {"videos": {}})
            return
        old = _read(path)
        changed = [name for name, value in self.record.items() if old.get(name) != value]
        if not changed:
            return
        template = "{out} {0} contains videos that were sampled differently: {1} was {2!r}, now {3!r}"
        name = changed[0]
        require(not any(out.glob("*/*.mp4")), template, out, name, old.get(name), self.record[name])
        write_json(path, self._located_record | {"videos": {}})

    def draw_missing(self, progress: Callable[[int], None]) -> bool:
        """Samples and writes the missing videos, batch by batch; returns whether every inversion converged.

        Args:
          progress: called with the number of videos whenever some are written.

        Raises:
          RequestError: videos that are not finite, unless the request writes them; earlier ones are kept.
        """
        out, size, missing, converged = self.request.out, self.request.batch_size, self.missing, True
        key = jax.random.key(self.request.seed)
        with tempfile.TemporaryDirectory(dir=out, prefix=".drawing-") as folder:
            for first in range(0, len(missing), size):
                batch = missing[first : first + size]
                # The last batch is padded with copies, so that one program serves all.
                plan = self.plan([batch[row % len(batch)] for row in range(size)])
                samples = draw_plan(self.run.params, key, plan)
                converged = converged and bool(samples.report.converged)
                self._check_finite(samples.denoised[: len(batch)])
                for video, pixels in zip(batch, samples.videos, strict=False):
                    # A temporary name derived from the name of the video may be too long.
                    temporary = Path(folder) / "video.mp4"
                    write_mp4(temporary, pixels, fps=self.fps, scale=self.request.scale)
                    target = out / video.file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    move_over(temporary, target)
                progress(len(batch))
        return converged

    def _check_finite(self, videos: np.ndarray) -> None:
        """Raises RequestError for videos that are not finite, unless the request writes them."""
        bad = int(np.count_nonzero(~np.isfinite(videos).all(axis=(1, 2, 3, 4))))
        require(
            bad == 0 or self.request.write_non_finite,
            "{0} of {1} videos contain values that are not finite and are not written; lower {temperature} or "
            "{guidance}, or give {write_non_finite} to see these values as black or white",
            bad,
            len(videos),
        )

    def finish(self) -> dict[str, Any]:
        """Writes the record with all videos of the folder; returns these, with the integers of their noise."""
        path = self.request.out / RECORD
        videos = dict(_read(path).get("videos", {})) | {video.file: video.place for video in self.wanted}
        write_json(path, self._located_record | {"videos": videos})
        return videos


def plan_export(
    run: Run, request: VBenchRequest, videos: Sequence[WantedVideo], *, warn: Callable[[str], None]
) -> VBenchExport:
    """Resolves a request for the videos of VBench.

    Args:
      run: a model of videos.
      request: the request.
      videos: the videos, see `videos.vbench_names.wanted_videos`.
      warn: called with a message about an old calibration.

    Raises:
      RequestError, ValueError: the request does not fit the model, or the model cannot read a prompt: VBench counts
        a missing video against a model.
    """
    config = run.config
    require(config.data.frames > 0, "{workdir} must be a run on clips, got one on still images")
    autoencoder, reader = run.autoencoder, caption_reader(config)
    for prompt in dict.fromkeys(video.prompt for video in videos):
        _check_readable(prompt, reader)
    frames = request.frames or config.data.frames
    if request.frames is not None and autoencoder is not None:
        frames = autoencoder.latent_frames(request.frames)
    solver, default = choose_solver(request.solver, run, batch=request.batch_size, warn=warn), config.sample
    # The record holds the values that are used, those of the configuration included.
    options = {
        "frames": frames,
        "size": video_size(config, request.aspect),
        "guidance": default.guidance if request.guidance is None else request.guidance,
        "temperature": default.temperature if request.temperature is None else request.temperature,
        **recorded_denoising(config, denoise_fields(request)),
        "aspect": request.aspect,
    }
    fps = request.fps or data_fps(config)
    return VBenchExport(run, request, tuple(videos), reader, autoencoder, solver, fps, options)


def model_identity(
    config: ExperimentConfig, params: Params, reader: FrozenText, autoencoder: RunAutoencoder | None
) -> dict[str, str | None]:
    """Checksums of the flow, the text encoder and the decoder: of parameters, and of their configuration."""

    def named(path: str | None, weights: Any) -> str:
        return f"{Path(path or '').name} {digest(weights)}"

    data = config.data
    words = None if config.text is None else list(config.text.vocabulary)
    return {
        "parameters": digest(params),
        "flow": json_digest(config.flow.identity() | {"noise_std": data.noise_std}),
        "text_encoder": named(data.text_encoder, reader.params) if words is None else f"words {json_digest(words)}",
        "decoder": None if autoencoder is None else named(data.decoder or data.autoencoder, autoencoder.params),
    }


def _check_readable(prompt: str, reader: FrozenText) -> None:
    try:
        reader.encoder.ids([prompt])
    except ValueError as error:
        raise RequestError("{0}", " ".join(str(error).split()).removesuffix(".")) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        record = parse_json(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError("{0} cannot be read; delete the folder to start again", path) from error
    valid = isinstance(record, dict) and isinstance(record.get("videos", {}), dict)
    require(valid, "{0} is not a record of starflow vbench; delete the folder to start again", path)
    return record
