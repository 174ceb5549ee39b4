"""Training of autoencoders: the composed gradient, the losses, LPIPS, resumed runs, decoders on noisy latents."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import AutoencoderExperiment, SourceConfig, load_experiment
from starflow_jax.core.config.autoencoder_config import LossConfig, ReconstructionConfig
from starflow_jax.data.sources.photos import photos
from starflow_jax.models.autoencoders import PatchPCA, load_autoencoder, save_autoencoder
from starflow_jax.models.autoencoders.kl.model import AutoencoderKL
from starflow_jax.models.autoencoders.torch_layout import to_tensors
from starflow_jax.nn.module_parameters import drawn
from starflow_jax.reconstruction.discriminator import PatchDiscriminator, adaptive_weight, hinge
from starflow_jax.reconstruction.lpips import abstract_lpips, lpips, lpips_params, read_lpips
from starflow_jax.reconstruction.update import AUTOENCODER, DISCRIMINATOR, Objective, init_state, losses_and_gradients

EXPERIMENT = str(Path(__file__).parents[1] / "experiments" / "tiny_vae.py")
TENSORS = "diffusion_pytorch_model.safetensors"


def test_photos_are_whole_and_no_pixel_is_in_both_splits():
    train, test = (photos(split, (16, 24)) for split in ("train", "test"))
    assert train.images.shape[1:] == test.images.shape[1:] == (16, 24, 3)
    assert len(train) > 4 * len(test) > 0 and train.num_classes == 10
    assert set(train.labels) == set(test.labels) == set(range(10))
    rows = {image.tobytes() for image in train.images if image.std() > 8}  # not of a plain sky
    assert not rows & {image.tobytes() for image in test.images}
    assert photos("test", (16, 24), 1).images.shape[-1] == 1
    with pytest.raises(ValueError, match="size of photos must be at most 128, got 130"):
        photos("train", (130, 16))


@pytest.fixture(scope="module")
def objective():
    """A fine-tuning of a small decoder, with a discriminator from update 3 on."""
    loss = LossConfig(
        latent_noise=0.2, adversarial=0.7, discriminator_start=3, discriminator_width=4, discriminator_layers=1
    )
    train = ReconstructionConfig(steps=10, batch_size=2, lr=1e-3)
    experiment = AutoencoderExperiment("j", SourceConfig(), 8, loss, train, autoencoder="a")
    return Objective(experiment, AutoencoderKL((4,), 1, 2, 1, 4, mid_block_add_attention=False))


@pytest.mark.slow
def test_the_gradient_is_that_of_the_loss_with_its_weight_held_fixed(objective):
    state, frozen = init_state(objective, objective.autoencoder.init(jax.random.key(1)))
    assert set(state.params) == {AUTOENCODER, DISCRIMINATOR} and set(state.ema) == {AUTOENCODER}
    assert set(state.params[AUTOENCODER]) == {"decoder", "post_quant_conv"} and set(frozen) == {"encoder", "quant_conv"}
    x = jax.random.uniform(jax.random.key(2), (2, 8, 8, 1), minval=-1)
    key = jax.random.key(3)
    step = jax.jit(lambda number: losses_and_gradients(objective, state.params, frozen, None, x, key, number))
    before, terms = step(2)
    assert terms["adaptive_weight"] == terms["discriminator"] == 0 and terms["adversarial"] != 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(before[DISCRIMINATOR]))
    gradients, terms = step(3)
    autoencoder, discriminator = objective.autoencoder, objective.discriminator

    def pictures(trained):
        latents = autoencoder.encode(frozen | trained, x)
        noise = jax.random.normal(jax.random.split(key)[1], latents.shape)
        return autoencoder.decode(frozen | trained, latents + 0.2 * noise)

    def parts(trained):
        picture = pictures(trained)
        return jnp.mean((picture - x) ** 2), -jnp.mean(discriminator(state.params[DISCRIMINATOR], picture))

    (square, adversarial), of_parts = jax.jit(lambda t: (parts(t), jax.jacrev(parts)(t)))(state.params[AUTOENCODER])
    last = [part["decoder"]["conv_out"]["kernel"] for part in of_parts]
    weight = 0.7 * adaptive_weight(*last)
    assert terms["adaptive_weight"] == pytest.approx(float(weight), rel=1e-4) and weight > 0
    assert terms["loss"] == pytest.approx(float(square + weight * adversarial), rel=1e-4)
    wanted = jax.tree.map(lambda a, b: a + weight * b, *of_parts)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(gradients[AUTOENCODER]), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=str(path))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradients[DISCRIMINATOR]))


def test_hinge_and_adaptive_weight():
    assert hinge(jnp.asarray([1.0, 3.0]), jnp.asarray([-1.0, -2.0])) == 0  # no loss beyond the margins
    assert hinge(jnp.zeros(3), jnp.zeros(3)) == 1
    gradient = jnp.asarray([3.0, 4.0])
    assert adaptive_weight(gradient, 2 * gradient) == pytest.approx(0.5, rel=1e-5)
    assert adaptive_weight(gradient, jnp.zeros(2)) == 1e4


@pytest.mark.slow
def test_a_discriminator_judges_patches():
    judge = PatchDiscriminator(1, width=4, layers=2)
    params = judge.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 24, judge.smallest, 1))
    logits = judge(params, x)
    assert logits.shape == (2, 4, 1)
    np.testing.assert_allclose(judge(params, x[1:])[0], logits[1], atol=1e-5)  # images of a batch are independent


@pytest.fixture(scope="module")
def perceptual():
    """LPIPS with random weights, those of channels positive."""
    params = drawn(abstract_lpips(), jax.random.key(0))
    return {name: jax.tree.map(jnp.abs, part) if name.startswith("lin") else part for name, part in params.items()}


@pytest.mark.slow
def test_lpips_is_a_distance_of_what_a_classifier_sees(perceptual):
    a, b = jax.random.uniform(jax.random.key(1), (2, 2, 16, 16, 1), minval=-1)
    distance = jax.jit(lpips)
    found = distance(perceptual, a, b)
    assert found.shape == (2,) and (found > 0).all()
    np.testing.assert_allclose(distance(perceptual, b, a), found, rtol=1e-5)
    np.testing.assert_allclose(distance(perceptual, a, a), 0, atol=1e-9)
    # grey is RGB with three equal channels; the distance grows towards another image
    np.testing.assert_allclose(distance(perceptual, *(jnp.repeat(x, 3, -1) for x in (a, b))), found, rtol=1e-4)
    assert (distance(perceptual, a, a + 0.05 * (b - a)) < found).all()


def test_lpips_weights_have_the_names_of_their_packages(perceptual, tmp_path):
    features = to_tensors({"features": perceptual["features"]})
    heads = to_tensors({name: {"model": {"1": part}} for name, part in perceptual.items() if name != "features"})
    assert features["features.0.weight"].shape == (64, 3, 3, 3)
    assert heads["lin4.model.1.weight"].shape == (1, 512, 1, 1)
    found = lpips_params(heads | {f"net.slice1.{name.removeprefix('features.')}": v for name, v in features.items()})
    assert jax.tree.all(jax.tree.map(np.array_equal, found, perceptual))
    save_file(heads | {"classifier.6.bias": np.zeros(3, np.float32)}, tmp_path / "heads.safetensors")
    with pytest.raises(ValueError, match=r"heads.safetensors: tensors must contain features.0.bias.* and do not"):
        read_lpips([tmp_path / "heads.safetensors"])
    with pytest.raises(ValueError, match=r"LPIPS needs its weights, and .*gone.safetensors does not exist"):
        read_lpips([tmp_path / "gone.safetensors"])


def test_lpips_is_that_of_its_package(perceptual, tmp_path):
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("lpips")
    theirs = package.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    params = lpips_params({name: value.numpy() for name, value in theirs.state_dict().items()})
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, 2, 32, 24, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(*(torch.from_numpy(np.moveaxis(x, -1, 1).copy()) for x in (a, b))).flatten().numpy()
    np.testing.assert_allclose(lpips(params, a, b), wanted, rtol=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the smallest experiment, and its figures."""
    folder = tmp_path_factory.mktemp("vae")
    arguments = ["--config", f"{EXPERIMENT}:tiny", "--workdir", str(folder / "run"), "--quiet"]
    arguments += ["--config.train.checkpoint_every=2", "--config.train.keep=2"]
    assert main(["train-autoencoder", *arguments, "--json", str(folder / "run.json")]) == 0
    return folder / "run", arguments, json.loads((folder / "run.json").read_text())


