"""`starflow edit`, `sf.restore`, `sf.interpolate` and `sf.change_condition` on tiny runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from editing_on_eight_devices import EIGHT
from fake_devices import run_on_eight_devices
from joined_processes import run_joined
from PIL import Image
from random_flows import CLASSES, VIDEO, normal, random_flow
from sweep_runs import params_of, write_run

import starflow_jax as sf
from starflow_jax.cli.commands.edit import chain_options
from starflow_jax.cli.dispatch import main
from starflow_jax.cli.edit_results import write_restored
from starflow_jax.cli.errors import CommandError
from starflow_jax.core.config import DataConfig
from starflow_jax.core.config.experiment_config import TextConfig
from starflow_jax.editing.burn_in import burn_in_schedules
from starflow_jax.editing.examples import hidden_part, in_units, read_examples
from starflow_jax.editing.latent_edits import spherical
from starflow_jax.editing.operators import Identity
from starflow_jax.editing.restoration import Restored, leading_frames
from starflow_jax.models.autoencoders import fit_patch_pca, save_autoencoder

UNSET = ("chains", "candidates", "moves", "leapfrog", "step_size")
NOISE = ["--moves", "latent-hamiltonian", "--leapfrog", "2"]
FEW = ["--chains", "3", "--steps", "4", "--burn-in", "8", "--candidates", "2"]
OPTIONS = sf.ChainOptions(chains=3, candidates=2, draws=4, thin=1, burn_in=8)
WORDS = ("zero", "one", "two", "left", "right")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a run on images, one on clips, and inputs."""
    home = tmp_path_factory.mktemp("editing")
    write_run(home / "run", CLASSES, DataConfig(label_drop=0.1, levels=17), {4: params_of(random_flow(CLASSES))})
    flow = dataclasses.replace(VIDEO, channels=1, text_dim=len(WORDS))
    data = DataConfig(source="moving_digits", frames=3, noise="gaussian", noise_std=0.3)
    write_run(home / "clips", flow, data, {4: params_of(random_flow(flow))}, text=TextConfig(vocabulary=WORDS))
    rng = np.random.default_rng(0)
    np.savez(home / "digits.npz", image=rng.integers(17, size=(2, 4, 4, 1)).astype(np.uint8), levels=17)
    np.save(home / "clip.npy", rng.integers(256, size=(1, 3, 4, 4, 1)).astype(np.uint8))
    np.save(home / "wide.npy", rng.integers(256, size=(1, 4, 8, 1)).astype(np.uint8))
    np.save(home / "y.npy", np.zeros((2, 4), np.float32))
    Image.fromarray(rng.integers(256, size=(2, 2)).astype(np.uint8)).save(home / "small.png")
    (home / "rows.py").write_text("def rows(x):\n    return x.mean(axis=(2, 3))\n\n\ndef square(x):\n    return x**2\n")
    return home


@pytest.fixture(scope="module")
def run(home):
    return sf.from_pretrained(home / "run")


@pytest.mark.slow
def test_a_function_of_ones_own_is_an_operator(run):
    y = np.zeros((1, 4), np.float32)
    restored = sf.restore(run, y, lambda x: x.mean(axis=(2, 3)), sigma=0.3, options=OPTIONS)
    assert restored.pixels.shape == (1, 3, 4, 4, 1) and np.isfinite(restored.draws.log_posterior).all()


@pytest.mark.slow
def test_visible_pixels_stay_and_the_report_is_that_of_the_draws(run, home):
    levels = np.load(home / "digits.npz")["image"]
    y = in_units(levels, 17, run.config.data, whole=True)
    mask = hidden_part("half:right", (4, 4, 1))
    assert mask.visible[:, :2].all() and not mask.visible[:, 2:].any()
    restored = sf.restore(run, y, mask, cond=[0, 2], options=OPTIONS, seed=1)
    assert restored.pixels.shape == (2, 3, 4, 4, 1) and restored.pixels.dtype == np.uint8
    shown = np.rint(levels * (255 / 16))[:, None, :, :2]
    np.testing.assert_array_equal(restored.pixels[:, :, :, :2], np.broadcast_to(shown, (2, 3, 4, 2, 1)))
    assert np.abs(np.diff(restored.draws.last[..., 2:, 0], axis=1)).max() > 0.01
    last = restored.draws.last.reshape(-1, 4, 4, 1)
    expected = sf.log_prob(run, last, [0, 0, 0, 2, 2, 2])
    np.testing.assert_allclose(restored.draws.log_posterior[..., -1].ravel(), expected, rtol=1e-4, atol=1e-3)
    again = sf.restore(run, y, mask, cond=[0, 2], options=OPTIONS, seed=1)
    np.testing.assert_array_equal(again.draws.x, restored.draws.x)


