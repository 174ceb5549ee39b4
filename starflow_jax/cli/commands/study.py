"""`starflow study`: what exact likelihood is good for, shown on a trained run of small images."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import integer, real
from starflow_jax.cli.options.outputs import check_new_folder, check_writable
from starflow_jax.cli.options.scored_data import check_on_pixels, scored_source

if TYPE_CHECKING:
    from starflow_jax.core.config.experiment import ExperimentConfig
    from starflow_jax.data.sources.base import ArraySource
    from starflow_jax.evaluation.applications.study import Outcome, Studied

ORDER = 70

DESCRIPTION = """\
Puts the exact likelihood of a run on still images to work, on its own data:

- classification by the Bayes rule, and its calibration (runs with classes);
- detection of foreign images (photographs, negatives, turned and faint images, shuffled pixels, noise, constant ones):
  AUROC of the plain likelihood, which can fail, and of three scores that mend it;
- filtering: some labels are exchanged and some images damaged, and likelihood has to find them (classes);
- ranked sampling: are the likeliest of many draws better, and less diverse? (classes)
- memorisation: are training images likelier, and are samples copies of them?

--out receives report.md and a PNG for each."""

EXAMPLES = """\
examples:
  starflow study --workdir runs/digits --out study
  starflow study --workdir runs/digits --draws 16 --candidates 64 --out study --json study.json
"""

PICTURES = ("classification", "out_of_distribution", "filtering", "ranked_sampling", "memorisation")


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "study", help="applications of likelihood, on a run's data", description=DESCRIPTION, epilog=EXAMPLES
    )
    option = parser.add_argument
    option("--workdir", required=True, type=Path, metavar="DIR", help="folder of a trained run")
    option("--out", required=True, type=Path, metavar="DIR", help="a new folder for the report and the pictures")
    option("--num", type=integer(2, 10**6), metavar="N", help="images of each split (default: all)")
    option("--draws", type=integer(1, 10**4), default=4, metavar="N", help="draws of the noise an image (default 4)")
    option("--candidates", type=integer(2, 10**5), default=32, metavar="K", help="draws of a class (default 32)")
    option("--keep", type=integer(2, 10**5), default=8, metavar="M", help="of which the likeliest are kept (default 8)")
    option(
        "--mislabelled", type=real(), default=0.1, metavar="X", help="share of exchanged labels to find (default 0.1)"
    )
    option("--damaged", type=real(), default=0.05, metavar="X", help="share of damaged images to find (default 0.05)")
    option("--seed", type=integer(0, 2**32 - 1), default=0, metavar="N", help="of everything random (default 0)")
    option("--no-ema", action="store_true", help="take the last parameters, not their running mean")
    option("--step", type=integer(0), metavar="N", help="which checkpoint (default: the newest)")
    option("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    _check_options(arguments)

    import jax

    from starflow_jax.core.figures import finite, write_json
    from starflow_jax.core.files import replacing_folder
    from starflow_jax.evaluation.applications.study import Studied
    from starflow_jax.evaluation.applications.study_plots import draw_outcome
    from starflow_jax.evaluation.applications.study_report import markdown, tables
    from starflow_jax.training import load_run

    with sentences(load_run):
        config, _, params, step = load_run(arguments.workdir, ema=not arguments.no_ema, step=arguments.step)
    check_on_pixels(config)
    if config.data.frames or config.text is not None or config.data.text_encoder is not None:
        raise CommandError("--workdir must be a run on still images without captions; use starflow score for others")
    train, test = (_in_memory(config, split, arguments.num) for split in ("train", "test"))
    _check_classes(config, train, test)
    studied = Studied(params, config, train, test, jax.random.key(arguments.seed), arguments.draws)
    outcomes = _outcomes(studied, arguments)
    figures: Mapping[str, Any] = finite(
        {
            "workdir": str(arguments.workdir),
            "step": step,
            "seed": arguments.seed,
            "draws": arguments.draws,
            "train": len(train),
            "test": len(test),
            **{outcome.name: outcome.figures for outcome in outcomes},
        }
    )
    with replacing_folder(arguments.out) as folder:
        for outcome in outcomes:
            draw_outcome(outcome, train, test, folder / f"{outcome.name}.png")
        (folder / "report.md").write_text(markdown(figures), encoding="utf-8")
    print("\n\n".join(tables(figures).values()), end="\n\n")
    print(f"step {step}, {arguments.draws} draws; written: {arguments.out / 'report.md'}")
    if arguments.json is not None:
        write_json(arguments.json, figures)
        print(f"figures: {arguments.json}")
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    check_new_folder("--out", arguments.out)
    if arguments.json is not None:
        check_writable("--json", arguments.json)
    if arguments.keep > arguments.candidates:
        raise CommandError(f"--keep must be at most --candidates {arguments.candidates}, got {arguments.keep}")
    if arguments.mislabelled + arguments.damaged > 1:
        raise CommandError(
            "--mislabelled and --damaged must be at most 1 together, "
            f"got {arguments.mislabelled:g} and {arguments.damaged:g}"
        )


def _in_memory(config: ExperimentConfig, split: str, count: int | None) -> ArraySource:
    """A split of the run's own data as arrays."""
    import numpy as np

    from starflow_jax.data.sources.base import ArraySource

    source = scored_source(config, split, count)
    examples = [source[place] for place in range(len(source) if count is None else min(count, len(source)))]
    images = np.stack([example["image"] for example in examples])
    labels = np.asarray([example["label"] for example in examples], np.int32)
    # -1 is a picture without a class.
    return ArraySource(split, images, np.maximum(labels, 0), source.levels, max(source.num_classes, 1))


def _check_classes(config: ExperimentConfig, train: ArraySource, test: ArraySource) -> None:
    """Raises CommandError where a class that is drawn or tested has no training image to be compared with."""
    if not (config.flow.num_classes or config.flow.text_dim):
        return
    missing = sorted(set(range(test.num_classes)) - set(train.labels.tolist()))
    if missing:
        raise CommandError(
            f"--num must take in a training image of every class, got {len(train)} and none of class {missing[0]}"
        )


def _outcomes(studied: Studied, arguments: argparse.Namespace) -> list[Outcome]:
    import jax

    from starflow_jax.evaluation.applications import study
    from starflow_jax.sampling import class_labels, sample

    train, test = studied.class_log_probs(studied.train, 0), studied.class_log_probs(studied.test, 1)
    outcomes = [study.out_of_distribution(studied, train, test)]
    if test.shape[2] > 1:
        filtered = study.data_filtering(studied, mislabelled=arguments.mislabelled, damaged=arguments.damaged)
        ranked = study.ranked_sampling(studied, candidates=arguments.candidates, keep=arguments.keep)
        outcomes = [study.classification(studied, test), *outcomes, filtered, ranked]
        drawn = ranked.shown["drawn"]
    else:
        labels = class_labels(studied.config, 10 * arguments.candidates)
        drawn = sample(studied.params, studied.config, jax.random.fold_in(studied.key, 3), labels, guidance=0.0)
    return [*outcomes, study.memorisation(studied, train, test, drawn)]