def test_a_trained_autoencoder_is_a_folder_of_unit_latents(trained):
    run, _, figures = trained
    autoencoder, params = load_autoencoder(run / "autoencoder")
    assert autoencoder.stride == 2 and autoencoder.channels == 4
    pictures = photos("train", (16, 16)).images[::7].astype(np.float32) / 127.5 - 1
    assert np.std(jax.jit(autoencoder.encode)(params, pictures)) == pytest.approx(1.0, rel=0.1)
    (row,) = figures["quality"]["trained"]
    assert row["latents"] == "clean" and row["pictures"] == 6
    assert row["psnr"] > 0 and figures["metrics"]["kl"] > 0 and figures["steps"] == 4
    assert (run / "reconstructions.png").is_file() and (run / "metrics.csv").is_file()


def test_info_shows_the_run_of_an_autoencoder(trained, tmp_path, capsys):
    run, _, _ = trained
    assert main(["info", "--workdir", str(run), "--json", str(tmp_path / "info.json")]) == 0
    figures = json.loads((tmp_path / "info.json").read_text())
    _, params = load_autoencoder(run / "autoencoder")
    assert figures["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert (figures["family"], figures["state"], figures["step"]) == ("autoencoder", "finished", 4)
    assert figures["metrics"]["kl"] > 0 and [entry["problem"] for entry in figures["checkpoints"]] == [None, None]
    printed = capsys.readouterr().out
    assert f"autoencoder, {figures['parameters']:,} parameters" in printed and "finished: step 4 of 4" in printed
    # Commands for flows name what they were given.
    assert main(["port", "--workdir", str(run), "--to-torch", str(tmp_path / "a.pth")]) == 2
    assert "must contain the run of a flow, got that of an autoencoder" in capsys.readouterr().err


def test_a_run_goes_on_to_the_same_numbers(trained, tmp_path):
    run, arguments, _ = trained
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "4")
    arguments = [str(copy) if argument == str(run) else argument for argument in arguments]
    assert main(["train-autoencoder", *arguments]) == 0
    whole, resumed = (load_file(folder / "autoencoder" / TENSORS) for folder in (run, copy))
    for name, value in whole.items():
        np.testing.assert_array_equal(value, resumed[name], err_msg=name)
    changed = [*arguments, "--config.train.lr=1"]
    assert main(["train-autoencoder", *changed]) == 2  # of another experiment


