"""`starflow evaluate --metrics`: stopped and damaged sweeps end with the figures of one that was not."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image
from random_flows import random_flow
from sweep_runs import params_of

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import load_config
from starflow_jax.core.registries import METRICS
from starflow_jax.evaluation.samples import guidance_sweep
from starflow_jax.evaluation.samples.metrics.metric import Column
from starflow_jax.training import Checkpoints, abstract_state
from starflow_jax.training.checkpoints.workdir import claim_workdir, in_use

EXPERIMENT = """
from ml_collections import ConfigDict

def get_config(variant=""):
    return ConfigDict({
        "name": "tiny",
        "flow": {"family": "tarflow", "channels": 1, "image_size": 8, "patch_size": 4, "width": 16, "num_blocks": 2,
                 "layers_per_block": 1, "head_dim": 8, "num_classes": 0 if variant else 10},
        "data": {"label_drop": 0.0 if variant else 0.1},
        "train": {"steps": 1, "batch_size": 16, "lr": 1e-3, "ema": 0.9},
        "evaluate": {"draws": 1},
    })
"""
FEATURES = """
import numpy as np

def rows(images):
    return images.reshape(len(images), 8, 8).mean(axis=2)

def weighed(images):
    return rows(images) * np.loadtxt("weights.txt", ndmin=1)

def broken(images):
    return np.full((len(images), 2), np.nan)
