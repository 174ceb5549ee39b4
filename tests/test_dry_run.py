"""`--dry-run` of train, encode and sweep: what is described is what is then done, and nothing is written."""

import json
import uuid

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweep_runs import COUNT, DRAWS, config_file, config_of, two_checkpoints

from starflow_jax.cli.dispatch import main
from starflow_jax.core.amounts import size_text, time_text
from starflow_jax.core.config import load_config
from starflow_jax.core.config.build import to_json
from starflow_jax.data.pipeline.fingerprint import fingerprint
from starflow_jax.training import Checkpoints, abstract_state, open_source

DIGITS = ("--config", "experiments/digits.py:tiny")


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def figures(folder, *argv, code=0):
    """What a dry run writes to --json, which is the only file that it leaves in a folder."""
    before = files(folder)
    assert main([*argv, "--dry-run", "--json", str(folder / "dry.json")]) == code
    assert files(folder) == sorted([*before, "dry.json"])
    found = json.loads((folder / "dry.json").read_text())
    (folder / "dry.json").unlink()
    return found


def save_untrained(folder, step):
    """A run of the experiment, with random numbers as its state."""
    config, rng = load_config(DIGITS[1]), np.random.default_rng(0)
    folder.mkdir()
    (folder / "config.json").write_text(to_json(config))
    state = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), abstract_state(config))
    data = fingerprint(open_source(config.data, "train", flow=config.flow))
    with Checkpoints(folder, config, data=data, write=True) as checkpoints:
        checkpoints.save(state.replace(step=jnp.asarray(step, jnp.int32)), {"next_index": step})


def test_a_new_training_and_one_to_resume(tmp_path, capsys):
    argv = ["train", *DIGITS, "--workdir", str(tmp_path / "run"), "--quiet"]
    found = figures(tmp_path, *argv)
    text = capsys.readouterr().out
    assert "a new run, initialised from seed 0" in text and "1,437 of 8x8x1" in text and "not known for these" in text
    assert found["examples"] == 1437 and found["step"] is None and found["seconds_left"] is None
    save_untrained(tmp_path / "run", step=10)
    saved = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoints" / "10").rglob("*") if path.is_file())
    # Random numbers are not compressed much, and Orbax adds files of metadata.
    assert 0.8 * found["checkpoint_bytes"] < saved < 1.2 * found["checkpoint_bytes"] + 200_000
    (tmp_path / "run" / "checkpoints" / "12").mkdir()  # without its parts
    assert main([*argv, "--dry-run"]) == 2
    assert "the newest checkpoint of" in capsys.readouterr().err
    (tmp_path / "run" / "metrics.csv").write_text("step,images_per_second\n5,100\n10,300\n")
    found = figures(tmp_path, *argv, "--config.train.log_every=5", "--resume", "latest-good")
    assert found["seconds_left"] == found["updates_left"] * found["batch_size"] / 200
    assert found["step"] == 10 and "the run is resumed there" in capsys.readouterr().out


def test_what_a_training_would_refuse_is_refused(tmp_path, capsys):
    (tmp_path / "other.txt").write_text("x")
    assert main(["train", *DIGITS, "--workdir", str(tmp_path), "--dry-run"]) == 2
    assert "is not empty and contains no training run" in capsys.readouterr().err
    assert main(["train", *DIGITS, "--workdir", str(tmp_path / "new"), "--dry-run", "--init-from", str(tmp_path)]) == 2
    assert "contains no training run" in capsys.readouterr().err and files(tmp_path) == ["other.txt"]


def test_an_encoding(tmp_path, capsys):
    argv = ["encode", *DIGITS, "--fit-patch-pca", "2:1", "--fit-images", "20", "--limit", "30", "--quiet"]
    found = figures(tmp_path, *argv, "--out", str(tmp_path / "latents"))
    assert main([*argv, "--out", str(tmp_path / "latents")]) == 0
    header = json.loads((tmp_path / "latents" / "header.json").read_text())
    assert found["count"] == header["count"] == 30
    assert found["shapes"] == [{"shape": bucket["shape"], "count": 30} for bucket in header["buckets"]]
    assert found["files"] == len(list((tmp_path / "latents").glob("*.array_record")))
    assert found["most_bytes"] == 30 * 2 * 64
    assert main([*argv, "--out", str(tmp_path / "latents"), "--dry-run"]) == 2
    assert "must be an empty or a new folder" in capsys.readouterr().err


def test_a_sweep(tmp_path, capsys):
    home = two_checkpoints(tmp_path / "home")
    config = config_file(home / "sweep.py", config_of(home))
    found = figures(tmp_path, "sweep", "--config", config, "--out", str(tmp_path / "out"))
    assert "not known before a cell is done" in capsys.readouterr().out
    assert found["cells_left"] == found["cells"] and found["rows_left"] == 2 * 6 * (COUNT + 7) * DRAWS
    assert main(["sweep", "--config", config, "--out", str(home), "--dry-run"]) == 2
    assert "must be an empty or a new folder, or that of a sweep" in capsys.readouterr().err
    assert main(["sweep", "--report-only", "--dry-run", "--out", str(tmp_path / "out")]) == 2
    assert "--dry-run cannot be combined with --report-only" in capsys.readouterr().err


def test_an_address_is_described_and_nobody_owns_it(folder_of_copies, tmp_path, capsys):
    address = f"memory://{uuid.uuid4().hex}/x"
    assert main(["train", *DIGITS, "--workdir", f"{address}/run", "--dry-run", "--supervise", "1"]) == 0
    assert f"{address}/run" in capsys.readouterr().out
    argv = ["encode", *DIGITS, "--limit", "3", "--quiet"]
    assert main([*argv, "--out", f"{address}/a", "--dry-run", "--json", f"{address}/e.json"]) == 0
    store = fsspec.filesystem("memory")
    assert [path.rpartition("/")[2] for path in store.find(address.removeprefix("memory:/"))] == ["e.json"]
    assert json.loads(store.cat_file(f"{address}/e.json"))["out"] == f"{address}/a"


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (3_359_000, "3.36 MB"), (3 * 10**12, "3 TB")]
)
def test_sizes_in_words(value, words):
    assert size_text(value) == words


def test_times_in_words():
    assert [time_text(value) for value in (5.1, 300, 7200, 259200)] == ["5 s", "5 min", "2 h", "3 days"]