@pytest.mark.slow  # the quick tests train an autoencoder by the same loop
def test_a_decoder_learns_noisy_latents_and_the_encoder_stays(trained, tmp_path, capsys):
    run, _, _ = trained
    command = ["finetune-decoder", "--config", f"{EXPERIMENT}:tiny_decoder", "--workdir", str(tmp_path / "run")]
    command += ["--autoencoder", str(run / "autoencoder"), "--quiet", "--json", str(tmp_path / "f.json")]
    assert main([*command, "--config.train.steps=40"]) == 0
    assert "| noisy, std 0.3 |" in capsys.readouterr().out
    before, after = json.loads((tmp_path / "f.json").read_text())["quality"].values()
    assert [row["noise_std"] for row in before] == [0.0, 0.3]
    assert after[1]["psnr"] > before[1]["psnr"] + 0.5  # a decoder of four updates has something to learn
    old, new = (load_file(folder / "autoencoder" / TENSORS) for folder in (run, tmp_path / "run"))
    same = {name for name in old if np.array_equal(old[name], new[name])}
    assert {name.split(".")[0] for name in same} == {"encoder", "quant_conv"}
    assert all(name in same for name in old if name.startswith(("encoder.", "quant_conv.")))
    assert load_autoencoder(tmp_path / "run" / "autoencoder")[0] == load_autoencoder(run / "autoencoder")[0]


