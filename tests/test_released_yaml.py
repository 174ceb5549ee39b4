"""Released configuration files, and folders to draw from."""

import dataclasses
import json
from pathlib import Path

import pytest

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import load_config
from starflow_jax.core.config.build import to_json
from starflow_jax.porting.released_yaml import apply_released, read_released
from starflow_jax.sampling.model_folder import AssembleRequest, assemble, load_model_folder

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
IMAGE = """
arguments:
  img_size: 256
  channels: 3072
  layers_per_block: [2, 2, 2, 2, 2, 24]
  head_dim: 64
  txt_size: 128
  rope: 1
  sos: 1
  use_softplus: 1
  use_final_norm: 1
  soft_clip: 4
  seq_order: L2R
  cond_top_only: 1
  noise_std: 0.3
  drop_label: 0.1
  lr: 6.4e-5
  batch_size: 1024
  latent_norm_regularization: 1e-4
  cfg: 3.6
  jacobi: 1
  jacobi_th: 0.001
"""
VIDEO = """
img_size: 640
vid_size: '81:16'
vae: Wan2.2:0.6
channels: 3072
top_block_channels: 4096
head_dim: 64
layers_per_block: 2 2 2 2 2 24
txt_size: 256
pt_seq_len: 32
temporal_causal: 2
shallow_block_local: 1
learnable_self_denoiser: 1
conditional_denoiser: 1
denoiser_window: 10
noise_std: 0.5
fps_cond: 1
grad_skip: 1
cfg: 3.5
"""


def released(tmp_path, text):
    (path := tmp_path / "released.yaml").write_text(text)
    return read_released(path)


@pytest.mark.parametrize(("text", "experiment"), [(IMAGE, "starflow_3b_t2i.py"), (VIDEO, "starflow_v_7b.py")])
def test_a_released_file_says_what_the_experiment_says(tmp_path, text, experiment):
    config = load_config(str(EXPERIMENTS / experiment))
    found = released(tmp_path, text)
    assert found.unknown == ()
    assert apply_released(config, found).flow == config.flow
    # and from another size of the same kind: what the file says is taken from the file
    tiny = load_config(f"{EXPERIMENTS / experiment}:tiny")
    flow = apply_released(tiny, found).flow
    names = ("image_size", "channels", "width", "num_blocks", "layers_per_block", "text_length")
    assert [getattr(flow, name) for name in names] == [getattr(config.flow, name) for name in names]


def test_what_has_no_meaning_is_named_and_what_is_not_known_is_refused(tmp_path, capsys):
    found = released(tmp_path, IMAGE + "  magic: 1\n  fsdp: 1\n")
    assert found.unknown == ("magic",)
    assert set(found.without_meaning) == {"fsdp", "jacobi_th"}
    arguments = ["port", "--from", "a", "--config", f"{EXPERIMENTS / 'starflow_3b_t2i.py'}", "--model-config"]
    arguments += [str(found.path), "--workdir", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert "unknown arguments: magic; --ignore-unknown" in capsys.readouterr().err
    assert main([*arguments, "--ignore-unknown"]) == 2
    assert "fsdp of" in (printed := capsys.readouterr().err) and "a cannot be read" in printed


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "must contain arguments"),
        ("- 1\n- 2\n", "must contain arguments"),
        ("a: !!python/object/apply:os.system ['touch ran']", "not YAML of plain values"),
        ("a: {b: {c: 1}}", "plain values"),
        ("x: {lr: 1}\ny: {lr: 2}", "gives lr twice"),
        ("lr: much", "lr must be a number"),
        ("img_size: 7", "img_size must be pixels"),
        ("vid_size: long", "vid_size must be FRAMES:RATE"),
        ("layers_per_block: [a]", "layers_per_block must be integers"),
        ("sos: [1]", "sos must be 0 or 1"),
        ("channels: 77", "head_dim must divide width"),
        ("vae: magic", "vae must begin with one of"),
    ],
)
def test_values_that_are_none_get_a_sentence(tmp_path, text, sentence):
    config = load_config(str(EXPERIMENTS / "starflow_3b_t2i.py"))
    with pytest.raises(ValueError, match=sentence) as caught:
        apply_released(config, released(tmp_path, text))
    assert str(tmp_path / "released.yaml") in str(caught.value)


