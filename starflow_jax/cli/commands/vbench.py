"""`starflow vbench`: samples the videos that VBench scores, with the file names that it expects."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from starflow_jax.cli.errors import sentences
from starflow_jax.cli.options.arguments import aspect, integer, real
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.denoising import add_denoising
from starflow_jax.cli.options.model_config import add_model_config, sampled_as_released
from starflow_jax.cli.options.outputs import check_writable
from starflow_jax.cli.options.parameter_form import add_parameter_form
from starflow_jax.cli.options.solver import add_solver_options, solver_request
from starflow_jax.cli.options.stored import output_file, read_path, work_path
from starflow_jax.cli.options.trained_model import add_checkpoint, add_trained_model
from starflow_jax.cli.remarks import remark
from starflow_jax.cli.sample_warnings import WRITE_NON_FINITE

ORDER = 90
COMPILES = True

DESCRIPTION = """\
Samples the videos of the prompts of VBench (arXiv 2311.17982) under the names that it looks for:
OUT/DIMENSION/PROMPT-INDEX.mp4, five for every prompt and 25 for temporal_flickering, each from different noise.

--prompts is a file DIMENSION.txt with one prompt a line, or a folder of such files, as VBench has them in
prompts/prompts_per_dimension. The folders of the dimensions hold videos alone; OUT/vbench.json records how they were
sampled. Videos that exist are left, so that the same command continues after an interruption; other settings or other
parameters are refused. VBench is not needed for this command; the commands that are printed then run it on each folder.
Some dimensions are scored on the videos of another one."""

EXAMPLES = """\
examples:
  starflow vbench --model models/starflow-v --prompts VBench/prompts/prompts_per_dimension --frames 81 --out vbench
  starflow vbench --workdir runs/moving --prompts overall_consistency.txt --num 5 --out vbench
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "vbench", help="sample and name videos for VBench", description=DESCRIPTION, epilog=EXAMPLES
    )
    add_trained_model(parser, "a trained run on clips")
    option = parser.add_argument
    option("--prompts", required=True, type=read_path, metavar="PATH", help="DIMENSION.txt, or a folder of such files")
    option("--out", required=True, type=work_path, metavar="DIR", help="a new folder, or the folder of an earlier call")
    option(
        "--num",
        type=integer(1, 1000),
        metavar="N",
        help="videos of a prompt (default: 5, or 25 for temporal_flickering)",
    )
    option("--text-encoder", type=read_path, metavar="DIR", help="folder of the text encoder (default: the run's)")
    option("--decoder", type=read_path, metavar="DIR", help="latents: the autoencoder that decodes them")
    option("--frames", type=integer(1, 10**5), metavar="N", help="frames of a video (default: as trained)")
    option("--fps", type=real(above=True), metavar="X", help="frames per second (default: that of the data, or 8)")
    option("--aspect", type=aspect, metavar="W:H", help="another aspect ratio, such as 16:9, of the same area")
    option("--guidance", type=real(), metavar="W", help="weight of guidance (default: the configuration's)")
    option("--temperature", type=real(), metavar="X", help="factor of the noise (default: the configuration's)")
    add_denoising(parser)
    add_solver_options(parser)
    add_parameter_form(parser)
    option("--seed", type=integer(0, 2**32 - 1), default=0, metavar="N", help="seed of the noise (default 0)")
    option(
        "--batch",
        dest="batch_size",
        type=integer(1),
        default=8,
        metavar="N",
        help="videos sampled together (default 8)",
    )
    option("--scale", type=integer(1, 64), default=1, metavar="N", help="enlarge every pixel (default 1)")
    option("--write-non-finite", action="store_true", help=WRITE_NON_FINITE)
    add_checkpoint(parser)
    option("--json", type=output_file, metavar="FILE", help="also write the results as JSON")
    add_model_config(parser, "which must be of this run's flow, for the guidance and solver")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from tqdm import tqdm

    from starflow_jax.core.figures import write_json
    from starflow_jax.sampling.latent_shapes import autoencoder_for
    from starflow_jax.sampling.loaded_run import open_run
    from starflow_jax.sampling.sample_requests import RunRequest, VBenchRequest
    from starflow_jax.sampling.vbench_export import RECORD, plan_export
    from starflow_jax.sampling.video_requests import video_size
    from starflow_jax.sampling.videos.vbench_names import prompt_files, read_prompts, scored_on, wanted_videos
    from starflow_jax.sampling.videos.video_plan import caption_reader, plan_videos
    from starflow_jax.solvers import named_solver
    from starflow_jax.training.inverse.inverse_folder import load_inverse
    from starflow_jax.training.run_calibration import read_calibration

    with sentences(read_prompts, wanted_videos):
        requested = wanted_videos(read_prompts(arguments.prompts), arguments.num)
        for other in prompt_files(arguments.prompts)[1]:
            remark(f"skipped {other}, which is not named after a dimension of VBench")
    request = build_request(VBenchRequest, arguments, solver=solver_request(arguments))
    check_writable("--out", request.out / RECORD)
    run_request = build_request(RunRequest, arguments, ema=not arguments.no_ema)
    with sentences(open_run):
        run = open_run(run_request, adapt=lambda config: sampled_as_released(arguments, config))
    with sentences(
        autoencoder_for, caption_reader, read_calibration, load_inverse, named_solver, plan_videos, video_size
    ):
        export = plan_export(run, request, requested, warn=remark)
        export.claim()
    missing = export.missing
    try:
        with tqdm(total=len(missing), unit="video", disable=None, dynamic_ncols=True) as bar:
            converged = export.draw_missing(bar.update)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("finished videos are stored, and the same command continues with the others") from None
    videos = export.finish()
    print(f"{len(missing)} videos sampled, {len(requested) - len(missing)} existed: {request.out}")
    if not converged:
        print("some chunks did not converge; a lower --tolerance or more --max-iterations make them exact")
    for name, folder in scored_on({video.partition("/")[0] for video in videos}).items():
        print(f"  vbench evaluate --dimension {name} --videos_path {shlex.quote(str(request.out / folder))}")
    if arguments.json is not None:
        counts = {
            name: sum(video.dimension == name for video in requested) for name in {v.dimension for v in requested}
        }
        write_json(
            arguments.json, export.record | {"drawn": len(missing), "videos": counts, "converged": bool(converged)}
        )
        print(f"JSON: {arguments.json}")
    return 0
