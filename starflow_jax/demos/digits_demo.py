"""The digits demo: train on images of digits, score against a baseline, sample new ones, write a report."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

import starflow_jax.experiments as experiments
from starflow_jax import __version__
from starflow_jax.core.atomic_writing import write_text
from starflow_jax.core.config import ExperimentConfig, load_config
from starflow_jax.core.figures import finite, text_table, write_json
from starflow_jax.data import ArraySource
from starflow_jax.evaluation import fit_class_gaussians, score_flow, score_gaussian, scores_table
from starflow_jax.evaluation.samples.sample_grids import write_class_panels, write_sample_grid
from starflow_jax.flows.parameters import Params, count
from starflow_jax.reports.run_report import ReportRequest, write_run_report
from starflow_jax.sampling import sample
from starflow_jax.training import Checkpoints, load_run, open_source, plot_curves, train
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER, claim_workdir

RUN_FOLDER = "run"
SAMPLES, CURVES, REPORT, PAGE, FIGURES = FILES = (
    "samples.png",
    "curves.png",
    "report.md",
    "report.html",
    "report.json",
)
EXAMPLES_A_CLASS = 8
MAX_BITS_PER_DIM, MIN_ACCURACY = 2.2, 0.97

Say = Callable[[str], None]


def demo_config(name: str = "digits", *, tiny: bool = False, seed: int | None = None) -> ExperimentConfig:
    """The experiment of the demo, `experiments/NAME.py`, or its `tiny` variant.

    Raises:
      ValueError: the file is missing or not valid.
    """
    path = Path(next(iter(experiments.__path__))) / f"{name}.py"
    overrides = [] if seed is None else [f"seed={seed}"]
    return load_config(f"{path}:tiny" if tiny else str(path), overrides)


def claim(out: Path, config: ExperimentConfig) -> None:
    """Creates the folder of this demo, or checks that it holds this demo.

    Raises:
      ValueError: a file, a folder with other contents or of another configuration, or one that cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, got the file {out}")
    if out.is_dir() and any(out.iterdir()) and not (out / RUN_FOLDER).is_dir():
        raise ValueError(f"out {out} is not empty and contains no demo")
    claim_workdir(out / RUN_FOLDER, config)


def finished_report(out: Path, config: ExperimentConfig, files: Sequence[str] = FILES) -> dict[str, Any] | None:
    """The report of a finished demo of this configuration in `out`; None if one of `files` is missing."""
    if not all((out / name).is_file() for name in files):
        return None
    try:
        report = json.loads((out / FIGURES).read_text(encoding="utf-8"))
    except ValueError:
        return None
    same = isinstance(report, dict) and report.get("config") == finite(dataclasses.asdict(config))
    return report if same else None


def run_demo(config: ExperimentConfig, out: Path, *, progress: bool = True, say: Say = print) -> dict[str, Any] | None:
    """Runs the demo, or the part of it that an earlier call did not finish.

    Args:
      config: a class-conditional experiment with held-out images.
      out: receives `run/` (the training run), samples.png, curves.png, report.md, report.html and, last, report.json.
      progress: shows a progress bar while training.
      say: prints a line.

    Returns:
      The content of report.json; None if training was interrupted, which the same call resumes.

    Raises:
      ValueError: see `claim`; or a damaged checkpoint.
    """
    claim(out, config)
    report = finished_report(out, config)
    if report is not None:
        say(f"{out} contains this demo, finished; delete it to start again.\n")
        say(closing(report, out))
        return report
    clock = Clock()
    run = out / RUN_FOLDER
    source, held_out = (open_source(config.data, split, flow=config.flow) for split in ("train", "test"))
    assert isinstance(source, ArraySource) and isinstance(held_out, ArraySource)

    begun_at = latest_step(run)
    say(f"training {config.name}: {config.train.steps} steps on {len(source)} images")
    with clock.phase("training"):
        result = train(config, run, callbacks=[write_sample_grid], progress=progress, source=source)
    if result.interrupted:
        return None
    _, _, params, _ = load_run(run)

    key = jax.random.key(config.seed)
    draws = config.evaluate.draws
    say(f"scoring {len(held_out)} held-out images, {draws} draws each")
    with clock.phase("scoring the flow"):
        flow = score_flow(params, config.flow, held_out, key, draws=draws, batch_size=config.evaluate.batch_size)
    with clock.phase("the Gaussian baseline"):
        gaussian = fit_class_gaussians(source, seed=config.seed)
        baseline = score_gaussian(gaussian, held_out, key, draws=draws)
    say("sampling digits")
    with clock.phase("sampling"):
        drawings = _draw(params, config, held_out, out / SAMPLES)
    plot_curves(run, out / CURVES)

    scores = [flow.to_dict(), baseline.to_dict()]
    report = common_figures(config, result.step, begun_at, count(params)) | {
        "images_per_second": result.images_per_second,
        "train_images": len(source),
        "test_images": len(held_out),
        "scores": scores,
        "gaussian": {"components": gaussian.components, "regularisation": gaussian.regularisation},
        "bars": quality_bars(scores[0]),
        "drawings": drawings,
        "seconds": clock.seconds,
    }
    return write_report(out, finite(report), markdown, closing, say, pictures=[out / SAMPLES])


