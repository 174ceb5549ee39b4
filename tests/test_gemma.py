"""Gemma's token embeddings as text, and its layers in a deep block."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained_files import gemma_config, write_gemma, write_model
from safetensors.numpy import load_file

from starflow_jax.core.config import DataConfig, ExperimentConfig, FlowConfig, TrainConfig
from starflow_jax.flows.parameters import abstract
from starflow_jax.kernels.attention import Causal
from starflow_jax.models.text import load_text_encoder
from starflow_jax.nn.rope import line_positions, rotation
from starflow_jax.nn.transformer import Transformer
from starflow_jax.porting import flow_config, from_torch
from starflow_jax.porting.gemma_layers import differences, language_model_config, read_deep_block
from starflow_jax.training.checkpoints.initial_state import check_start, first_state
from starflow_jax.training.step.train_step import init_state


def flow_of(folder, **changes):
    model = language_model_config(folder)
    return FlowConfig(
        channels=2, image_size=3, width=20, head_dim=20, num_blocks=2, layers_per_block=(1, model.layers), rope=True,
        sos=True, text_dim=model.width, text_length=5, cond_top_only=True, language_model=model, **changes,
    )  # fmt: skip


def hidden_states(folder, ids):
    """What the layers of a folder compute in a deep block's transformer, on the folder's token embeddings."""
    from flax import nnx

    config = flow_of(folder).language_model
    encoder, values = load_text_encoder(folder, ids.shape[1])
    definition = nnx.split(nnx.eval_shape(lambda: Transformer(config, jax.random.key(0))))[0]
    params = read_deep_block(folder, flow_of(folder))

    def run(params, values):
        table = rotation(line_positions(ids.shape[1]), config.head_dim, config.rope_pairs)
        return nnx.merge(definition, params)(encoder.encode(values, ids), rotation=table, visibility=Causal())[0]

    return np.asarray(jax.jit(run)(params, values))


@pytest.mark.parametrize(
    "kind, prefix", [("gemma3_text", "model."), ("gemma2", "model."), ("gemma3", "language_model.model.")]
)
def test_the_hidden_states_of_transformers(tmp_path, kind, prefix):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    write_gemma(tmp_path, "gemma2" if kind == "gemma2" else "gemma3_text", prefix=prefix)
    ids = np.random.default_rng(0).integers(1, 83, (2, 9)).astype(np.int32)
    write_gemma(tmp_path / "theirs", "gemma2" if kind == "gemma2" else "gemma3_text")
    cls = transformers.Gemma2Model if kind == "gemma2" else transformers.Gemma3TextModel
    model = cls.from_pretrained(tmp_path / "theirs", attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = model(torch.tensor(ids).long()).last_hidden_state.numpy()
    ours = hidden_states(tmp_path, ids)
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)


def test_a_recorded_deep_block_in_gemmas_layout_is_the_same(goldens_dir, tmp_path):
    """The recorded flow's deep block, written as a Gemma 3, comes back number by number."""
    recorded = goldens_dir / "starflow_gemma_lm"
    flow = flow_config(json.loads((recorded / "config.json").read_text()))
    weights, model = load_file(recorded / "weights.safetensors"), flow.language_model
    tensors = {"model.norm.weight": weights["blocks.1.final_norm.weight"]}
    names = {
        "attention.norm": "input_layernorm", "attention.post_norm": "post_attention_layernorm",
        "attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm",
        "attention.proj": "self_attn.o_proj", "mlp.norm": "pre_feedforward_layernorm",
        "mlp.post_norm": "post_feedforward_layernorm", "mlp.gate_proj": "mlp.gate_proj",
        "mlp.up_proj": "mlp.up_proj", "mlp.down_proj": "mlp.down_proj",
    }  # fmt: skip
    for layer in range(model.layers):
        of, to = f"blocks.1.attn_blocks.{layer}", f"model.layers.{layer}"
        tensors |= {f"{to}.{theirs}.weight": weights[f"{of}.{ours}.weight"] for ours, theirs in names.items()}
        places = np.cumsum([model.heads, model.kv_heads]) * model.head_dim
        parts = np.split(weights[f"{of}.attention.qkv.weight"], places)
        for name, part in zip("qkv", parts, strict=True):
            tensors[f"{to}.self_attn.{name}_proj.weight"] = np.ascontiguousarray(part)
    tensors["model.embed_tokens.weight"] = np.zeros((83, model.width), np.float32)
    config = gemma_config(
        hidden_size=model.width, intermediate_size=model.width * model.expansion, num_hidden_layers=model.layers,
        num_attention_heads=model.heads, num_key_value_heads=model.kv_heads, head_dim=model.head_dim,
        query_pre_attn_scalar=model.head_dim,
    )  # fmt: skip
    write_model(tmp_path, config, tensors)
    expected = from_torch(weights, abstract(flow)[1])["blocks"]["1"]["transformer"]
    jax.tree.map(np.testing.assert_array_equal, read_deep_block(tmp_path, flow), expected)


