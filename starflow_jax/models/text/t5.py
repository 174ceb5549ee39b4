"""The encoder of T5 (arXiv 1910.10683), v1.0 or v1.1 (Flan: arXiv 2210.11416), and of UMT5 (arXiv 2304.09151).

Pre-norm layers with RMS norms (gain = weight, no centring, no biases), attention without scaling of the logits and
with a learned relative position bias, and an MLP with ReLU (v1.0) or a gated GELU (v1.1). The layers share one table
of relative biases; in UMT5 each layer has its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from starflow_jax.core.config.checks import check
from starflow_jax.core.registries import TEXT_ENCODERS
from starflow_jax.models.pretrained_folder import PretrainedFolder, open_pretrained, positive, token_id
from starflow_jax.models.text.protocol import Params
from starflow_jax.models.text.tokenizer import Tokenizer, read_tokenizer
from starflow_jax.nn.linear import Compute, Linear
from starflow_jax.sharding.layout import Layout, placed

# Added to the logits of padding keys. It is finite, so that the row of an empty caption is not NaN.
_MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of an encoder.

    Attributes:
      width: D; layers: number of layers; heads, head_dim: h and d of attention (h d may differ from D).
      hidden: channels of the MLP; vocabulary: rows of the embedding.
      gated: the MLP is down(gelu_tanh(gate(h)) * up(h)); else down(relu(up(h))).
      buckets, max_distance: number of buckets of the relative bias, and the distance of the last one.
      biases_per_layer: each layer has its own table of relative biases, as in UMT5.
      eps: epsilon of the norms.
    """

    width: int
    layers: int
    heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    gated: bool
    buckets: int = 32
    max_distance: int = 128
    biases_per_layer: bool = False
    eps: float = 1e-6

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> T5Config:
        """From the `config.json` of Hugging Face.

        Raises:
          ValueError: a field is missing or out of range, or the MLP is of another kind.
        """
        kind = config.get("feed_forward_proj", "relu")
        check(
            kind in ("relu", "gated-gelu"), f"config.json must give feed_forward_proj relu or gated-gelu, got {kind!r}"
        )
        eps = config.get("layer_norm_epsilon", 1e-6)
        check(isinstance(eps, float) and 0 < eps < 1, f"config.json must give layer_norm_epsilon above 0, got {eps!r}")
        buckets = positive(config, "relative_attention_num_buckets", 32)
        distance = positive(config, "relative_attention_max_distance", 128)
        check(
            buckets % 4 == 0 and distance > buckets // 4,
            f"config.json must give relative_attention_num_buckets as a multiple of 4 and a quarter of it below "
            f"relative_attention_max_distance, got {buckets} and {distance}",
        )
        return cls(
            width=positive(config, "d_model"),
            layers=positive(config, "num_layers"),
            heads=positive(config, "num_heads"),
            head_dim=positive(config, "d_kv"),
            hidden=positive(config, "d_ff"),
            vocabulary=positive(config, "vocab_size"),
            gated=kind == "gated-gelu",
            buckets=buckets,
            max_distance=distance,
            biases_per_layer=config.get("model_type") == "umt5",
            eps=eps,
        )


def distance_buckets(length: int, buckets: int, max_distance: int) -> Int[np.ndarray, "L L"]:
    """Bucket int32 [L, L] of the relative position of key j to query i; half of the buckets are for j > i.

    Each small distance has its own bucket; larger ones share buckets on a logarithmic scale (arXiv 1910.10683,
    section 2.1).
    """
    positions = np.arange(length)
    offset = positions[None] - positions[:, None]
    distance, half = np.abs(offset), buckets // 2
    exact = half // 2
    # In float32, whose rounding decides at the edges of buckets.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(max_distance / exact)
    )
    shared = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int32), half - 1)
    return (np.where(distance < exact, distance, shared) + half * (offset > 0)).astype(np.int32)


class _Norm(nnx.Module):
    """RMS norm in float32 with gain `weight`."""

    def __init__(self, width: int, eps: float):
        self.weight = nnx.Param(jnp.ones((width,)))
        self.eps = eps

    def __call__(self, h: jax.Array) -> jax.Array:
        h = h.astype(jnp.float32)
        return h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + self.eps) * self.weight[...]