"""
SWEEP = ["--metrics", "fid,is,kid,pr", "--num-samples", "40", "--chunk", "16", "--sample-batch", "8"]
WEIGHTS = ["--guidance", "0,1.5"]


def saved_run(folder, config):
    """A run with random parameters, as if it had been trained."""
    claim_workdir(folder, config)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_state(config))
    params = params_of(random_flow(config.flow))
    with Checkpoints(folder, config, write=True) as checkpoints:
        checkpoints.save(state.replace(params=params, ema=params), {})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("quality")
    (home / "tiny.py").write_text(EXPERIMENT)
    (home / "own_features.py").write_text(FEATURES)
    saved_run(home / "run", load_config(str(home / "tiny.py")))
    saved_run(home / "plain", load_config(f"{home / 'tiny.py'}:unconditional"))
    small = ["--metrics", "fid", "--num-samples", "16", *SWEEP[4:], "--guidance", "0"]
    assert main(["evaluate", "--workdir", str(home / "run"), *small]) == 0
    return home


@pytest.fixture(scope="module")
def swept(home):
    """The folder after a sweep of two weights with every metric, which continues the one that is there."""
    assert main(["evaluate", "--workdir", str(home / "run"), *SWEEP, *WEIGHTS, "--json", str(home / "q.json")]) == 0
    return home


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def again(here, tmp_path):
    """A copy of the folder of the finished sweep."""
    shutil.copytree(here / "run" / "quality", tmp_path / "again")
    return tmp_path / "again"


@pytest.fixture
def drawn(monkeypatch):
    """Counts (guidance, pictures) of every chunk that is drawn."""
    chunks = []

    def counted(*arguments, **options):
        chunks.append((options["guidance"], len(arguments[3])))
        return original(*arguments, **options)

    original = guidance_sweep.sample
    monkeypatch.setattr(guidance_sweep, "sample", counted)
    return chunks


def sweep(out, *options):
    """The figures of a sweep into `out`."""
    assert main(["evaluate", "--workdir", "run", *SWEEP, "--out", str(out), *options]) == 0
    return json.loads((out / "quality.json").read_text())


def same(figures, home):
    """Whether they are those of the sweep that nothing happened to."""
    return figures | {"workdir": None} == json.loads((home / "q.json").read_text()) | {"workdir": None}


@pytest.mark.slow
def test_figures_plot_and_pictures(swept, capsys):
    home = swept
    figures = json.loads((home / "q.json").read_text())
    assert [(row["guidance"], row["samples"]) for row in figures["rows"]] == [(0.0, 40), (1.5, 40)]
    for row in figures["rows"]:
        assert row["fid"] > figures["floor"]["fid"] > 0 and row["kid"] > figures["floor"]["kid"]
        assert 1 <= row["is"] <= 10 and 0 <= row["precision"] <= 1 and 0 <= row["recall"] <= 1
    assert figures["rows"][0]["fid"] != figures["rows"][1]["fid"]
    assert figures["reference"] == {"name": "digits-train", "pictures": 1437} and figures["floor"]["samples"] == 360
    out = home / "run" / "quality"
    with (out / "quality.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["fid"]) for row in rows] == [row["fid"] for row in figures["rows"]]
    with Image.open(out / "quality.png") as picture:
        assert picture.size[0] > 4 * 400
    assert {path.name for path in out.glob("pictures-*.png")} == {"pictures-0.png", "pictures-1.5.png"}
    assert not list(home.rglob(".*"))


@pytest.mark.slow  # test_a_sweep_that_is_stopped_goes_on_to_the_same_figures draws no chunk twice either
def test_a_finished_sweep_draws_nothing_and_says_the_same(swept, here, again, drawn):
    assert same(sweep(again, *WEIGHTS), here)
    assert drawn == []
    more = sweep(again, "--guidance", "0", "--num-samples", "64")  # its short last chunk is drawn whole
    assert drawn == [(0.0, 16), (0.0, 16)] and more["rows"][0]["samples"] == 64
    assert same(sweep(again, *WEIGHTS), here)


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on_to_the_same_figures(swept, here, tmp_path, monkeypatch, drawn, capsys):
    out, write = tmp_path / "out", guidance_sweep.ChunkFolder.write

    def stopped(folder, guidance, number, chunk):
        if (guidance, number) == (1.5, 1):
            raise KeyboardInterrupt
        write(folder, guidance, number, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(guidance_sweep.ChunkFolder, "write", stopped)
        assert main(["evaluate", "--workdir", "run", *SWEEP, *WEIGHTS, "--out", str(out)]) == 130
    assert "finished samples are stored, and the same command continues from them" in capsys.readouterr().err
    assert drawn == [(0.0, 16), (0.0, 16), (0.0, 8), (1.5, 16), (1.5, 16)]
    drawn.clear()
    found = sweep(out, *WEIGHTS)
    assert drawn == [(1.5, 16), (1.5, 8)]
    assert same(found, here)


@pytest.mark.slow
def test_what_is_torn_or_not_its_own_is_drawn_anew(swept, here, again, drawn):
    files = {(g, k): again / f"guidance-{g!r}" / f"chunk-{k:06d}.npz" for g in (0.0, 1.5) for k in range(3)}
    content = {place: path.read_bytes() for place, path in files.items()}
    files[0.0, 0].write_bytes(content[0.0, 0][:-100])
    middle = bytearray(content[0.0, 1])
    middle[len(middle) // 2] ^= 4
    files[0.0, 1].write_bytes(bytes(middle))
    files[1.5, 0].write_bytes(content[0.0, 0])  # of another guidance
    files[1.5, 1].write_bytes(content[1.5, 0])  # of another number
    files[1.5, 2].unlink()
    (files[1.5, 2].parent / ".chunk-000002.killed.npz").write_bytes(b"half")
    (again / "real-00000000.npz").write_bytes(b"")
    assert same(sweep(again, *WEIGHTS), here)
    assert sorted(drawn) == [(0.0, 16), (0.0, 16), (1.5, 8), (1.5, 16), (1.5, 16)]
    assert not list(again.rglob(".*"))


@pytest.mark.slow
def test_chunks_do_not_depend_on_the_batch_and_noise_not_on_guidance(here, tmp_path, monkeypatch):
    seen = {}

    def kept(*arguments, **options):
        drawing = original(*arguments, **options)
        seen[options["guidance"], options["batch_size"], len(seen)] = drawing.x
        return drawing

    original = guidance_sweep.sample
    monkeypatch.setattr(guidance_sweep, "sample", kept)
    one = sweep(tmp_path / "a", "--guidance", "0", "--num-samples", "16")
    other = sweep(tmp_path / "b", "--guidance", "0", "--num-samples", "16", "--sample-batch", "16")
    a, b = seen.values()
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert one["rows"][0]["fid"] == pytest.approx(other["rows"][0]["fid"], rel=1e-3)


def test_a_function_of_ones_own(here, tmp_path, capsys):
    figures = sweep(tmp_path / "own", "--metrics", "fid,pr,bpd", "--features", "own_features:rows", "--guidance", "0")
    assert figures["rows"][0]["fid"] > figures["floor"]["fid"] and "is" not in figures["rows"][0]
    assert 3.0 < figures["bits_per_dim"]["bits_per_dim"]["mean"] < 8.0
    assert main(["evaluate", "--workdir", "run", "--draws", "1", "--json", str(tmp_path / "e.json")]) == 0
    alone = json.loads((tmp_path / "e.json").read_text())  # the command without --metrics
    assert alone["bits_per_dim"]["mean"] == figures["bits_per_dim"]["bits_per_dim"]["mean"]


def test_a_function_whose_weights_change_is_refused(here, tmp_path, capsys, drawn):
    """Its code does not show the change; stored statistics of real images by the old weights are not reused either."""
    weights, own = here / "weights.txt", ["--features", "own_features:weighed", "--metrics", "fid", "--guidance", "0"]
    weights.write_text("1.0")
    before = sweep(tmp_path / "w", *own)
    drawn.clear()
    weights.write_text("1.00001")  # as far as devices differ
    assert sweep(tmp_path / "w", *own)["rows"] == before["rows"] and drawn == []
    weights.write_text("1.1")
    capsys.readouterr()
    assert main(["evaluate", "--workdir", "run", *SWEEP, *own, "--out", str(tmp_path / "w")]) == 2
    error = capsys.readouterr().err
    assert "samples whose features_of_fixed_pictures is" in error and len(error.strip().splitlines()) == 1
    assert drawn == []
    weights.unlink()


def test_a_registered_metric_is_in_every_output(here, tmp_path, capsys, monkeypatch, temporary_registrations):
    """One registration is enough for the command line, the table, the CSV and JSON files, and the plot."""
    panels = []
    monkeypatch.setattr(Axes, "set_ylabel", lambda axes, label, **options: panels.append(label))

    @METRICS.register("gap", title="Gap", better="lower", columns=(Column("gap", "mean gap", ".2f"),))
    def gap(samples, real):
        return {"gap": float(np.linalg.norm(samples.moments.mean - real.moments.mean))}

    figures = sweep(tmp_path / "gap", "--metrics", "gap", "--guidance", "0")
    assert figures["rows"][0]["gap"] > figures["floor"]["gap"] > 0
    assert "mean gap" in capsys.readouterr().out and panels == ["Gap (lower is better)"]
    assert (tmp_path / "gap" / "quality.csv").read_text().splitlines()[0].endswith(",gap")


RUN = ["evaluate", "--workdir", "run", "--metrics"]
REFUSALS = {
    "unknown metric": ([*RUN, "fid,fvd"], "--metrics must be some of clip, fid, is, kid, pr, bpd"),
    "metric twice": ([*RUN, "fid,fid"], "each once, got 'fid,fid'"),
    "bpd alone": ([*RUN, "bpd"], "got bpd alone; omit --metrics for bits/dim"),
    "option without metrics": (["evaluate", "--workdir", "run", "--guidance", "1"], "--guidance requires --metrics"),
    "solver without metrics": (["evaluate", "--workdir", "run", "--solver", "jacobi"], "--solver requires --metrics"),
    "tolerance without metrics": (["evaluate", "--workdir", "run", "--tolerance", "1"], "--tolerance requires"),
    "json is a folder": (
        [*RUN, "fid", "--out", "new/deep", "--json", "new"],
        "which contains or is the folder --out new/deep",
    ),
    "json in the folder": (
        [*RUN, "fid", "--out", "new", "--json", "./new/figures.json"],
        "--json must name a file outside",
    ),
    "bad guidance": ([*RUN, "fid", "--guidance", "0,-1"], "must be a finite number >= 0, got '-1'"),
    "guidance twice": ([*RUN, "fid", "--guidance", "1,1.0"], "every weight once"),
    "too few": ([*RUN, "fid", "--num-samples", "3"], "must be an integer from 16"),
    "draws without bpd": ([*RUN, "fid", "--draws", "2"], "--draws requires --metrics bpd"),
    "clip alone": ([*RUN, "clip"], "--metrics clip and --clip MODULE:FUNCTION must be given together"),
    "clip without captions": ([*RUN, "clip", "--clip", "a:b"], "needs --caption"),
    "captions": ([*RUN, "fid", "--caption", "a one"], "has no captions"),
    "no file": ([*RUN, "fid", "--features", "gone.pth"], "must be a file, got gone.pth"),
    "no weights": ([*RUN, "fid", "--features", "tiny.py"], "tiny.py is in an unknown format"),
    "no function": ([*RUN, "fid", "--features", "own_features:gone"], "has no function gone"),
    "no logits": ([*RUN, "fid,is", "--features", "own_features:rows"], "own_features:rows returns only features"),
    "bad features": ([*RUN, "fid", "--features", "own_features:broken"], "must return finite features"),
    "resize": ([*RUN, "fid", "--resize", "tensorflow"], "--resize requires Inception weights"),
    "decoder": ([*RUN, "fid", "--decoder", "x"], "--decoder requires a run on latents"),
    "denoise": ([*RUN, "fid", "--denoise", "score"], "denoise must be 'none'"),
    "out is a file": ([*RUN, "fid", "--out", "tiny.py"], "--out must name a folder, got the file tiny.py"),
    "out is foreign": ([*RUN, "fid", "--out", "run"], "run is not empty and contains no samples of this command"),
    "another seed": ([*RUN, "fid", "--seed", "1", "--chunk", "16"], "samples whose seed is 0, not 1 as in this call"),
    "no classes": (["evaluate", "--workdir", "plain", "--metrics", "fid", "--guidance", "1"], "attention_temperature"),
    "no run": (["evaluate", "--workdir", "gone", "--metrics", "fid"], "gone contains no training run"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_sentence_and_draw_nothing(case, here, capsys, drawn):
    argv, message = REFUSALS[case]
    before = {path for path in here.rglob("*") if "__pycache__" not in path.parts}
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1, error
    assert drawn == [] and before == {path for path in here.rglob("*") if "__pycache__" not in path.parts}


def test_one_command_a_folder(here, again, capsys):
    with in_use(again):
        assert main(["evaluate", "--workdir", "run", *SWEEP, *WEIGHTS, "--out", str(again)]) == 2
    assert "is in use by another process, which samples in it" in capsys.readouterr().err