@pytest.fixture
def parts(tmp_path):
    """A run, an autoencoder and a text encoder, as far as their files' names go."""
    flow, autoencoder, encoder = (tmp_path / name for name in ("run", "vae", "t5"))
    for folder in (flow / "checkpoints" / "0" / "params", autoencoder, encoder):
        folder.mkdir(parents=True)
    (flow / "config.json").write_text(to_json(load_config(f"{EXPERIMENTS / 'starflow_3b_t2i.py'}:tiny")))
    (flow / "checkpoints" / "0" / "params" / "data").write_bytes(b"numbers")
    for folder in (autoencoder, encoder):
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"")
    (encoder / "spiece.model").write_bytes(b"")
    return flow, autoencoder, encoder


@pytest.mark.parametrize("place", ["link", "copy"])
def test_a_model_folder_holds_all_three_parts(tmp_path, parts, place):
    options = zip(("--flow", "--autoencoder", "--text-encoder"), map(str, parts), strict=True)
    options = [text for pair in options for text in pair]
    assert main(["port", "--assemble", str(tmp_path / "model"), *options, "--place", place]) == 0
    model = load_model_folder(tmp_path / "model")
    assert model.flow == tmp_path / "model" / "flow"
    assert (model.autoencoder.kind, model.text_encoder.kind) == ("diffusers", "huggingface")
    data = model.flow / "checkpoints" / "0" / "params" / "data"
    assert data.read_bytes() == b"numbers"
    assert (data.stat().st_nlink == 2) == (place == "link")
    (tmp_path / "model").rename(tmp_path / "elsewhere")  # paths are its own
    assert load_model_folder(tmp_path / "elsewhere").autoencoder.path.is_dir()
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.flow = tmp_path


def test_an_autoencoder_may_be_one_file(tmp_path, parts):
    for name, kind in (("Wan2.2_VAE.pth", "wan2.2"), ("pca.npz", "npz")):
        (tmp_path / name).write_bytes(b"")
        model = assemble(AssembleRequest(tmp_path / kind, parts[0], tmp_path / name, parts[2]))
        assert model.autoencoder.kind == kind


def test_a_model_folder_that_is_none_is_refused(tmp_path, parts):
    assemble(AssembleRequest(tmp_path / "model", *parts))
    file = tmp_path / "model" / "model.json"
    good = json.loads(file.read_text())
    (tmp_path / "model" / "out").symlink_to(tmp_path / "run")
    for changes, sentence in (
        ({"format": "other"}, "must have"),
        ({"version": 2}, "must be of version 1"),
        ({"more": 1}, "must have the fields"),
        ({"flow": "../run"}, "inside the folder"),
        ({"flow": str(parts[0])}, "inside the folder"),
        ({"flow": "out"}, "inside the folder"),
        ({"flow": 3}, "inside the folder"),
        ({"flow": "nothing"}, "is missing"),
        ({"flow": "autoencoder"}, "not a working folder of a run"),
        ({"autoencoder": {"kind": "npz", "path": "autoencoder"}}, "is 'diffusers' and not 'npz'"),
        ({"text_encoder": "text_encoder"}, "must have a kind and a path"),
    ):
        file.write_text(json.dumps(good | changes))
        with pytest.raises(ValueError, match=sentence):
            load_model_folder(tmp_path / "model")
    file.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_model_folder(tmp_path / "model")
    with pytest.raises(ValueError, match="is not a model folder"):
        load_model_folder(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer"):
        assemble(AssembleRequest(tmp_path / "other", parts[0], parts[1], parts[1]))
    with pytest.raises(ValueError, match=r"autoencoder .* must be"):
        assemble(AssembleRequest(tmp_path / "other", parts[0], tmp_path / "nothing", parts[2]))
    assert not (tmp_path / "other").exists()
