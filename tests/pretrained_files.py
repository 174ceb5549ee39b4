"""Tiny random models in Hugging Face's layout, written with numpy and the safetensors library."""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SPIECE = Path(__file__).parent / "goldens" / "neighbours" / "t5_encoder" / "spiece.model"


def write_model(folder: Path, config: dict, tensors: dict, shards: int = 1) -> Path:
    """config.json and the tensors, in one file or in shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    files = {name: f"model-{place % shards:05d}.safetensors" for place, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name, own in files.items() if own == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def t5_config(**changes) -> dict:
    return {
        "model_type": "t5", "d_model": 12, "d_kv": 4, "num_heads": 2, "d_ff": 20, "num_layers": 2, "vocab_size": 83,
        "feed_forward_proj": "gated-gelu", "pad_token_id": 0, "eos_token_id": 1, "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, **changes,
    }  # fmt: skip


def t5_tensors(config: dict, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    width, inner, hidden = config["d_model"], config["d_kv"] * config["num_heads"], config["d_ff"]

    def draw(*shape, std=1.0, mean=0.0):
        return (mean + std * rng.normal(size=shape)).astype(np.float32)

    tensors = {"shared.weight": draw(config["vocab_size"], width), "decoder.unread.weight": draw(3)}
    up = ("wi_0", "wi_1") if config["feed_forward_proj"] == "gated-gelu" else ("wi",)
    for layer in range(config["num_layers"]):
        attention, feed = f"encoder.block.{layer}.layer.0", f"encoder.block.{layer}.layer.1"
        for name in "qkv":
            tensors[f"{attention}.SelfAttention.{name}.weight"] = draw(inner, width, std=width**-0.5)
        tensors[f"{attention}.SelfAttention.o.weight"] = draw(width, inner, std=inner**-0.5)
        if layer == 0 or config["model_type"] == "umt5":
            shape = (config["relative_attention_num_buckets"], config["num_heads"])
            tensors[f"{attention}.SelfAttention.relative_attention_bias.weight"] = draw(*shape)
        for name in up:
            tensors[f"{feed}.DenseReluDense.{name}.weight"] = draw(hidden, width, std=width**-0.5)
        tensors[f"{feed}.DenseReluDense.wo.weight"] = draw(width, hidden, std=hidden**-0.5)
        for norm in (attention, feed):
            tensors[f"{norm}.layer_norm.weight"] = draw(width, std=0.2, mean=1.0)
    tensors["encoder.final_layer_norm.weight"] = draw(width, std=0.2, mean=1.0)
    return tensors


def write_t5(folder: Path, *, shards: int = 1, seed: int = 0, **changes) -> Path:
    """A T5 with the recorded SentencePiece model of 83 pieces."""
    config = t5_config(**changes)
    write_model(folder, config, t5_tensors(config, seed), shards)
    shutil.copyfile(SPIECE, folder / "spiece.model")
    return folder


def gemma_config(kind: str = "gemma3_text", **changes) -> dict:
    """A language model that computes what a deep block does: one base of rotary positions, no soft cap."""
    config = {
        "model_type": kind, "hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "query_pre_attn_scalar": 5, "vocab_size": 83,
        "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "attention_bias": False, "sliding_window": 64,
        "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "rope_theta": 10000.0,
        "attn_logit_softcapping": None,
    }  # fmt: skip
    return config | ({} if kind == "gemma2" else {"rope_local_base_freq": 10000.0}) | changes


def gemma_tensors(config: dict, prefix: str = "model.", seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    width, hidden, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    def draw(*shape, std=None):
        return ((shape[-1] ** -0.5 if std is None else std) * rng.normal(size=shape)).astype(np.float32)

    tensors = {"embed_tokens": draw(config["vocab_size"], width, std=1.0), "norm": draw(width, std=0.2)}
    for layer in (f"layers.{place}" for place in range(config["num_hidden_layers"])):
        for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            tensors[f"{layer}.self_attn.{name}_proj"] = draw(count * dim, width)
        tensors[f"{layer}.self_attn.o_proj"] = draw(width, heads * dim)
        if config["model_type"] != "gemma2":
            for name in ("q_norm", "k_norm"):
                tensors[f"{layer}.self_attn.{name}"] = draw(dim, std=0.2)
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            tensors[f"{layer}.{name}_layernorm"] = draw(width, std=0.2)
        for name in ("gate", "up"):
            tensors[f"{layer}.mlp.{name}_proj"] = draw(hidden, width)
        tensors[f"{layer}.mlp.down_proj"] = draw(width, hidden)
    return {f"{prefix}{name}.weight": value for name, value in tensors.items()}


def write_gemma(folder: Path, kind: str = "gemma3_text", *, prefix: str = "model.", shards: int = 1, **changes) -> Path:
    """A Gemma whose tokenizer is the recorded SentencePiece model."""
    config = gemma_config(kind, **changes)
    write_model(folder, config, gemma_tensors(config, prefix), shards)
    shutil.copyfile(SPIECE, folder / "tokenizer.model")
    return folder