@pytest.mark.parametrize(
    ("command", "variant", "changes", "sentence"),
    [
        ("train-autoencoder", "decoder", [], "network must be given to train an autoencoder, got None"),
        ("finetune-decoder", "tiny", [], "network must be None to fine-tune a decoder"),
        ("finetune-decoder", "tiny_decoder", ["autoencoder=gone"], "gone does not exist"),
        ("finetune-decoder", "tiny_decoder", ["loss.kl=1"], "loss.kl must be 0 with a frozen encoder, got 1.0"),
        ("train-autoencoder", "tiny", ["loss.perceptual=1"], "perceptual_weights must name the files of LPIPS where"),
        (
            "train-autoencoder",
            "tiny",
            ["loss.perceptual=1", "loss.perceptual_weights=['vgg.safetensors']"],
            "LPIPS needs its weights, and vgg.safetensors does not exist",
        ),
        ("train-autoencoder", "tiny", ["loss.adversarial=1"], "image_size must be at least 24 for loss.discriminator"),
        ("train-autoencoder", "tiny", ["image_size=17"], "sides that are multiples of 2 for this autoencoder"),
        (
            "train-autoencoder",
            "tiny",
            ["network.norm_num_groups=3"],
            "norm_num_groups=3 must divide block_out",
        ),
        ("train-autoencoder", "tiny", ["train.ema=1"], "ema must be below 1, got 1.0"),
        ("train-autoencoder", "tiny", ["train.stepz=1"], "did you mean steps"),
        ("train-autoencoder", "tiny", ["data.source=latents", "data.path=x"], "data.source must be images"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(command, variant, changes, sentence, tmp_path, capsys):
    changes = [f"--config.{change}" for change in changes]
    arguments = ["--config", f"{EXPERIMENT}:{variant}", "--workdir", str(tmp_path / "run"), *changes]
    assert main([command, *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_only_convolutional_autoencoders_are_fine_tuned(tmp_path, capsys):
    linear = {"mean": np.zeros(12), "basis": np.eye(12, 4), "std": np.ones(4)}
    save_autoencoder(tmp_path / "a.npz", PatchPCA(2, 3, 4), linear)
    arguments = ["--config", f"{EXPERIMENT}:tiny_decoder", "--autoencoder", str(tmp_path / "a.npz")]
    assert main(["finetune-decoder", *arguments, "--workdir", str(tmp_path / "run")]) == 2
    assert "must be an AutoencoderKL to be fine-tuned, got PatchPCA" in capsys.readouterr().err


def test_shipped_experiments_are_as_their_commands_say():
    whole, decoder = (load_experiment(AutoencoderExperiment, f"{EXPERIMENT}{v}") for v in ("", ":decoder"))
    assert whole.autoencoder is None and decoder.network is None
    assert dataclasses.replace(whole, name="").image_shape == (32, 32) == decoder.image_shape
    assert decoder.loss.latent_noise == 0.3


@pytest.mark.slow
def test_several_devices_do_what_one_does():
    script = Path(__file__).with_name("autoencoder_devices.py")
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["kernel"] == ["None", "None", "None", "fsdp"]
    assert figures["latents"] < 1e-5
    np.testing.assert_allclose(*figures["losses"], rtol=1e-4)
    assert figures["parameters"] < 1e-4  # of updates of 1e-3
