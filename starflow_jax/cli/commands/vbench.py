"""`starflow vbench`: the videos that VBench scores, drawn and named as it finds them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import choice, integer, real
from starflow_jax.cli.options.captions import with_text_encoder
from starflow_jax.cli.options.model_config import add_model_config, sampled_as_released
from starflow_jax.cli.options.outputs import check_writable
from starflow_jax.cli.options.solver import add_solver_options, chosen_solver, solver_figures
from starflow_jax.cli.remarks import remark
from starflow_jax.core.choices import Denoise, choices

if TYPE_CHECKING:
    from starflow_jax.core.config.experiment import ExperimentConfig
    from starflow_jax.sampling.latent_shapes import RunAutoencoder
    from starflow_jax.sampling.videos.draw import Videos
    from starflow_jax.sampling.videos.vbench import WantedVideo
    from starflow_jax.sampling.videos.video_plan import VideoPlan
    from starflow_jax.training.step.frozen_text import FrozenText

RECORD = "vbench.json"

ORDER = 90

DESCRIPTION = """\
Draws the videos of VBench's prompts (arXiv 2311.17982) and names them as it finds them:
OUT/DIMENSION/PROMPT-INDEX.mp4, five of every prompt and 25 for temporal_flickering, each from noise of its own.

--prompts is a file DIMENSION.txt with a prompt a line, or a folder of such files, as VBench keeps them in
prompts/prompts_per_dimension. Folders of dimensions hold videos alone; OUT/vbench.json says how they were drawn. Videos
that are there already are left, so that the same command goes on where it was stopped; other settings or other
parameters are refused. VBench itself is not needed here; it is then run on each folder by the commands that are
printed, of which some dimensions are scored on the videos of another."""

EXAMPLES = """\
examples:
  starflow vbench --model models/starflow-v --prompts VBench/prompts/prompts_per_dimension --frames 81 --out vbench
  starflow vbench --workdir runs/moving --prompts overall_consistency.txt --num 5 --out vbench
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "vbench", help="draw and name videos for VBench", description=DESCRIPTION, epilog=EXAMPLES
    )
    option = parser.add_argument
    option("--workdir", type=Path, metavar="DIR", help="folder of a trained run on clips")
    option("--model", type=Path, metavar="DIR", help="instead of --workdir: a folder of starflow port --assemble")
    option("--prompts", required=True, type=Path, metavar="PATH", help="DIMENSION.txt, or a folder of such files")
    option("--out", required=True, type=Path, metavar="DIR", help="a new folder, or that of an earlier call")
    option("--num", type=integer(1, 1000), metavar="N", help="videos of a prompt (default: 5, of flickering 25)")
    option("--text-encoder", type=Path, metavar="DIR", help="folder of the text encoder (default: the run's)")
    option("--decoder", type=Path, metavar="DIR", help="latents: the autoencoder that makes videos of them")
    option("--frames", type=integer(1, 10**5), metavar="N", help="frames of a video (default: as trained)")
    option("--fps", type=real(above=True), metavar="X", help="frames per second (default: that of the data, or 8)")
    option("--aspect", metavar="W:H", help="another aspect ratio, such as 16:9, of the same area")
    option("--guidance", type=real(), metavar="W", help="weight of guidance (default: the configuration's)")
    option("--temperature", type=real(), metavar="X", help="factor of the noise (default: the configuration's)")
    option("--denoise", type=choice(*choices(Denoise)), metavar="NAME", help="none, score or learned")
    add_solver_options(parser)
    option("--seed", type=integer(0, 2**32 - 1), default=0, metavar="N", help="of the noise (default 0)")
    option("--batch", type=integer(1), default=8, metavar="N", help="videos at a time (default 8)")
    option("--scale", type=integer(1, 64), default=1, metavar="N", help="enlarge every pixel (default 1)")
    option("--no-ema", action="store_true", help="use the last parameters, not their running mean")
    option("--step", type=integer(0), metavar="N", help="which checkpoint (default: the newest)")
    option("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    add_model_config(parser, "which must be of this run's flow, for the guidance and solver")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.cli.commands.sample import open_model
    from starflow_jax.sampling.videos.vbench import prompt_files, read_prompts, scored_on, wanted_videos

    with sentences(read_prompts, wanted_videos):
        wanted = wanted_videos(read_prompts(arguments.prompts), arguments.num)
        for other in prompt_files(arguments.prompts)[1]:
            remark(f"left out {other}, which is not called after a dimension of VBench")
    if arguments.fps is not None and not 0.01 <= arguments.fps <= 240:
        raise CommandError(f"--fps must be from 0.01 to 240, got {arguments.fps:g}")
    if arguments.json is not None:
        check_writable("--json", arguments.json)
    check_writable("--out", arguments.out / RECORD)
    open_model(arguments)

    import jax

    from starflow_jax.cli.sample_videos import DEFAULT_FPS, size_of
    from starflow_jax.core.figures import write_json
    from starflow_jax.sampling.latent_shapes import autoencoder_of
    from starflow_jax.sampling.videos.draw import draw_plan
    from starflow_jax.sampling.videos.video_plan import caption_reader, plan_videos
    from starflow_jax.training import load_run
    from starflow_jax.training.step.frozen_autoencoder import decoded_by
    from starflow_jax.training.step.frozen_text import prompts

    with sentences(load_run, decoded_by):
        config, _, params, step = load_run(arguments.workdir, ema=not arguments.no_ema, step=arguments.step)
        config = sampled_as_released(arguments, config)
        if arguments.decoder is not None:
            config = decoded_by(config, arguments.decoder)
    config = with_text_encoder(config, arguments.text_encoder)
    if not config.data.frames:
        raise CommandError("--workdir must be a run on clips, got one on still images")
    with sentences(autoencoder_of, caption_reader):
        autoencoder, reader = autoencoder_of(config.data), caption_reader(config)
    _check_readable([video.prompt for video in wanted], reader)
    frames = arguments.frames or config.data.frames
    if arguments.frames is not None and autoencoder is not None:
        frames = autoencoder.latent_frames(arguments.frames)
    rates = [part.fps for part in (config.data, *config.data.mixture) if part.fps]
    fps = arguments.fps or (rates[0] if rates else DEFAULT_FPS)
    solver = chosen_solver(arguments, config, step=step, batch=arguments.batch)
    said, default = arguments, config.sample
    # What the configuration decides is resolved here, so that the record holds what is drawn, not what was typed.
    options: dict[str, Any] = {
        "frames": frames,
        "size": size_of(arguments, config),
        "guidance": default.guidance if said.guidance is None else said.guidance,
        "temperature": default.temperature if said.temperature is None else said.temperature,
        "denoise": default.denoise if said.denoise is None else said.denoise,
        "aspect": arguments.aspect,
    }

    def plan_of(videos: Sequence[WantedVideo]) -> VideoPlan:
        with sentences(plan_videos):
            return plan_videos(
                config,
                [video.prompt for video in videos],
                solver=solver,
                batch_size=arguments.batch,
                places=[video.place for video in videos],
                reader=reader,
                fps=arguments.fps,
                **options,
            )

    window = plan_of(wanted[:1]).kind.window  # and refuses what cannot be drawn before the folder is claimed
    settings = options | {
        "format": "starflow vbench 2",
        "step": step,
        "ema": not arguments.no_ema,
        "seed": arguments.seed,
        "fps": fps,
        "scale": arguments.scale,
        "solver": solver_figures(solver),
        "window": None if window is None else dataclasses.asdict(window),
        "prompts_read": prompts(config, ["PROMPT"], size=options["size"], aspect=arguments.aspect, fps=arguments.fps)[
            0
        ],
        **model_identity(config, params, reader, autoencoder),
    }
    record = json.loads(json.dumps(settings))
    _claim(arguments.out, record, {"workdir": str(arguments.workdir)})
    missing = [video for video in wanted if not (arguments.out / video.file).exists()]

    def drawn_batch(batch: Sequence[WantedVideo]) -> Videos:
        # The last batch is filled up, so that one program serves all.
        rows = [batch[place % len(batch)] for place in range(arguments.batch)]
        return draw_plan(params, jax.random.key(arguments.seed), plan_of(rows))

    try:
        converged = _draw(arguments, missing, drawn_batch, fps)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("videos that were drawn are kept, and the same command goes on") from None
    noise = {video.file: video.place for video in wanted}
    videos = _known(arguments.out) | noise
    write_json(arguments.out / RECORD, record | {"workdir": str(arguments.workdir), "videos": videos})
    counts = {name: sum(video.dimension == name for video in wanted) for name in {v.dimension for v in wanted}}
    print(f"{len(missing)} videos drawn, {len(wanted) - len(missing)} were there: {arguments.out}")
    if not converged:
        print("some chunks did not converge; a lower --tolerance or more --max-iterations make them exact")
    for name, folder in scored_on({video.partition("/")[0] for video in videos}).items():
        print(f"  vbench evaluate --dimension {name} --videos_path {shlex.quote(str(arguments.out / folder))}")
    if arguments.json is not None:
        write_json(arguments.json, record | {"drawn": len(missing), "videos": counts, "converged": bool(converged)})
        print(f"figures: {arguments.json}")
    return 0


def _draw(
    arguments: argparse.Namespace,
    missing: Sequence[WantedVideo],
    drawn_batch: Callable[[Sequence[WantedVideo]], Videos],
    fps: float,
) -> bool:
    """Draws and writes what is missing, batch by batch; whether every solve converged."""
    from tqdm import tqdm

    from starflow_jax.media import write_mp4

    converged = True
    with (
        tempfile.TemporaryDirectory(dir=arguments.out, prefix=".drawing-") as folder,
        tqdm(total=len(missing), unit="video", disable=None, dynamic_ncols=True) as bar,
    ):
        for first in range(0, len(missing), arguments.batch):
            batch = missing[first : first + arguments.batch]
            drawn = drawn_batch(batch)
            converged = converged and bool(drawn.report.converged)
            for video, pixels in zip(batch, drawn.videos, strict=False):
                # Under a short name first: the video's own may leave no room for a temporary one's.
                temporary = Path(folder) / "video.mp4"
                write_mp4(temporary, pixels, fps=fps, scale=arguments.scale)
                target = arguments.out / video.file
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary, target)
            bar.update(len(batch))
    return converged


