"""The model card of a published model: README.md with the metadata that the Hub reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import yaml

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.figures import text_table
from starflow_jax.training.checkpoints.workdir import CSV_FILE
from starflow_jax.training.loop.metrics import read_metrics

_METRICS = {"loss": "loss", "bits_per_dim": "bits/dim", "held_out_bits_per_dim": "held-out bits/dim"}


@dataclasses.dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
      name: a title; repo: ORG/NAME on the Hub, None where it is not known.
      license: identifier of the licence; notes: Markdown text on the limits, "" for none.
      config: the experiment; step: of the checkpoint; parameters: number of values.
      frozen: names of the frozen models that lie beside.
      metrics: names and last values of the training's record.
      results: a table of likelihoods with its header; empty for none.
      as_run: whether the folder is that of a run, instead of safetensors.
    """

    name: str
    repo: str | None
    license: str
    notes: str
    config: ExperimentConfig
    step: int
    parameters: int
    frozen: tuple[str, ...]
    metrics: tuple[tuple[str, str], ...]
    results: tuple[tuple[str, ...], ...]
    as_run: bool = False

    def text(self) -> str:
        """The content of README.md."""
        return "\n".join([_front_matter(self), *_body(self)]) + "\n"


def last_metrics(workdir: Path, step: int) -> tuple[tuple[str, str], ...]:
    """Names and last values of the metrics of a run until a step, with their steps; empty where there are none."""
    rows = [row for row in read_metrics(workdir / CSV_FILE) if row["step"] <= step]
    found = []
    for name, title in _METRICS.items():
        last = next((row for row in reversed(rows) if name in row), None)  # not every row has every column
        if last is not None:
            found.append((title, f"{last[name]:.6g} (step {last['step']:.0f})"))
    return tuple(found)


def _front_matter(card: Card) -> str:
    config = card.config
    video, captions = bool(config.data.frames), config.flow.text_dim > 0
    task = {
        (True, True): "text-to-video",
        (False, True): "text-to-image",
        (False, False): "unconditional-image-generation",
    }
    metadata: dict[str, object] = {
        "license": card.license,
        "library_name": "starflow_jax",
        "tags": ["jax", "normalizing-flow", "autoregressive-flow", config.flow.family],
    }
    if (pipeline := task.get((video, captions))) is not None and not config.data.traits.vectors:
        metadata["pipeline_tag"] = pipeline
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n"


def _body(card: Card) -> list[str]:
    config, flow = card.config, card.config.flow
    kind = "videos" if config.data.frames else "vectors" if config.data.traits.vectors else "images"
    address = f"hf://{card.repo}" if card.repo else "DIR"
    reads = f"{flow.num_classes} classes" if flow.num_classes else "captions" if flow.text_dim else "nothing"
    facts = [
        ("", "value"),
        ("family", flow.family),
        ("parameters", f"{card.parameters:,}"),
        ("blocks, layers", f"{flow.num_blocks}, {flow.layers_per_block}"),
        ("input of the flow", f"{flow.image_shape[0]} x {flow.image_shape[1]} x {flow.channels}"),
        ("condition", reads),
        ("training step", f"{card.step:,}"),
        ("frozen models beside", ", ".join(card.frozen).replace("_", " ") or "none"),
    ]
    lines = [
        f"# {card.name}",
        "",
        f"A normalizing flow on {kind}: it draws samples and gives exact likelihoods. Made with starflow_jax.",
        "",
        "## Use",
        "",
        "```python",
        "import starflow_jax as sf",
        f'pipe = sf.StarFlowPipeline.from_pretrained("{address}")',
        f"pipe({_call(card)})",
        "```",
        "",
        f"On the command line: `starflow sample --model {address} --out {'x.mp4' if config.data.frames else 'x.png'}`.",
        "",
        "## Model",
        "",
        text_table(facts),
        "",
        "`config.json` is the whole experiment. "
        + (
            "The folder is that of a run."
            if card.as_run
            else "`model*.safetensors` has the tensors under the names of the PyTorch originals, "
            + ("in float32." if flow.quantise is None else f"the weights of the layers as {flow.quantise} with scales.")
        ),
        "",
        "## Data",
        "",
        f"Trained on the source `{config.data.source}`{_named(config)}, batches of {config.train.batch_size}.",
        "",
        "## Figures",
        "",
        *_figures(card),
        "",
        "## Limits",
        "",
        f"The model knows nothing but its training data, and its samples are {kind} of that size and kind. Likelihoods "
        "are those of data in the units of `config.json`, which have to be the same when models are compared. What is "
        "in the data, errors and prejudices included, is in the samples.",
    ]
    return lines + (["", card.notes.strip()] if card.notes.strip() else [])


def _call(card: Card) -> str:
    flow = card.config.flow
    if flow.text_dim:
        return 'prompt="a corgi", seed=0'
    return "class_label=0, seed=0" if flow.num_classes else "seed=0"


def _named(config: ExperimentConfig) -> str:
    names = config.data.class_names or ()
    return f" with {len(names)} named classes" if names else ""


def _figures(card: Card) -> Sequence[str]:
    lines = []
    if card.metrics:
        values = ", ".join(f"{name} {value}" for name, value in card.metrics)
        lines += [f"The last values of `metrics.csv`, which `starflow train` wrote: {values}.", ""]
    if card.results:
        lines += [
            "Likelihoods found in the folder of the run, where `starflow evaluate --workdir RUN --json FILE`, "
            "`starflow score --workdir RUN --json FILE` and `starflow sweep --workdir RUN --out DIR` write them:",
            "",
            text_table(card.results),
        ]
    return lines or [
        "None were found in the folder of the run. `starflow evaluate --workdir RUN --json FILE` gives some."
    ]
