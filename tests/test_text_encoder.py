"""A pretrained text encoder in training, in precomputed latents, and in sampling."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from picture_files import write_photos
from pretrained_files import write_t5

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import load_config
from starflow_jax.core.request_errors import RequestError
from starflow_jax.data import train_loader
from starflow_jax.flows.parameters import initialise
from starflow_jax.sampling import sample
from starflow_jax.sampling.captions import image_captions
from starflow_jax.sampling.loaded_run import with_text_encoder
from starflow_jax.sampling.videos.video_plan import caption_reader, plan_videos, text_states
from starflow_jax.training.step.frozen_text import load_text, prompts
from starflow_jax.training.step.inputs import batch_condition, open_source

LENGTH, WIDTH = 10, 12
CONFIG = """
from ml_collections import ConfigDict

def get_config(variant=""):
    flow = dict(family="starflow", rope=True, sos=True, channels=3, image_size=8, patch_size=4, width=20, num_blocks=1,
                layers_per_block=1, head_dim=20, text_dim=12, text_length=10, scale="softplus", soft_clip=4.0)
    data = dict(source="images", path={photos!r}, noise="gaussian", noise_std=0.1, label_drop=0.5,
                text_encoder={encoder!r}, captions=dict(noise_level=True))
    train = dict(steps=2, batch_size=4, lr=1e-3, checkpoint_every=2, log_every=1, evaluate_every=2)
    return ConfigDict(dict(name="t2i", flow=flow, data=data, train=train, sample=dict(num=2, guidance=1.0),
                           evaluate=dict(held_out=2, draws=1)))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Photos with captions, a T5, an experiment on both, and a run of it."""
    root = tmp_path_factory.mktemp("t2i")
    for split in ("train", "test"):
        write_photos(root / "photos" / split, {"cat": [(8, 8)] * 4, "dog": [(8, 8)] * 3})
    write_t5(root / "t5")
    (root / "c.py").write_text(CONFIG.format(photos=str(root / "photos"), encoder=str(root / "t5")))
    assert main(["train", "--config", str(root / "c.py"), "--workdir", str(root / "run"), "--quiet"]) == 0
    return root


@pytest.fixture(scope="module")
def config(home):
    return load_config(str(home / "c.py"))


def test_training_reads_captions_and_drops_some_for_the_empty_one(home, config):
    loader = train_loader(open_source(config.data, "train", flow=config.flow), 16, 0)
    batch = next(loader)
    loader.close()
    assert batch["text"].shape == (16, LENGTH)
    text = load_text(config)
    cond = np.asarray(jax.jit(lambda b: batch_condition(jax.random.key(1), b, config, text))(batch))
    whole, _ = text.states_of(batch["text"])
    empty = text_states(config, [""])[0]
    assert np.abs(empty).sum() > 0  # unlike that of words
    dropped = np.array([np.allclose(row, empty, atol=1e-5) for row in cond])
    assert 2 < dropped.sum() < 14
    np.testing.assert_allclose(cond[~dropped], whole[~dropped], atol=1e-5)
    metrics = (home / "run" / "metrics.csv").read_text()
    assert "held_out_bits_per_dim" in metrics and "nan" not in metrics


def test_captions_are_read_in_the_templates_of_the_training(config):
    assert prompts(config, ["a cat", ""]) == ["Noise Level 100:\na cat", ""]
    captions = dataclasses.replace(config.data.captions, fps=True, aspect=True, noise_level=False)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, captions=captions))
    message = prompts(other, ["a cat"], size=(8, 16), extended=True)
    assert message == ["An image:\n(extend) a cat\n\n in a 2:1 aspect ratio.\n"]
    reader = caption_reader(config)
    direct = reader.encoder.encode(reader.params, reader.encoder.ids(["Noise Level 100:\na cat"]))
    np.testing.assert_allclose(text_states(config, ["a cat"], reader), direct, atol=1e-5)


def test_windows_after_the_first_read_captions_of_clips_that_go_on(config):
    captions = dataclasses.replace(config.data.captions, fps=True)
    clips = dataclasses.replace(
        config.data, source="latents", frames=3, fps=8.0, captions=captions, flip=0.0, drop_first=0.5
    )
    flow = dataclasses.replace(config.flow, temporal_causal=True)
    video = dataclasses.replace(config, flow=flow, data=clips)
    plan = plan_videos(video, ["a cat", ""], frames=5)
    reader = caption_reader(config)

    def states(prompt):
        return reader.states_of(reader.encoder.ids([prompt]))[0][0]

    first = "Noise Level 100:\nA video with 8 fps:\n{}a cat\n"
    np.testing.assert_allclose(plan.text[0], states(first.format("")), atol=1e-5)
    np.testing.assert_allclose(plan.later_text[0], states(first.format("(extend) ")), atol=1e-5)
    for row in (plan.text[1], plan.later_text[1], plan.null[0]):
        np.testing.assert_allclose(row, states(""), atol=1e-5)


def test_guidance_leads_away_from_the_empty_caption(config):
    """So that it leaves images of the empty caption unchanged and moves others."""
    _, params = initialise(config.flow, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a + 0.05 * jnp.asarray(rng.normal(size=a.shape), a.dtype), params)
    text, null = text_states(config, ["", "a cat"]), text_states(config, [""])

    def draw(guidance):
        labels = np.full(2, -1)
        return sample(params, config, jax.random.key(1), labels, text=text, null=null, guidance=guidance).noisy

    plain, guided = draw(0.0), draw(3.0)
    np.testing.assert_allclose(guided[0], plain[0], rtol=1e-4, atol=1e-4)
    assert np.abs(guided[1] - plain[1]).max() > 1e-2


def test_states_computed_once_are_those_of_the_step(home, config):
    argv = ["--config", str(home / "c.py"), "--text-encoder", str(home / "t5"), "--dtype", "float32", "--quiet"]
    assert main(["encode", *argv, "--config.data.text_encoder=None", "--out", str(home / "latents")]) == 0
    data = dataclasses.replace(config.data, source="latents", path=str(home / "latents"), flip=0.0)
    source = open_source(data, "train", flow=config.flow)
    assert source.spec()["text_states"][0] == (LENGTH, WIDTH)
    expected = text_states(config, [source[0]["caption"].removeprefix("Noise Level 100:\n"), ""])
    np.testing.assert_allclose(source[0]["text_states"], expected[0], atol=1e-6)
    np.testing.assert_allclose(source.records.empty, expected[1], atol=1e-6)
    drawn = [source.draw(0, np.random.default_rng(seed)) for seed in range(12)]
    empty = [one for one in drawn if one["caption"] == ""]
    assert 0 < len(empty) < 12
    np.testing.assert_array_equal(empty[0]["text_states"], source.records.empty)
    options = {"labelled": False, "workdir": Path("run"), "warn": warnings.warn}
    on_latents = dataclasses.replace(config, data=dataclasses.replace(data, text_encoder=None))
    with pytest.raises(RequestError, match=r"run, which has no captions; text_encoder reads them"):
        image_captions(on_latents, ["a cat"], **options)
    message = image_captions(with_text_encoder(on_latents, home / "t5"), ["a cat"], **options)
    np.testing.assert_allclose(message.text, text_states(config, ["a cat"]), atol=1e-6)
    np.testing.assert_allclose(message.null[0], source.records.empty, atol=1e-6)


def test_pictures_of_captions(home, capfd):
    run = ["sample", "--workdir", str(home / "run"), "--candidates", "3"]
    (home / "captions.txt").write_text("a cat\na dog\n")
    argv = ["--caption", str(home / "captions.txt"), "--out", str(home / "p.npz"), "--json", str(home / "p.json")]
    assert main([*run, *argv]) == 0
    with np.load(home / "p.npz") as arrays:
        assert arrays["image"].shape == (2, 8, 8, 3) and list(arrays["caption"]) == ["a cat", "a dog"]
    figures = json.loads((home / "p.json").read_text())
    assert [one["caption"] for one in figures["kept"]] == ["a cat", "a dog"] and figures["guidance"] == 1.0
    assert main([*run, "--out", str(home / "none.png")]) == 0  # nothing said
    capfd.readouterr()
    for more, sentence in (
        (["--caption", "a cat", "--class", "1"], "--caption and --class are mutually exclusive"),
        (["--text-encoder", str(home / "photos"), "--caption", "a"], "photos must contain a config.json, and does not"),
        (["--image", "x.png"], "--image cannot be used with the run"),
    ):
        assert main([*run, *more, "--out", str(home / "no.png")]) == 2
        assert sentence in capfd.readouterr().err and not (home / "no.png").exists()


@pytest.mark.slow
def test_quality_of_pictures_of_captions(home, tmp_path, monkeypatch, capfd):
    """Captions are taken in turn; the CLIP score pairs each picture with its own."""
    (tmp_path / "my_clip.py").write_text(
        "import numpy as np\n"
        "def look(images):\n    return images.reshape(len(images), -1)[:, :5]\n"
        "def pairs(images, captions):\n"
        "    is_cat = np.asarray([caption == 'a cat' for caption in captions])\n"
        "    return np.stack([is_cat, ~is_cat], 1), np.tile([1.0, 0.0], (len(captions), 1))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = ["evaluate", "--workdir", str(home / "run"), "--metrics", "fid,clip", "--num-samples", "18", "--chunk", "16"]
    named = ["--features", "my_clip:look", "--clip", "my_clip:pairs", "--sample-batch", "9", "--out", "q"]
    message = ["--caption", "a cat", "--caption", "a dog", "--caption", "a bird"]
    assert main([*run, *named, *message, "--json", "q.json"]) == 0
    figures = json.loads((tmp_path / "q.json").read_text())
    assert figures["rows"][0]["clip"] == pytest.approx(100 / 3) and figures["rows"][0]["guidance"] == 1.0
    assert figures["rows"][0]["fid"] > 0 and figures["reference"]["pictures"] == 7
    capfd.readouterr()
    for argv, sentence in (
        ([*run, *named], "--metrics clip needs --caption"),
        ([*run[:3], "--metrics", "fid", *named[:2]], "--caption must be given for a run on captions, got none"),
        ([*run[:3], "--metrics", "fid", *message], "--features must name the feature network"),
        ([*run, *named, *message, "--caption", "a fox"], "samples whose captions is"),
    ):
        assert main(argv) == 2
        assert sentence in capfd.readouterr().err
    plan = json.loads((tmp_path / "q" / "plan.json").read_text())
    for name in ("clip_of_fixed_pictures", "text_states"):  # as another encoder, or another --clip, would have said
        changed = [[1.01 * value for value in row] for row in plan[name]]
        (tmp_path / "q" / "plan.json").write_text(json.dumps(plan | {name: changed}))
        assert main([*run, *named, *message]) == 2
        assert f"samples whose {name} is" in capfd.readouterr().err


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["flow.text_dim=8"], "flow.text_dim must be the 12 channels of the text states of .*t5, got 8"),
        (["data.text_encoder=gone"], "model gone must be an existing folder"),
        (["data.source=npz"], r"data.text_encoder requires captions, and data.source \['npz'\] has none"),
        (["flow.text_dim=0", "flow.text_length=0"], "data.text_encoder needs flow.text_dim above 0, got 0"),
        (["data.text_encoder="], "text_encoder must be None or the path of a folder, got ''"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(home, capfd, overrides, sentence):
    argv = ["train", "--config", str(home / "c.py"), "--workdir", str(home / "bad"), "--quiet"]
    assert main([*argv, *(f"--config.{one}" for one in overrides)]) == 2
    error = capfd.readouterr().err
    assert re.search(sentence, error), error
    assert not (home / "bad").exists()
