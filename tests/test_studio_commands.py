"""Command lines that the studio states for edits and scores: they repeat the result."""

from __future__ import annotations

import base64
import json
import re
import shlex

import numpy as np
import pytest
from studio_runs import clips_run, pictures_run

from starflow_jax.cli.dispatch import main
from starflow_jax.editing.examples import hidden_part
from starflow_jax.editing.posterior_sampling import ChainOptions
from starflow_jax.media import write_gif
from starflow_jax.studio.background_work import Device, Progress
from starflow_jax.studio.command_lines import EXAMPLE_FILE, inpaint_command, mask_name, score_command
from starflow_jax.studio.examples import held_out
from starflow_jax.studio.filling_in import CHOICES, Filling, fill_in
from starflow_jax.studio.scoring import score
from starflow_jax.studio.shown_results import filled_html, saved_array
from starflow_jax.studio.uploads import check_upload, read_upload

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def pictures(home):
    return pictures_run(home)


@pytest.fixture(scope="module")
def clips(home):
    return clips_run(home).first


def test_command_lines_of_edits_and_scores(pictures, clips, tmp_path):
    options = ChainOptions(chains=3, candidates=2, draws=4, thin=1, burn_in=8)
    words = {"label": "any", "caption": None, "seed": 0}
    line = shlex.split(inpaint_command(pictures.first, "a.png", "mask.npy", options, **words))
    assert line[line.index("--steps") + 1] == "4" and line[line.index("--mask") + 1] == "mask.npy"
    missing = np.zeros((3, 4, 4), bool)
    missing[1:] = True
    assert mask_name(missing) == "frames:1-2"
    missing[0, 0, 0] = True
    assert mask_name(missing) == "mask.npy"
    link = saved_array("mask.npy", missing[..., None])
    (tmp_path / "mask.npy").write_bytes(base64.b64decode(re.search(r"base64,([^\"]+)", link)[1]))
    assert np.array_equal(~np.asarray(hidden_part(str(tmp_path / "mask.npy"), (3, 4, 4, 1)).visible)[..., 0], missing)
    assert score_command(pictures.first, "a.png", "", draws=4, seed=1) is None
    line = shlex.split(score_command(clips, "a b.gif", "-two", draws=4, seed=1))
    assert line[:2] == ["starflow", "score"] and "--caption=-two" in line and "a b.gif" in line


def test_the_command_line_of_a_score_repeats_it(clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_gif("a b.gif", np.random.default_rng(1).integers(0, 256, (3, 4, 4, 1)).astype(np.uint8), fps=8)
    pixels = read_upload(check_upload("a b.gif", tmp_path), clips)
    found = score(clips, pixels, ["two left"], seed=1)
    line = score_command(clips, "a b.gif", found.condition, draws=found.draws, seed=1)
    assert main([*shlex.split(line)[1:], "--json", "score.json"]) == 0
    [scored] = json.loads((tmp_path / "score.json").read_text())["clips"]
    assert scored["bits_per_dim"] == pytest.approx(found.bits_per_dim, rel=1e-6)


def test_what_is_painted_over_is_filled_in(pictures, tmp_path, monkeypatch):
    few = ChainOptions(chains=3, candidates=2, draws=4, thin=1, burn_in=8)
    monkeypatch.setitem(CHOICES, "quick", few)
    pixels = held_out(pictures.first, 0)
    missing = np.zeros((1, 4, 4), bool)
    missing[0, :2] = True
    steps = list(fill_in(pictures.first, pixels, missing, Filling(label="any"), Device()))
    assert any(isinstance(step, Progress) for step in steps)
    filled = steps[-1].value
    assert filled.pixels.shape == (3, 1, 4, 4, 1)
    assert np.array_equal(filled.pixels[:, ~missing], np.broadcast_to(pixels[~missing], (3, 8, 1)))
    assert sum(share for _, share in filled.classes) == pytest.approx(1.0)
    assert "download" in filled_html(filled, {"mask.npy": filled.missing})
    assert np.array_equal(filled.original, pixels)
    monkeypatch.chdir(tmp_path)
    page = pytest.importorskip("starflow_jax.studio.pages.edit_page")  # which needs Gradio
    for name, array in page.files_of(filled, False).items():
        np.save(name, array)
    words = shlex.split(
        inpaint_command(pictures.first, EXAMPLE_FILE, mask_name(missing), few, label="any", caption=None, seed=0)
    )
    assert main([*words[1:-1], "filled.npz"]) == 0
    assert np.array_equal(np.load("filled.npz")["image"], filled.pixels[None, :, 0])
    with pytest.raises(ValueError, match="class must be"):
        list(fill_in(pictures.first, pixels, missing, Filling(label="3"), Device()))
