"""The T5 encoder and its tokenizer."""

import json

import jax
import numpy as np
import pytest
from pretrained_files import SPIECE, t5_config, t5_tensors, write_model, write_t5
from safetensors.numpy import load_file, save_file

from starflow_jax.models.text import load_text_encoder
from starflow_jax.models.text.states import states_of
from starflow_jax.models.text.t5 import T5Config, distance_buckets
from starflow_jax.models.text.tokenizer import Tokenizer, read_tokenizer
from starflow_jax.porting.tensor_names import Entry
from starflow_jax.tensor_formats.tensor_writing import write_tensors

CAPTIONS = ["a corgi dog looks at the camera", "", "a cat"]


def encode(encoder, params, captions):
    return np.asarray(jax.jit(encoder.encode)(params, encoder.ids(captions)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("t5"))


def test_room_after_a_caption_changes_nothing(folder):
    states = [encode(*load_text_encoder(folder, length), CAPTIONS) for length in (24, 40)]
    np.testing.assert_allclose(states[1][:, :24], states[0], atol=1e-5)
    lengths = (load_text_encoder(folder, 24)[0].ids(CAPTIONS) != 0).sum(axis=1)
    assert lengths[1] == 1  # the empty caption is its end
    for row, length in zip(states[0], lengths, strict=True):
        assert not row[length:].any() and (np.abs(row[:length]).sum(axis=1) > 0).all()


def test_a_long_caption_keeps_its_beginning_and_its_end_mark(folder):
    whole, cut = (load_text_encoder(folder, length)[0].ids(CAPTIONS[:1])[0] for length in (40, 6))
    np.testing.assert_array_equal(cut[:5], whole[:5])
    assert cut[5] == 1 and list(whole).count(1) == 1


def test_shards_and_the_encoder_alone_are_the_same_model(folder, tmp_path):
    encoder, params = load_text_encoder(folder, 8)
    config = t5_config()
    alone = {name: value for name, value in t5_tensors(config).items() if not name.startswith("decoder")}
    alone["encoder.embed_tokens.weight"] = alone.pop("shared.weight")
    write_model(tmp_path, config, alone, shards=3)
    (tmp_path / "spiece.model").write_bytes(SPIECE.read_bytes())
    other, values = load_text_encoder(tmp_path, 8)
    assert other == encoder and hash(other) == hash(encoder)
    jax.tree.map(np.testing.assert_array_equal, values, params)


def test_layers_with_equal_biases_share_one(folder, tmp_path):
    """UMT5 has a table a layer; with the same numbers in each it is T5."""
    config = t5_config(model_type="umt5")
    tensors, shared = t5_tensors(config), t5_tensors(t5_config())
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    tensors |= shared | {bias.format(layer): shared[bias.format(0)] for layer in range(2)}
    write_model(tmp_path, config, tensors)
    (tmp_path / "spiece.model").write_bytes(SPIECE.read_bytes())
    one, other = (encode(*load_text_encoder(path, 16), CAPTIONS) for path in (folder, tmp_path))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_bfloat16_products_change_little(folder):
    exact, rough = (encode(*load_text_encoder(folder, 16, dtype), CAPTIONS) for dtype in ("float32", "bfloat16"))
    assert rough.dtype == np.float32
    error = np.linalg.norm(exact - rough) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.05


def test_buckets_tell_near_distances_apart_and_both_sides():
    buckets = distance_buckets(300, 32, 128)
    row = buckets[150]
    assert (np.diff(row[151:]) >= 0).all() and (np.diff(row[:151]) <= 0).all()  # they grow with the distance
    assert len(set(row[143:158])) == 15  # 7 before, itself, 7 behind
    assert row[150] == 0 and row[:23].max() == row[:23].min() == 15 and row[278:].min() == 31
    np.testing.assert_array_equal(buckets[1:, 1:], buckets[:-1, :-1])  # of the distance alone


def test_every_different_caption_is_encoded_once(folder):
    encoder, params = load_text_encoder(folder, 12)
    calls = []

    def counted(ids):
        calls.append(len(ids))
        return np.asarray(encode_once(params, ids))

    encode_once = jax.jit(encoder.encode)
    ids = encoder.ids(["a cat", "", "a cat", "a dog", ""])
    empty, known = states_of(counted, ids[1:2], batch_size=2)
    states, known = states_of(counted, ids, known, batch_size=2)
    assert calls == [2, 2] and len(known) == 3
    np.testing.assert_allclose(states, encode_once(params, ids), atol=1e-6)
    np.testing.assert_array_equal(states[4], empty[0])


def test_tokenizer_json_is_cut_padded_and_marked_alike(tmp_path):
    import tokenizers

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "cat": 4, "dog": 5}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.enable_padding(length=3)  # which the file asks for, and which must not count
    words.enable_truncation(2)
    words.save(str(tmp_path / "tokenizer.json"))
    names = ("spiece.model", "tokenizer.json")
    right = read_tokenizer(tmp_path, names, 4, 6, last=1)
    np.testing.assert_array_equal(right.ids(["a cat", "", "a cat a dog a"]), [[3, 4, 1, 0], [1, 0, 0, 0], [3, 4, 3, 1]])
    left = read_tokenizer(tmp_path, names, 4, 6, first=2, side="left")
    ids = left.ids(["a zebra", "", "dog cat a dog"])
    np.testing.assert_array_equal(ids, [[0, 2, 3, 2], [0, 0, 0, 2], [2, 5, 4, 3]])
    np.testing.assert_array_equal(left.mask(ids), [[0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]])
    with pytest.raises(ValueError, match=r"contains the token \[5\], beyond the vocabulary of 5"):
        read_tokenizer(tmp_path, names, 4, 5, last=1).ids(["dog"])