@pytest.mark.parametrize(
    ("operation", "inputs", "options", "out"),
    [
        ("inpaint", "digits.npz", ["--mask", "half:left", "--class", "1", *NOISE, "--seed", "2"], "filled.png"),
        pytest.param("upscale", "small.png", ["--factor", "2"], "large.npz", marks=pytest.mark.slow),
        pytest.param(
            "operator",
            "y.npy",
            ["--operator", "rows.py:rows", "--moves", "latent", "--sigma", "0.3"],
            "rows",
            marks=pytest.mark.slow,
        ),
        pytest.param("denoise", "digits.npz", ["--sigma", "0.4", "--measure"], "clean.png", marks=pytest.mark.slow),
    ],
)
def test_the_command_restores_images(operation, inputs, options, out, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert main(["edit", operation, inputs, "--workdir", "run", "--out", out, "--json", "r.json", *FEW, *options]) == 0
    found = json.loads(Path("r.json").read_text())
    count = 1 if operation == "upscale" else 2
    assert found["inputs"] == count and found["chains"] == 3 and found["operation"] == operation
    assert len(found["log_posterior"]) == count and (found["moves"], found["draws"]) == (4, 12)
    assert ("rms_error_of_draws" in found) == (operation in ("inpaint", "denoise"))
    printed = capsys.readouterr().out
    assert "acceptance" in printed and "split R-hat" in printed
    if out == "large.npz":
        assert np.load(out)["image"].shape == (1, 3, 4, 4, 1)
    elif out == "rows":
        assert len(list(Path(out).glob("*.png"))) == 6
    else:  # the measurement, the mean and three chains of each input
        assert Image.open(out).size == (5 * 4 * 16, 2 * 4 * 16)


@pytest.mark.slow
def test_the_command_restores_images_of_a_run_on_latents(tmp_path, monkeypatch, capsys):
    def blocks(seed, count):
        """Squares of 2 x 2 pixels, of which one latent each is enough."""
        levels = np.random.default_rng(seed).integers(256, size=(count, 4, 4, 1))
        return levels.repeat(2, axis=1).repeat(2, axis=2).astype(np.uint8)

    pictures = (blocks(0, 20) / 127.5 - 1.0).astype(np.float32)
    autoencoder, params = fit_patch_pca(list(pictures), 2, 1)
    save_autoencoder(tmp_path / "pca.npz", autoencoder, params)
    data = DataConfig(label_drop=0.1, noise="gaussian", noise_std=0.3, autoencoder=str(tmp_path / "pca.npz"))
    write_run(tmp_path / "run", CLASSES, data, {4: params_of(random_flow(CLASSES))})
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", blocks(1, 2))
    begin = ["edit", "inpaint", "images.npy", "--workdir", "run", "--mask", "half:right"]
    few = ["--chains", "3", "--steps", "60", "--burn-in", "120", "--json", "r.json"]
    errors = {}
    for sigma in ("0.1", "10"):
        assert main([*begin, *few, "--sigma", sigma, "--out", f"{sigma}.npz"]) == 0
        figures = json.loads(Path("r.json").read_text())
        assert figures["sigma"] == float(sigma) and 0.2 < figures["acceptance"][0] < 0.95
        found = np.load(f"{sigma}.npz")
        assert found["image"].shape == (2, 3, 8, 8, 1) and found["x"].shape == (2, 3, 4, 4, 1)
        # What is written are the decoded latents.
        decoded = np.asarray(autoencoder.decode(params, found["x"].reshape(6, 4, 4, 1))).reshape(2, 3, 8, 8, 1)
        np.testing.assert_allclose(found["image"], (np.clip(decoded, -1, 1) + 1) * 127.5, atol=0.51)
        target = in_units(np.load("images.npy"), 256, data, whole=True)[:, None, :, :4]
        errors[sigma] = float(np.mean((decoded[..., :4, :] - target) ** 2))
    # The visible half is followed as closely as the measurement says.
    assert errors["0.1"] < 0.2 * errors["10"], errors
    assert main([*begin, "--sigma", "0", "--out", "x.npz"]) == 2
    assert "sigma must be above 0 for a model of latents, got 0" in capsys.readouterr().err


@pytest.mark.slow
def test_eight_devices_restore_what_one_does_and_continue_exactly(home, monkeypatch):
    monkeypatch.chdir(home)
    assert main(["edit", *EIGHT, "--out", "one.npz"]) == 0
    run_on_eight_devices("editing_on_eight_devices.py")
    one, mesh, continued = (np.load(f"{name}.npz") for name in ("one", "mesh", "continued"))
    errors = {}
    for name in one.files:
        np.testing.assert_array_equal(continued[name], mesh[name])
        errors[name] = np.abs(mesh[name].astype(float) - one[name]).max() / np.abs(one[name]).max()
    assert max(errors.values()) < 1e-5 and errors["image"] == 0.0, errors


@pytest.mark.slow
def test_two_processes_restore_what_one_does_and_one_reads_their_chains(home, monkeypatch):
    monkeypatch.chdir(home)
    begin = ["edit", "inpaint", "digits.npz", "--workdir", "run", "--mask", "half:right", *FEW, "--chains", "4"]
    kept = ["--checkpoint", "chains-of-two", "--json", "two.json"]
    script = Path(__file__).parent / "command_of_a_process.py"
    together = [*begin, "--mesh", "data=1,fsdp=2", *kept, "--out", "two.npz"]
    for arguments in (together, ["edit", "interpolate", "digits.npz", "--workdir", "run", "--out", "path.npz"]):
        found = run_joined(script, home, 2, *arguments)
        assert [code for code, *_ in found] == [0, 0], found
        assert "written" in found[0][1] and "written" not in found[1][1]
    assert json.loads((home / "two.json").read_text())["chains"] == 4
    assert main([*begin, "--out", "alone.npz"]) == 0
    assert main([*begin, *kept[:2], "--out", "read.npz"]) == 0  # all of their moves are made
    two, alone, read = (np.load(f"{name}.npz") for name in ("two", "alone", "read"))
    for name in two.files:
        np.testing.assert_allclose(two[name], alone[name], atol=1e-4)
    np.testing.assert_array_equal(two["log_posterior"], read["log_posterior"])


def test_chains_continue_the_frames_before_the_first_hidden_one(home):
    config = sf.from_pretrained(home / "clips").config
    frames = np.arange(3).reshape(3, 1, 1, 1)
    for number in range(3):
        assert leading_frames(config, np.broadcast_to(frames != number, (3, 4, 4, 1))) == number
    half = np.broadcast_to((frames < 2) | (np.arange(4)[:, None] < 2), (3, 4, 4, 1))
    assert leading_frames(config, half) == 2
    other = dataclasses.replace(config, flow=dataclasses.replace(config.flow, temporal_causal=False, denoiser=None))
    assert leading_frames(other, half) == 0
    images = sf.from_pretrained(home / "run").config
    assert leading_frames(images, np.ones((4, 4, 1), bool)) == 0


@pytest.mark.slow
def test_the_command_fills_in_frames_of_clips(home, monkeypatch):
    monkeypatch.chdir(home)
    options = ["--mask", "frames:1", "--caption", "two left", "--moves", "hamiltonian", "--leapfrog", "2"]
    assert main(["edit", "inpaint", "clip.npy", "--workdir", "clips", "--out", "x.npz", *FEW, *options]) == 0
    found, given = np.load("x.npz"), np.load("clip.npy")
    assert found["video"].shape == (1, 3, 3, 4, 4, 1)
    np.testing.assert_array_equal(found["video"][:, :, ::2], np.broadcast_to(given[:, None, ::2], (1, 3, 2, 4, 4, 1)))


def test_interpolation_begins_and_ends_at_the_data_and_passes_the_sphere(run, home, monkeypatch):
    first, second = normal((2, 4, 4, 1), 1), normal((2, 4, 4, 1), 2)
    between = sf.interpolate(run, first, second, num=4, cond=[0, 1], second_cond=[2, 1])
    assert between.shape == (2, 4, 4, 4, 1)
    np.testing.assert_allclose(between[:, 0], first, atol=1e-3)
    np.testing.assert_allclose(between[:, -1], second, atol=1e-3)
    lengths = np.linalg.norm(spherical(first, second, np.linspace(0, 1, 5)).reshape(2, 5, -1), axis=-1)
    np.testing.assert_allclose(np.diff(lengths, 2, axis=1), 0.0, atol=1e-4)
    same = spherical(first, first, np.asarray([0.3]))[:, 0]
    np.testing.assert_allclose(same, first, atol=1e-5)
    monkeypatch.chdir(home)
    assert main(["edit", "interpolate", "digits.npz", "--workdir", "run", "--num", "3", "--out", "between.png"]) == 0
    assert Image.open("between.png").size == (3 * 4 * 16, 4 * 16)


def test_another_condition_keeps_the_noise(run, home, monkeypatch):
    x = np.asarray(normal((2, 4, 4, 1), 3))
    np.testing.assert_allclose(sf.change_condition(run, x, [1, 1], [1, 1]), x, atol=1e-3)
    changed = sf.change_condition(run, x, [1, 1], [2, 0])
    model = sf.distribution(run)
    labels = np.asarray([[1, 1], [2, 0]], np.int32)
    noises = [model.inverse_and_log_det(some, label)[0] for some, label in zip((x, changed), labels, strict=True)]
    np.testing.assert_allclose(*noises, atol=2e-3)
    assert np.abs(changed - x).max() > 0.05
    monkeypatch.chdir(home)
    command = ["edit", "attribute", "digits.npz", "--workdir", "run", "--out", "a.npz", "--class", "0"]
    moved = ["--to-class", "2", "--without", "digits.npz", "--having", "digits.npz", "--strength", "0.5"]
    assert main([*command, *moved]) == 0
    assert np.load("a.npz")["image"].shape == (2, 2, 4, 4, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inpaint", "digits.npz"], "inpaint requires --mask, got none"),
        (["inpaint", "digits.npz", "--mask", "frames:1"], "mask frames:1 needs a run on clips"),
        (["inpaint", "digits.npz", "--mask", "box:0,0,5,1"], "mask box must be inside of 4 rows and 4 columns"),
        (["inpaint", "digits.npz", "--mask", "x"], "mask must be half:left|right|top|bottom, frames:A-B"),
        (["inpaint", "wide.npy", "--mask", "half:top"], "wide.npy must contain [n, 4, 4, 1], got [1, 4, 8, 1]"),
        (["upscale", "small.png", "--factor", "3"], "--factor must divide the 4 rows and 4 columns of the run, got 3"),
        (["upscale", "small.png", "--factor", "2", "--mask", "half:top"], "--mask is for inpaint, got upscale"),
        (["denoise", "digits.npz"], "denoise requires --sigma, got none"),
        (["colourise", "digits.npz"], "colourise needs a run on several channels"),
        (["operator", "y.npy", "--operator", "rows.py:square"], "operator rows.py:square must be linear"),
        (["operator", "y.npy", "--operator", "rows.py:other"], "rows.py must define other()"),
        (["operator", "y.npy", "--operator", "rows.py:rows", "--class", "3"], "--class must be below the 3 classes"),
        (
            ["inpaint", "clip.npy", "--mask", "frames:1", "--class", "1", "--workdir", "clips"],
            "--class must be none for a run without classes, got 1",
        ),
        (["interpolate", "y.npy"], "y.npy must contain [n, 4, 4, 1], got [2, 4]"),
        (["interpolate", "small.png"], "interpolate needs an even number of inputs, got 1"),
        (["attribute", "digits.npz"], "attribute requires --to-class, --to-caption or --without and --having"),
        (["attribute", "digits.npz", "--to-caption", "a"], "--to-caption cannot be used with the run in run"),
        (["attribute", "digits.npz", "--to-class", "1", "--strength", "2"], "--strength needs --without and --having"),
        (["attribute", "digits.npz", "--to-class", "1", "--to-caption", "a"], "--to-caption are mutually exclusive"),
        (["attribute", "digits.npz", "--to-class", "any"], "--to-class must be a class or none, got any"),
        (["interpolate", "digits.npz", "--class", "any"], "--class must be a class or none, got any"),
        (["interpolate", "digits.npz", "--seed", "1"], "--seed is for inpaint, upscale"),
        (
            ["inpaint", "digits.npz", "--mask", "half:top", "--class", "all"],
            "--class must be a class, any or none, got all",
        ),
        (["inpaint", "digits.npz", "--mask", "half:top", "--leapfrog", "2"], "--leapfrog is for --moves hamiltonian"),
        (["denoise", "digits.npz", "--sigma", "1", "--moves", "latent", "--step-size", "1"], "is for moves of data"),
        (["inpaint", "digits.npz", "--mask", "half:top", "--checkpoint", "refused.png"], "another folder than --out"),
        (["inpaint", "digits.npz", "--mask", "half:top", "--checkpoint", "refused.png/x"], "and not inside of it"),
        (
            ["inpaint", "digits.npz", "--mask", "half:top", "--json", "x/y", "--checkpoint", "./x/y/z"],
            "--checkpoint must be another folder than --json",
        ),
        (
            ["inpaint", "digits.npz", "--mask", "half:top", "--json", "x/chains.json", "--checkpoint", "x"],
            "--json must not be the record of --checkpoint, got 'x/chains.json'",
        ),
        (["inpaint", "digits.npz", "--mask", "half:top", "--checkpoint", "."], "must be an empty or a new folder"),
        (["interpolate", "digits.npz", "--checkpoint", "chains"], "--checkpoint is for inpaint, upscale"),
        (["paint", "digits.npz"], "must be one of inpaint, upscale"),
    ],
)
def test_what_cannot_be_edited_is_refused_in_a_sentence(words, message, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    named = [] if "--workdir" in words else ["--workdir", "run"]
    assert main(["edit", *words, *named, "--out", "refused.png"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("starflow: ") and len(error.strip().splitlines()) == 1
    assert not Path("refused.png").exists()


@pytest.mark.parametrize("operation", ["inpaint", "interpolate"])
def test_files_that_cannot_be_written_are_refused_before_any_chain_runs(operation, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    for name in ("restoration.restore", "latent_edits.interpolate"):
        monkeypatch.setattr(f"starflow_jax.editing.{name}", None)
    words = ["--mask", "half:top"] if operation == "inpaint" else []
    assert main(["edit", operation, "digits.npz", "--workdir", "run", "--out", "late.gif", *words]) == 2
    assert "--out must end in .png or .npz for a run on still images, got 'late.gif'" in capsys.readouterr().err


def test_results_that_are_not_finite_are_not_written(run, tmp_path):
    restored = Restored(np.zeros((1, 2, 4, 4, 1), np.uint8), np.full((1, 2, 4, 4, 1), np.nan, np.float32), None, 0.1)
    with pytest.raises(CommandError, match="32 values of the results are not finite, so nothing is written"):
        write_restored(argparse.Namespace(out=tmp_path / "x.npz"), run, restored, None, None, None, 0.0)
    assert not list(tmp_path.iterdir())


def test_the_training_noise_is_that_of_the_noise_level(tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def reached(posterior, *_, **__):
        raise Reached(posterior)

    flow = dataclasses.replace(CLASSES, noise_levels=(0.1, 0.5))
    data = DataConfig(noise="gaussian", noise_std=0.5, levels=17)
    write_run(tmp_path / "levels", flow, data, {4: params_of(random_flow(flow))})
    noisy = sf.from_pretrained(tmp_path / "levels")
    monkeypatch.setattr("starflow_jax.editing.restoration.sample_posterior", reached)
    y, noise = np.zeros((1, 4, 4, 1), np.float32), sf.ChainOptions(moves="latent-hamiltonian")
    for level, expected in ((None, 0.5), (0.2, 0.2)):
        with pytest.raises(Reached) as found:
            sf.restore(noisy, y, Identity(), sigma=0.3, noise_level=level)
        np.testing.assert_allclose(found.value.args[0].sigma, np.hypot(expected, 0.3), rtol=0.05)
        mask = sf.Mask(np.arange(4)[:, None] > 0)
        with pytest.raises(Reached) as found:
            sf.restore(noisy, y, mask, noise_level=level)
        assert abs(np.asarray(found.value.args[0].y).std() / expected - 1.0) < 0.5
        # Moves of noise measure what the mask shows, with the noise in the data, and hold nothing.
        with pytest.raises(Reached) as found:
            sf.restore(noisy, y, mask, noise_level=level, options=noise)
        assert found.value.args[0].free is None and not np.asarray(found.value.args[0].y).any()
        np.testing.assert_allclose(found.value.args[0].sigma, expected, rtol=1e-6)


def test_masks_of_files_and_boxes(tmp_path):
    box = hidden_part("box:1,0,2,3", (3, 4, 4, 1)).visible
    expected = np.ones((3, 4, 4, 1), bool)
    expected[:, 1:3, 0:3] = False
    np.testing.assert_array_equal(box, expected)
    np.save(tmp_path / "mask.npy", ~expected[0])
    np.testing.assert_array_equal(hidden_part(str(tmp_path / "mask.npy"), (3, 4, 4, 1)).visible, expected)
    Image.fromarray(np.where(expected[0, ..., 0], 0, 255).astype(np.uint8)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(hidden_part(str(tmp_path / "mask.png"), (3, 4, 4, 1)).visible, expected)
    np.save(tmp_path / "all.npy", np.ones((4, 4, 1), bool))
    with pytest.raises(ValueError, match="must hide some of the data, and not all of it"):
        hidden_part(str(tmp_path / "all.npy"), (4, 4, 1))


@pytest.mark.parametrize(("steps", "burn_in", "parts"), [(10_000, 100, 2), (500, 1000, 20), (20, 150, 15), (4, 0, 0)])
def test_the_burn_in_is_about_as_long_as_asked(steps, burn_in, parts):
    options = chain_options(argparse.Namespace(**dict.fromkeys(UNSET), steps=steps, burn_in=burn_in))
    found = burn_in_schedules(burn_in, options.together, options.thin, anneal=True)
    assert len(found) == parts
    assert burn_in <= sum(schedule.gain.size for schedule in found) <= max(1.1 * burn_in, 2 * options.thin)


def test_numbers_beyond_the_range_of_pixels_are_refused(run, tmp_path):
    np.save(tmp_path / "x.npy", np.linspace(0.0, 255.0, 16, dtype=np.float32).reshape(1, 4, 4, 1))
    with pytest.raises(ValueError, match="must contain numbers from -1 to 1 or integers, got numbers from 0 to 255"):
        read_examples(run.config, [tmp_path / "x.npy"], (4, 4, 1), whole=True)
    assert read_examples(run.config, [tmp_path / "x.npy"], (4, 4, 1), whole=False).max() == 255.0


def test_measurements_that_do_not_fit_are_refused(run):
    with pytest.raises(ValueError, match=r"y must be floating point \[M, 2, 2, 1\], got float32 \[1, 4, 4, 1\]"):
        sf.restore(run, np.zeros((1, 4, 4, 1), np.float32), sf.BlockMeans(2))
    with pytest.raises(ValueError, match=r"visible must be bool and broadcast to \[4, 4, 1\], got int64 \[3\]"):
        sf.restore(run, np.zeros((1, 4, 4, 1), np.float32), sf.Mask(np.ones(3, int)))
    with pytest.raises(ValueError, match="operator <lambda> must be linear"):
        sf.restore(run, np.zeros((1, 4, 4, 1), np.float32), lambda x: x**2)
    with pytest.raises(ValueError, match="num must be an integer >= 2, got 1"):
        sf.interpolate(run, np.zeros((1, 4, 4, 1)), np.zeros((1, 4, 4, 1)), num=1)
