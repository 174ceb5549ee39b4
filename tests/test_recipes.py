"""The papers' recipes: every tiny variant trains ten updates, by the command, on data of the recipe's own structure."""

import ast
import csv
import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest

from starflow_jax.cli.dispatch import build_parser, main
from starflow_jax.core.config import load_config
from starflow_jax.data.sources.latents import FORMAT, HEADER_FILE, Records

FOLDER = Path(__file__).parents[1] / "experiments"
RECIPES = sorted(path.stem for path in FOLDER.glob("*flow*.py"))
EXAMPLES = 12
# The quick tests train a recipe with captions; test_cli.py trains on classes and test_curriculum.py on videos.
QUICK = ("starflow_3b_t2i",)


def write_npz(folder: Path, flow) -> None:
    """train.npz and test.npz of bytes and labels, as the docstrings describe them."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        images = rng.integers(0, 256, (EXAMPLES, *flow.image_shape, 3), dtype=np.uint8)
        np.savez(folder / f"{split}.npz", image=images, label=np.arange(EXAMPLES) % (flow.num_classes or 3))


def write_latents(folder: Path, flow, frames: int, *, captions: bool) -> None:
    """ArrayRecord files and a header, as `starflow encode` writes them; with states of captions, or labels alone."""
    from array_record.python.array_record_module import ArrayRecordWriter

    rng = np.random.default_rng(0)
    shape = (*((frames,) if frames else ()), *flow.image_shape, flow.channels)
    length, dim = (flow.text_length, flow.text_dim) if captions else (0, 0)
    records = Records("float16", 1 if captions else flow.text_dim, length, dim)
    for split in ("train", "test"):
        own = folder / split
        own.mkdir(parents=True)
        writer = ArrayRecordWriter(str(own / "latents-000-00000.array_record"), "group_size:1")
        for number in range(EXAMPLES):
            states = rng.normal(size=(length, dim)) if captions else None
            label = 0 if captions else number % flow.text_dim
            writer.write(records.pack(rng.normal(size=shape), label, states, "a corgi" if captions else ""))
        writer.close()
        bucket = {"bucket": "all", "shape": shape, "count": EXAMPLES, "files": ["latents-000-00000.array_record"]}
        text = {"length": length, "dim": dim, "empty": np.zeros((1, dim)).tolist()} if captions else None
        header = {"format": FORMAT, "dtype": "float16", "num_classes": records.num_classes, "text": text}
        (own / HEADER_FILE).write_text(json.dumps(header | {"buckets": [bucket]}))


def write_data(config) -> None:
    """What the recipe reads, in the working folder, where the recipe looks for it."""
    for part in config.data.mixture or (config.data,):
        if part.source == "npz":
            write_npz(Path(part.path), config.flow)
        else:
            # A clip that may begin at its second frame has one more than is read.
            frames = part.frames + bool(part.drop_first)
            write_latents(Path(part.path), config.flow, frames, captions=config.flow.text_length > 1)


def commands(name: str) -> list[list[str]]:
    """The commands of a recipe's docstring, as a shell would split them."""
    text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8")), clean=False)
    joined = text.replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in joined.splitlines() if line.startswith("    starflow ")]


@pytest.mark.parametrize("name", RECIPES)
def test_printed_commands_can_be_typed(name):
    text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8")))
    # Long ones are broken as a shell takes it: a backslash that Python swallows would make one line of two.
    assert max(len(line) for line in text.splitlines()) <= 120
    found = commands(name)
    assert "train" in {command[0] for command in found}
    assert "encode" not in {command[0] for command in found} or "--split test" in text
    measured = [command for command in found if command[0] == "evaluate"]
    assert bool(measured) == ("FID" in text or "bits/dim" in text)
    parser, _ = build_parser()
    for command in found:
        of_latents = "--real" in command
        assert of_latents == (command[0] == "evaluate" and "--decoder" in command)
        options = [part for part in command if not part.startswith("--config.")]
        read, unknown = parser.parse_known_args(options)
        assert read.command == command[0] and not unknown
        if command[0] == "evaluate" and "FID" in text:
            assert {"fid", "pt_inception-2015-12-05-6726825d.pth", "--num-samples", "--guidance"} <= set(command)


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in RECIPES if name not in QUICK)]
)
def test_tiny_twins_train(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = str(FOLDER / f"{name}.py")
    config = load_config(f"{file}:tiny")
    write_data(config)
    assert main(["train", "--config", f"{file}:tiny", "--workdir", "run", "--quiet", "--config.train.log_every=1"]) == 0
    rows = list(csv.DictReader(Path("run/metrics.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(1, 11))
    assert all(math.isfinite(float(row["loss"])) for row in rows)
    assert main(["info", "--workdir", "run"]) == 0
    assert config.name in capsys.readouterr().out
    # The twin is the recipe at another size: what it reads, and what is done to it, is the same.
    full = load_config(file)
    for field in ("noise", "noise_std", "label_drop", "source", "frames"):
        assert getattr(config.data, field) == getattr(full.data, field)
    for field in ("family", "rope", "sos", "scale", "temporal_causal", "shallow_local", "cond_top_only"):
        assert getattr(config.flow, field) == getattr(full.flow, field)
    assert (config.flow.denoiser is None) == (full.flow.denoiser is None)
    assert (config.flow.num_classes, config.flow.text_dim > 0) == (full.flow.num_classes, full.flow.text_dim > 0)