def test_fillings_inside_a_caption_are_part_of_it():
    ids = np.array([[5, 0, 6, 1, 0, 0]])
    np.testing.assert_array_equal(Tokenizer(6, "", 9, last=1).mask(ids), [[1, 1, 1, 1, 0, 0]])


def damaged(folder, tmp_path, what):
    """A copy of the folder with one thing wrong."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    tensors = t5_tensors(t5_config())
    index = tmp_path / "model.safetensors.index.json"
    if what == "no tokenizer":
        (tmp_path / "spiece.model").unlink()
    elif what == "tokenizer of noise":
        (tmp_path / "spiece.model").write_bytes(b"\x08\xff" * 100)
    elif what == "no tensor":
        save_file({k: v for k, v in tensors.items() if ".o.weight" not in k}, tmp_path / "model.safetensors")
    elif what == "shape":
        config["d_ff"] = 24
    elif what == "nan":
        save_file(tensors | {"shared.weight": tensors["shared.weight"] * np.nan}, tmp_path / "model.safetensors")
    elif what == "cut":
        (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8])
    elif what in ("kind", "silu", "sizes"):
        config |= {"kind": {"model_type": "bert"}, "silu": {"feed_forward_proj": "gated-silu"}}.get(
            what, {"num_layers": "many"}
        )
    elif what == "outside":
        (tmp_path / "model.safetensors").unlink()
        index.write_text(json.dumps({"weight_map": {"shared.weight": "../x.safetensors"}}))
    elif what == "list":
        (tmp_path / "config.json").write_text("[]")
        return tmp_path
    elif what == "no tensors":
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    "what, sentence",
    [
        ("no tokenizer", r"must contain spiece.model or tokenizer.json"),
        ("tokenizer of noise", r"tokenizer .*spiece.model cannot be read"),
        ("no tensor", r"must contain the tensor encoder.block.0.layer.0.SelfAttention.o.weight"),
        ("shape", r"must have shape \[12, 24\], got \[12, 20\]"),
        ("nan", r"shared.weight of .* must contain finite numbers"),
        ("cut", r"model.safetensors "),
        ("kind", r"model_type of .* must be one of 'gemma2', .*'t5', 'umt5', got 'bert'"),
        ("silu", r"feed_forward_proj relu or gated-gelu, got 'gated-silu'"),
        ("sizes", r"must give num_layers as an integer above 0, got 'many'"),
        ("outside", r"names '../x.safetensors', which is not a file name in its folder"),
        ("list", r"must contain a JSON object, got list"),
        ("no tensors", r"model.safetensors does not exist, nor .*"),
    ],
)
def test_damaged_folders_are_refused_in_a_sentence(folder, tmp_path, what, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_text_encoder(damaged(folder, tmp_path, what), 8)


def test_weights_that_were_pickled(folder, tmp_path):
    """`pytorch_model.bin`, as older folders have it."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").unlink()
    tensors = load_file(folder / "model.safetensors")
    entries = [Entry(name, name, None, v.shape, v.shape, v.dtype) for name, v in tensors.items()]
    write_tensors(tmp_path / "pytorch_model.bin", entries, tensors.values())
    jax.tree.map(np.testing.assert_array_equal, load_text_encoder(tmp_path, 8)[1], load_text_encoder(folder, 8)[1])


def test_no_room_for_the_marks_is_refused(folder):
    with pytest.raises(ValueError, match="text_length must be an integer >= 2, got 1"):
        load_text_encoder(folder, 1)


@pytest.mark.parametrize("kind", ["relu", "gated-gelu", "umt5"])
def test_the_states_of_transformers(tmp_path, kind):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    changes = {"model_type": "umt5"} if kind == "umt5" else {"feed_forward_proj": kind}
    write_t5(tmp_path, num_layers=3, relative_attention_max_distance=40, **changes)
    cls = transformers.UMT5EncoderModel if kind == "umt5" else transformers.T5EncoderModel
    model = cls.from_pretrained(tmp_path).eval()
    ids = np.random.default_rng(1).integers(2, 83, (3, 200)).astype(np.int32)
    ids[1, 20:], ids[2, 150:] = 0, 0
    with torch.no_grad():
        theirs = model(torch.tensor(ids).long(), attention_mask=torch.tensor(ids != 0)).last_hidden_state.numpy()
    encoder, params = load_text_encoder(tmp_path, 200)
    assert encoder.config == T5Config.from_json(json.loads((tmp_path / "config.json").read_text()))
    ours = np.asarray(jax.jit(encoder.encode)(params, ids))
    expected = theirs * (ids != 0)[:, :, None]
    assert np.linalg.norm(ours - expected) < 1e-5 * np.linalg.norm(expected)


def test_the_ids_of_transformers(folder):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.T5Tokenizer.from_pretrained(folder, extra_ids=0)
    captions = [*CAPTIONS, "a cat playing piano, " * 5]
    for length in (6, 30):
        theirs = tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="np")
        encoder, _ = load_text_encoder(folder, length)
        ids = encoder.ids(captions)
        np.testing.assert_array_equal(ids, theirs["input_ids"])
        np.testing.assert_array_equal(encoder.tokenizer.mask(ids), theirs["attention_mask"])