class _Attention(nnx.Module):
    def __init__(self, config: T5Config, keys: jax.Array, compute: Compute):
        c = config
        self.norm = _Norm(c.width, c.eps)
        self.qkv = Linear(c.width, (c.heads, 3, c.head_dim), keys[0], name="qkv", bias=False, compute=compute)
        self.proj = Linear(c.heads * c.head_dim, c.width, keys[1], name="proj", bias=False, compute=compute)
        self.compute = compute

    def __call__(self, h: jax.Array, bias: jax.Array) -> jax.Array:
        """The branch's output for h [B, n, D]; bias: float32 [B or 1, h, n, n], very negative where masked."""
        layout, precision = self.compute.layout, self.compute.precision
        packed = placed(layout, self.qkv(self.norm(h)), "packed")
        query, key, value = (placed(layout, part, "heads") for part in packed.transpose(3, 0, 2, 1, 4))
        logits = jnp.einsum("bhqd,bhkd->bhqk", query, key, precision=precision, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits + bias, axis=-1).astype(value.dtype)
        mixed = jnp.einsum("bhqk,bhkd->bqhd", weights, value, precision=precision)
        return self.proj(placed(layout, mixed.reshape(*h.shape[:2], -1), "channels"))


class _MLP(nnx.Module):
    def __init__(self, config: T5Config, keys: jax.Array, compute: Compute):
        c = config
        self.norm = _Norm(c.width, c.eps)
        self.gate = Linear(c.width, c.hidden, keys[0], name="gate", bias=False, compute=compute) if c.gated else None
        self.up = Linear(c.width, c.hidden, keys[1], name="up", bias=False, compute=compute)
        self.down = Linear(c.hidden, c.width, keys[2], name="down", bias=False, compute=compute)
        self.layout = compute.layout

    def __call__(self, h: jax.Array) -> jax.Array:
        x = self.norm(h)
        hidden = placed(self.layout, self.up(x), "channels")
        if self.gate is None:
            return self.down(jax.nn.relu(hidden))
        return self.down(jax.nn.gelu(placed(self.layout, self.gate(x), "channels"), approximate=True) * hidden)


class _Layer(nnx.Module):
    def __init__(self, config: T5Config, key: PRNGKeyArray, compute: Compute):
        keys = jax.random.split(key, 5)
        self.attention = _Attention(config, keys[:2], compute)
        self.mlp = _MLP(config, keys[2:], compute)