def _check_readable(prompts: Sequence[str], reader: Any) -> None:
    """Raises CommandError for the first prompt that the run cannot read: VBench counts a missing video against it."""
    for prompt in dict.fromkeys(prompts):
        with sentences():
            reader.encoder.ids([prompt])


def model_identity(
    config: ExperimentConfig, params: Any, reader: FrozenText, autoencoder: RunAutoencoder | None
) -> dict[str, str | None]:
    """What draws, reads and decodes, by checksums: of parameters, and of what the configuration makes of them."""
    from starflow_jax.training.checkpoints.digests import digest, json_digest

    def named(path: str | None, weights: Any) -> str:
        return f"{Path(path or '').name} {digest(weights)}"

    data = config.data
    words = None if config.text is None else list(config.text.vocabulary)
    return {
        "parameters": digest(params),
        "flow": json_digest(dataclasses.asdict(config.flow) | {"noise_std": data.noise_std}),
        "text_encoder": named(data.text_encoder, reader.params) if words is None else f"words {json_digest(words)}",
        "decoder": None if autoencoder is None else named(data.decoder or data.autoencoder, autoencoder.params),
    }


def _claim(out: Path, record: dict[str, Any], told: dict[str, Any]) -> None:
    """Writes how the videos are drawn, or sees that those of an earlier call were drawn alike.

    Args:
      record: what videos depend on; told: what is written beside it and not compared.

    Raises:
      CommandError: a folder that holds something else, or videos that were drawn in another way.
    """
    from starflow_jax.core.figures import write_json

    path = out / RECORD
    if not path.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise CommandError(
                f"--out must be a new folder or one of starflow vbench, got {out}, which holds other files"
            )
        write_json(path, record | told | {"videos": {}})
        return
    old = _read(path)
    for name, value in record.items():
        if old.get(name) == value:
            continue
        if not any(out.glob("*/*.mp4")):  # nothing was drawn yet
            write_json(path, record | told | {"videos": {}})
            return
        raise CommandError(
            f"--out {out} holds videos that were drawn in another way: {name} was {old.get(name)!r}, now {value!r}"
        )


def _known(out: Path) -> dict[str, Any]:
    return dict(_read(out / RECORD).get("videos", {}))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CommandError(f"{path} cannot be read; delete the folder to begin anew") from error
    if not isinstance(found, dict) or not isinstance(found.get("videos", {}), dict):
        raise CommandError(f"{path} is no record of starflow vbench; delete the folder to begin anew")
    return found
