"""`starflow evaluate`: held-out bits/dim and Bayes-rule accuracy of a trained run, or the quality of its samples."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import choice, integer
from starflow_jax.cli.options.devices import add_mesh, add_processes, join, layout_of_command
from starflow_jax.cli.options.outputs import check_writable
from starflow_jax.cli.options.sample_quality import add_quality_options, check_quality_options
from starflow_jax.cli.options.scored_data import check_on_pixels, scored_source
from starflow_jax.cli.process_group import is_first
from starflow_jax.cli.sample_quality import measure_quality
from starflow_jax.core.choices import Split, choices

ORDER = 40

DESCRIPTION = """\
Scores a trained run on held-out images; with --metrics, the pictures it draws.

bits/dim: of the integer pixels under uniform dequantisation, averaged over images and draws of the noise; an
upper bound of the exact code length. Two standard errors: over images (how far another test set may be) and
over draws (how far more draws may move it).
accuracy: argmax over classes y of p(x | y), averaged over the draws of an image.

With --metrics the command draws --num-samples pictures for each --guidance, in chunks that it can be stopped and killed
between (the same command goes on), looks at them with a feature network, and compares them with real pictures.
Figures, a plot and a CSV file lie in --out. FID depends on the number of pictures: compare equal numbers only."""

EXAMPLES = """\
examples:
  starflow evaluate --workdir runs/digits
  starflow evaluate --workdir runs/digits --draws 16 --json digits.json
  starflow evaluate --workdir runs/digits --metrics fid,kid,pr,bpd --num-samples 2000 --guidance 0,1,2,3
  starflow evaluate --workdir runs/imagenet --metrics fid,is --features pt_inception-2015-12-05-6726825d.pth
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "evaluate", help="bits/dim, accuracy, FID and its kin of a run", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="folder of a trained run")
    parser.add_argument(
        "--draws",
        type=integer(1, 10**6),
        metavar="N",
        help="draws of the dequantisation noise (default: the configuration's)",
    )
    parser.add_argument("--split", type=choice(*choices(Split)), default="test", help="test (default) or train")
    parser.add_argument("--batch", type=integer(1), metavar="N", help="images at a time (default: the configuration's)")
    parser.add_argument("--seed", type=integer(0, 2**32 - 1), default=0, metavar="N", help="of the noise (default 0)")
    parser.add_argument("--no-ema", action="store_true", help="score the last parameters, not their running mean")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--step", type=integer(0), metavar="N", help="which checkpoint (default: the newest)")
    add_quality_options(parser)
    add_mesh(parser)
    add_processes(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    if arguments.json is not None:
        check_writable("--json", arguments.json)
    check_quality_options(arguments)

    import jax

    from starflow_jax.core.figures import write_json
    from starflow_jax.evaluation import score_flow, scores_table
    from starflow_jax.training import load_run

    join(arguments)
    layout = layout_of_command(arguments)
    if arguments.metrics is not None:
        return measure_quality(arguments, layout)
    with sentences(load_run):
        config, _, params, step = load_run(
            arguments.workdir, ema=not arguments.no_ema, layout=layout, step=arguments.step
        )
        if config.data.frames:
            raise CommandError("--workdir must be a run on still images, got one on clips; use starflow score")
    check_on_pixels(config)
    if config.data.text_encoder is not None:
        raise CommandError(
            "--workdir must be a run without captions, got one whose captions are read by "
            f"{config.data.text_encoder}; use starflow score"
        )
    source = scored_source(config, arguments.split)
    draws = arguments.draws or config.evaluate.draws
    scores = score_flow(
        params,
        config.flow,
        source,
        jax.random.key(arguments.seed),
        draws=draws,
        batch_size=arguments.batch or config.evaluate.batch_size,
        model=config.name,
    ).to_dict()
    if not is_first():
        return 0
    print(scores_table([scores]))
    print(
        f"{len(source)} images of {source.name}, {draws} draws, step {step}, "
        f"{'last parameters' if arguments.no_ema or not config.train.ema else 'running mean'}, "
        f"{scores['seconds']:.1f} s"
    )
    if config.data.noise == "gaussian":
        print(
            f"The model was trained on Gaussian noise of {config.data.noise_std:g}, which is far wider than "
            "a pixel level: its bits/dim are loose."
        )
    if arguments.json is not None:
        figures = {
            "workdir": str(arguments.workdir),
            "step": step,
            "split": arguments.split,
            "seed": arguments.seed,
            "ema": bool(config.train.ema) and not arguments.no_ema,
            "data": dataclasses.asdict(config.data),
            **scores,
        }
        write_json(arguments.json, figures)
        print(f"figures: {arguments.json}")
    return 0