def test_shards_of_a_model_that_sees_are_the_same_layers(tmp_path):
    one = write_gemma(tmp_path / "one")
    config = gemma_config()
    other = write_gemma(tmp_path / "other", prefix="model.language_model.", shards=3)
    (other / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
    assert language_model_config(one) == language_model_config(other)
    found = [read_deep_block(folder, flow_of(folder)) for folder in (one, other)]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_token_embeddings_are_scaled_rows_after_the_filling(tmp_path):
    encoder, params = load_text_encoder(write_gemma(tmp_path), 6)
    ids = encoder.ids(["a cat", ""])
    assert (ids[0, :2] == 0).all() and (ids[1] == [0, 0, 0, 0, 0, 2]).all()
    states = np.asarray(encoder.encode(params, ids))
    assert not states[0, :2].any() and encoder.dim == 12
    np.testing.assert_allclose(states[0, 2:], params["embedding"][ids[0, 2:]] * 12**0.5, rtol=1e-6)


def test_differences_are_said_and_allowed_only_if_asked_for(tmp_path):
    """What the released ones do and a block does not."""
    gemma2 = write_gemma(tmp_path / "2", "gemma2", attn_logit_softcapping=50.0, sliding_window=6)
    assert differences(gemma2, 14) == (
        "it caps attention logits at 50",
        "1 layers see 6 of 14 tokens",
    )
    assert differences(gemma2, 6) == ("it caps attention logits at 50",)
    types = ["sliding_attention", "full_attention"]
    gemma3 = write_gemma(tmp_path / "3", layer_types=types, rope_theta=1e6, rope_scaling={"factor": 8.0})
    assert differences(gemma3, 14) == ("1 layers have rotary positions of base 1e+06, scaled",)
    newer = {"full_attention": {"rope_theta": 1e6, "rope_type": "linear"}, "sliding_attention": {"rope_theta": 1e4}}
    named = write_gemma(tmp_path / "4", layer_types=types, rope_parameters=newer)
    assert differences(named, 14) == differences(gemma3, 14)
    with pytest.raises(ValueError, match=r"does not compute what .* does \(1 layers have rotary positions"):
        read_deep_block(gemma3, flow_of(gemma3))
    layers = read_deep_block(gemma3, flow_of(gemma3), differs=True)
    jax.tree.map(np.testing.assert_array_equal, layers, read_deep_block(write_gemma(tmp_path / "5"), flow_of(gemma3)))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"intermediate_size": 30}, "intermediate_size as a multiple of hidden_size=12 for a deep block, got 30"),
        ({"hidden_activation": "silu"}, "hidden_activation as 'gelu_pytorch_tanh' for a deep block, got silu"),
        ({"attention_bias": True}, "attention_bias as False for a deep block, got True"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention as False"),
        ({"model_type": "llama"}, "must be of model_type gemma2, gemma3, gemma3_text, got 'llama'"),
        ({"head_dim": -8}, "head_dim as an integer above 0, got -8"),
    ],
)
def test_what_a_block_cannot_be_is_refused(tmp_path, changes, sentence):
    write_gemma(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(gemma_config() | changes))
    with pytest.raises(ValueError, match=sentence):
        language_model_config(tmp_path)


def test_another_shape_than_the_flows_is_refused(tmp_path):
    folder = write_gemma(tmp_path)
    flow = flow_of(folder)
    other = dataclasses.replace(flow, language_model=dataclasses.replace(flow.language_model, kv_heads=4))
    with pytest.raises(ValueError, match=r"flow.language_model must be TransformerConfig\(.*kv_heads=2"):
        read_deep_block(folder, other)


def test_layers_fit_the_flow(tmp_path):
    folder = write_gemma(tmp_path)
    expected = abstract(flow_of(folder))[1]["blocks"]["1"]["transformer"]
    found = read_deep_block(folder, flow_of(folder))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(lambda leaf: leaf.shape, expected)


def test_a_run_starts_from_the_layers_and_from_the_seed_elsewhere(tmp_path):
    folder = write_gemma(tmp_path)
    train = TrainConfig(steps=2, batch_size=2, lr=1e-3, ema=0.9, language_model=str(folder))
    data = DataConfig(source="latents", path="none", noise="gaussian", noise_std=0.1)
    config = ExperimentConfig(name="lm", flow=flow_of(folder), data=data, train=train)
    state = first_state(config, None, None)
    drawn = init_state(dataclasses.replace(config, train=dataclasses.replace(train, language_model=None)))
    layers = read_deep_block(folder, config.flow)
    for params, others in ((state.params, drawn.params), (state.ema, drawn.ema)):
        jax.tree.map(np.testing.assert_array_equal, params["blocks"]["1"].pop("transformer"), layers)
        others["blocks"]["1"].pop("transformer")
        jax.tree.map(np.testing.assert_array_equal, params, others)
    write_gemma(tmp_path, attn_logit_softcapping=50.0)
    with pytest.raises(ValueError, match=r"it caps attention logits at 50\); train.language_model_differs=True"):
        check_start(config)
    with pytest.raises(ValueError, match=r"train.language_model needs flow.language_model"):
        dataclasses.replace(config, flow=dataclasses.replace(config.flow, language_model=None))