class T5Stack(nnx.Module):
    """Embedding, stacked layers in one scan, and a final norm. Hidden states are float32."""

    def __init__(self, config: T5Config, key: PRNGKeyArray, compute: Compute = Compute()):  # noqa: B008 (frozen)
        c = config
        keys = jax.random.split(key, 3)
        self.embedding = nnx.Param(jax.random.normal(keys[0], (c.vocabulary, c.width)))
        tables = (c.layers if c.biases_per_layer else 1, c.buckets, c.heads)
        self.distance_bias = nnx.Param(0.1 * jax.random.normal(keys[1], tables))
        self.layers = jax.vmap(lambda k: _Layer(c, k, compute))(jax.random.split(keys[2], c.layers))
        self.final_norm = _Norm(c.width, c.eps)
        self.config = config
        self.compute = compute

    def __call__(self, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
        """States float32 [B, L, D] of token ids; keys outside of `mask` are masked."""
        c, layout = self.config, self.compute.layout
        buckets = distance_buckets(ids.shape[1], c.buckets, c.max_distance)
        mask_bias = jnp.where(mask, 0.0, _MASKED)[:, None, None]

        def bias_from(table: jax.Array) -> jax.Array:
            return table.astype(jnp.float32)[buckets].transpose(2, 0, 1)[None] + mask_bias

        tables = self.distance_bias[...]
        shared = None if c.biases_per_layer else bias_from(tables[0])

        def step(h: jax.Array, inputs: tuple[_Layer, jax.Array]) -> tuple[jax.Array, None]:
            layer, table = inputs
            bias = bias_from(table) if shared is None else shared
            h = placed(layout, h + layer.attention(h, bias).astype(jnp.float32), "hidden")
            return placed(layout, h + layer.mlp(h).astype(jnp.float32), "hidden"), None

        h = placed(layout, self.embedding[...][ids].astype(jnp.float32), "hidden")
        h, _ = jax.lax.scan(step, h, (self.layers, jnp.broadcast_to(tables, (c.layers, *tables.shape[1:]))))
        return self.final_norm(h)


@dataclasses.dataclass(frozen=True)
class T5Encoder:
    """A `TextEncoder`: the states of a T5 encoder, zeros at padding (specification, section 7).

    Attributes:
      config: sizes; tokenizer: the tokenizer, which defines L.
      dtype: of matrix products; norms, softmax and hidden states are float32.
      precision: of float32 matrix products on accelerators.
    """

    config: T5Config
    tokenizer: Tokenizer
    dtype: str = "float32"
    precision: str = "highest"

    @property
    def length(self) -> int:
        """L."""
        return self.tokenizer.length

    @property
    def dim(self) -> int:
        """D."""
        return self.config.width

    def ids(self, captions: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """Token ids int32 [B, L], ending with the end-of-text token."""
        return self.tokenizer.ids(captions)

    def known_ids(self, captions: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """Returns `ids(captions)`."""
        return self.tokenizer.ids(captions)

    def encode(
        self, params: Params, ids: Int[jax.Array | np.ndarray, "B L"], layout: Layout | None = None
    ) -> Float[Array, "B L D"]:
        """See `TextEncoder.encode`."""
        ids = jnp.asarray(ids)
        mask = self.tokenizer.mask(ids)
        definition, _ = _definition(self.config, Compute(self.dtype, self.precision, layout))
        stack = nnx.merge(definition, jax.tree.map(jnp.asarray, dict(params)))
        return stack(ids, mask) * mask[:, :, None]


def _definition(config: T5Config, compute: Compute) -> tuple[Any, Any]:
    """The definition of a stack, and its parameters as ShapeDtypeStructs."""
    definitions = []

    def build(key: PRNGKeyArray) -> Any:
        definition, state = nnx.split(T5Stack(config, key, compute))
        definitions.append(definition)
        return nnx.to_pure_dict(state)

    shapes = jax.eval_shape(build, jax.random.key(0))
    return definitions[0], shapes


def read_t5(folder: PretrainedFolder, config: T5Config, dtype: str = "float32") -> dict[str, Any]:
    """Reads the parameters of an encoder from a folder in the layout of Hugging Face, also of a complete T5.

    Args:
      folder: the files; config: sizes; dtype: of kernels and the embedding; norms and biases are float32.

    Raises:
      ValueError: a tensor is missing or of another shape.
    """
    c, exact, stored = config, np.dtype(np.float32), jnp.dtype(dtype)
    inner = c.heads * c.head_dim

    def read(name: str, *shape: int) -> np.ndarray:
        return folder.tensor(name, shape)

    def stacked(shape: tuple[int, ...], from_layer: Any, dtype: np.dtype[Any] = stored) -> np.ndarray:
        values = np.empty((c.layers, *shape), dtype)
        for layer in range(c.layers):
            values[layer] = from_layer(f"encoder.block.{layer}.layer")
        return values

    def qkv(block: str) -> np.ndarray:
        parts = [read(f"{block}.0.SelfAttention.{one}.weight", inner, c.width) for one in "qkv"]
        return np.stack([part.T.reshape(c.width, c.heads, c.head_dim) for part in parts], axis=2)

    def dense(name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        return {"kernel": stacked((inputs, outputs), lambda block: read(f"{block}.{name}.weight", outputs, inputs).T)}

    def norm(index: int) -> dict[str, np.ndarray]:
        name = f".{index}.layer_norm.weight"
        return {"weight": stacked((c.width,), lambda block: read(block + name, c.width), exact)}

    attention = {
        "norm": norm(0),
        "qkv": {"kernel": stacked((c.width, c.heads, 3, c.head_dim), qkv)},
        "proj": dense("0.SelfAttention.o", inner, c.width),
    }
    feed = "1.DenseReluDense"
    mlp = {"norm": norm(1), "down": dense(f"{feed}.wo", c.hidden, c.width)}
    if c.gated:
        mlp["gate"] = dense(f"{feed}.wi_0", c.width, c.hidden)
        mlp["up"] = dense(f"{feed}.wi_1", c.width, c.hidden)
    else:
        mlp["up"] = dense(f"{feed}.wi", c.width, c.hidden)
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    tables = range(c.layers if c.biases_per_layer else 1)
    name = "shared.weight" if "shared.weight" in folder else "encoder.embed_tokens.weight"
    return {
        "embedding": read(name, c.vocabulary, c.width).astype(stored),
        "distance_bias": np.stack([read(bias.format(i), c.buckets, c.heads).astype(exact) for i in tables]),
        "layers": {"attention": attention, "mlp": mlp},
        "final_norm": {"weight": read("encoder.final_layer_norm.weight", c.width).astype(exact)},
    }


@TEXT_ENCODERS.register("t5")
@TEXT_ENCODERS.register("umt5")
class T5Format:
    """See `TextEncoderFormat`. An end-of-text token closes a caption; padding is on the right."""

    @staticmethod
    def read_caption_reader(folder: Path, config: Mapping[str, Any], length: int) -> Tokenizer:
        """The tokenizer of `spiece.model` or `tokenizer.json`."""
        marks = {"pad": token_id(config, "pad_token_id", 0), "last": token_id(config, "eos_token_id", 1)}
        names = ("spiece.model", "tokenizer.json")
        return read_tokenizer(folder, names, length, positive(config, "vocab_size"), **marks)

    @staticmethod
    def read_encoder(folder: Path, config: Mapping[str, Any], length: int, dtype: str) -> tuple[T5Encoder, Params]:
        """The encoder half of the model."""
        tokenizer, sizes = T5Format.read_caption_reader(folder, config, length), T5Config.from_json(config)
        return T5Encoder(sizes, tokenizer, dtype), read_t5(open_pretrained(folder), sizes, dtype)