def common_figures(config: ExperimentConfig, step: int, begun_at: int, parameters: int) -> dict[str, Any]:
    """The figures that the reports of all demos begin with."""
    return {
        "version": __version__,
        "config": dataclasses.asdict(config),
        "hardware": hardware(),
        "parameters": parameters,
        "steps": step,
        "begun_at_step": begun_at,
    }


def write_report(
    out: Path,
    report: dict[str, Any],
    markdown: Callable[[Mapping[str, Any]], str],
    closing: Callable[[Mapping[str, Any], Path], str],
    say: Say,
    pictures: Sequence[Path],
) -> dict[str, Any]:
    """Writes report.md, report.html with `pictures`, and report.json; prints the closing text; returns the report."""
    write_text(out / REPORT, markdown(report))
    write_run_report(ReportRequest(out / RUN_FOLDER, out / PAGE), results={FIGURES: report}, pictures=pictures)
    write_json(out / FIGURES, report)
    say("")
    say(closing(report, out))
    return report


def quality_bars(score: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The quality bars for the held-out digits, and whether the flow reaches them."""
    bits, accuracy = score["bits_per_dim"]["mean"], score["accuracy"]["mean"]
    return [
        {
            "what": f"bits/dim at most {MAX_BITS_PER_DIM}",
            "value": bits,
            "passed": bits <= MAX_BITS_PER_DIM,
        },
        {
            "what": f"accuracy at least {100 * MIN_ACCURACY:.0f} %",
            "value": accuracy,
            "passed": accuracy >= MIN_ACCURACY,
        },
    ]


def hardware() -> dict[str, Any]:
    """The hardware and software of the measurement; contains no host name and no path."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model,
        "cores": cores,
        "device": f"{jax.default_backend()} ({jax.devices()[0].device_kind})",
        "system": platform.system(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def closing(report: Mapping[str, Any], out: Path) -> str:
    """The text that the demo prints at its end."""
    paths = "\n".join(f"  {out / name}" for name in FILES)
    return (
        f"{scores_table(report['scores'])}\n\n{_bars(report)}\n\n{seconds_table(report)}\n\n{_drawings(report)}\n\n"
        f"written:\n{paths}\n"
        f"sample more:\n  starflow sample --workdir {out / RUN_FOLDER} --num 64 --class 7 --out sevens.png\n"
        f"{studio_line(out / RUN_FOLDER)}"
    )


def studio_line(run: Path) -> str:
    """How to open a run in the browser."""
    return f"play with it in the browser (pip install 'starflow-jax[studio]'):\n  starflow studio --workdir {run}"


def markdown(report: Mapping[str, Any]) -> str:
    """The content of report.md."""
    machine, evaluate = report["hardware"], report["config"]["evaluate"]
    images, gaussian = report["scores"][0]["bits_per_dim"], report["gaussian"]
    return f"""# Handwritten digits, learned by a normalizing flow

A flow of {report["parameters"]:,} parameters was trained for {report["steps"]:,} steps on
{report["train_images"]:,} digits and scored on {report["test_images"]:,} others that were held out.

![real digits and digits sampled from the flow]({SAMPLES})

## Scores

{scores_table(report["scores"])}

bits/dim bound the length of a lossless code for the {images["dims"]} pixels of {images["levels"]} levels,
given the true class, under uniform dequantisation; lower is better. Both models score the same
{evaluate["draws"]} samples of that noise. The first standard error is over images (after averaging over the noise
samples of each), the second over noise samples (after averaging over images). Accuracy is that of Bayes' rule, argmax
over classes y of p(x | y), with p averaged over the noise samples of an image; "one draw" uses one noise sample at a
time. The baseline is a full-covariance Gaussian mixture for each class ({gaussian["components"]} component(s), and
{gaussian["regularisation"]:g} squared ink levels added to the variances, both selected on the training digits).

{_bars(report)}

## Training

![curves of the training]({CURVES})

## Samples

{_drawings(report)}

## Time

{seconds_table(report)}

{machine["cpu"]}, {machine["cores"]} cores, {machine["device"]}, {machine["system"]},
Python {machine["python"]}, JAX {machine["jax"]}, starflow {report["version"]}, seed {report["config"]["seed"]}.
{_resumed(report)}"""


def _bars(report: Mapping[str, Any]) -> str:
    flow, gaussian = report["scores"]
    lines = [
        f"- {'passed' if bar['passed'] else 'MISSED'}: {bar['what']} ({bar['value']:.4f})" for bar in report["bars"]
    ]
    better = [
        ("bits/dim", flow["bits_per_dim"]["mean"] < gaussian["bits_per_dim"]["mean"]),
        ("accuracy", flow["accuracy"]["mean"] > gaussian["accuracy"]["mean"]),
    ]
    lines += [f"- {'yes' if yes else 'no'}: better than the Gaussian in {what}" for what, yes in better]
    return "\n".join(lines)


def seconds_table(report: Mapping[str, Any]) -> str:
    """Wall-clock seconds of every phase as a table."""
    seconds = report["seconds"]
    rows = [("phase", "seconds"), *((name, f"{value:.1f}") for name, value in seconds.items())]
    return text_table([*rows, ("total", f"{sum(seconds.values()):.1f}")])


def _drawings(report: Mapping[str, Any]) -> str:
    rows = [("images", "solver", "network evaluations", "seconds", "compilation", "converged")]
    for name, drawing in report["drawings"].items():
        times = (f"{drawing['seconds']:.2f}", f"{drawing['compile_seconds']:.2f}")
        converged = "yes" if drawing["converged"] else f"no: {len(drawing['unconverged'])} chunks"
        rows.append((f"{drawing['images']} {name}", drawing["solver"], str(drawing["evaluations"]), *times, converged))
    return text_table(rows)


def _resumed(report: Mapping[str, Any]) -> str:
    step = report["begun_at_step"]
    return f"The training time counts from step {step}, where an earlier call stopped.\n" if step else ""


def _draw(params: Params, config: ExperimentConfig, real: ArraySource, path: Path) -> dict[str, Any]:
    """Writes samples.png with one row per class; returns figures of the sampling."""
    classes, per_class = real.num_classes, EXAMPLES_A_CLASS
    labels = np.repeat(np.arange(classes, dtype=np.int32), per_class)
    shape = (classes, per_class, *real.images.shape[1:])
    examples = np.concatenate([np.resize(np.flatnonzero(real.labels == label), per_class) for label in range(classes)])
    scaled = np.rint(real.images[examples] * (255.0 / (real.levels - 1))).astype(np.uint8)
    panels = [("real, held out", scaled.reshape(shape))]
    weights = {"sampled": 0.0}
    # Without label dropping in training there is no unconditional model, which guidance needs.
    if config.data.label_drop > 0:
        weight = config.sample.guidance or 1.0
        weights[f"sampled, guidance {weight:g}"] = weight
    drawings = {}
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    for name, weight in weights.items():
        samples = sample(params, config, key, labels, guidance=weight, batch_size=len(labels))
        panels.append((name, samples.images.reshape(shape)))
        drawings[name] = {
            "guidance": weight,
            "solver": config.sample.solver,
            "converged": samples.report.converged,
            **dataclasses.asdict(samples.report),
        }
    write_class_panels(path, panels)
    return drawings


def latest_step(run: Path) -> int:
    """The step that training resumes from."""
    if not (run / CHECKPOINT_FOLDER).is_dir():
        return 0
    with Checkpoints(run) as checkpoints:
        return checkpoints.latest_step() or 0


class Clock:
    """Wall-clock seconds of every phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times the code inside."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
