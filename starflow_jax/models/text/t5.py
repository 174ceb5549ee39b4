"""The encoder of T5 (arXiv 1910.10683), v1.0 or v1.1 (Flan: arXiv 2210.11416), and of UMT5 (arXiv 2304.09151).

Pre-norm layers with RMS norms (gain = weight, no centring, no biases), attention without scaling of the logits and
with a learned bias by the distance of two tokens, and an MLP with ReLU (v1.0) or a gated GELU (v1.1). The
relative bias is of all layers, in UMT5 of each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from starflow_jax.core.config.checks import check
from starflow_jax.models.pretrained_folder import PretrainedFolder, positive
from starflow_jax.models.text.protocol import Params
from starflow_jax.models.text.tokenizer import Tokenizer
from starflow_jax.nn.linear import Compute, Linear
from starflow_jax.sharding.layout import Layout, placed

# Added to the logits of keys that fill up. Finite: a row without any caption must not become NaN.
_UNSEEN = -1e30


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of an encoder.

    Attributes:
      width: D; layers; heads, head_dim: of attention, h d may differ from D; hidden: channels of the MLP.
      vocabulary: rows of the embedding.
      gated: the MLP is down(gelu_tanh(gate(h)) * up(h)); else down(relu(up(h))).
      buckets, max_distance: distances of tokens with a bias of their own, and the one from which all share one.
      biases_per_layer: UMT5's; else the layers share one table.
      eps: of the norms.
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
    def of(cls, config: Mapping[str, Any]) -> T5Config:
        """From Hugging Face's `config.json`.

        Raises:
          ValueError: a field that is missing or out of range, or an MLP of another kind.
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


def distance_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket int32 [L, L] of key j as seen by query i: half of them for keys behind it.

    Small distances have a bucket each, larger ones share on a logarithmic scale (arXiv 1910.10683, section 2.1).
    """
    places = np.arange(length)
    offset = places[None] - places[:, None]
    distance, half = np.abs(offset), buckets // 2
    exact = half // 2
    # In float32, whose rounding decides at the borders of buckets.
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
        """The branch's output for h [B, n, D]; bias: float32 [B or 1, h, n, n], very low where nothing is seen."""
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
    def __init__(self, config: T5Config, key: jax.Array, compute: Compute):
        keys = jax.random.split(key, 5)
        self.attention = _Attention(config, keys[:2], compute)
        self.mlp = _MLP(config, keys[2:], compute)


class T5Stack(nnx.Module):
    """Ids to states: embedding, layers stacked and run by one scan, a last norm. Hidden states stay float32."""

    def __init__(self, config: T5Config, key: jax.Array, compute: Compute = Compute()):  # noqa: B008 (frozen)
        c = config
        keys = jax.random.split(key, 3)
        self.embedding = nnx.Param(jax.random.normal(keys[0], (c.vocabulary, c.width)))
        tables = (c.layers if c.biases_per_layer else 1, c.buckets, c.heads)
        self.distance_bias = nnx.Param(0.1 * jax.random.normal(keys[1], tables))
        self.layers = jax.vmap(lambda k: _Layer(c, k, compute))(jax.random.split(keys[2], c.layers))
        self.final_norm = _Norm(c.width, c.eps)
        self.config = config
        self.compute = compute

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """States float32 [B, L, D] of ids int32 [B, L], of which those in `mask` bool [B, L] are seen."""
        c, layout = self.config, self.compute.layout
        buckets = distance_buckets(ids.shape[1], c.buckets, c.max_distance)
        unseen = jnp.where(mask, 0.0, _UNSEEN)[:, None, None]

        def bias_of(table: jax.Array) -> jax.Array:
            return table.astype(jnp.float32)[buckets].transpose(2, 0, 1)[None] + unseen

        tables = self.distance_bias[...]
        shared = None if c.biases_per_layer else bias_of(tables[0])

        def step(h: jax.Array, inputs: tuple[_Layer, jax.Array]) -> tuple[jax.Array, None]:
            layer, table = inputs
            bias = bias_of(table) if shared is None else shared
            h = placed(layout, h + layer.attention(h, bias).astype(jnp.float32), "hidden")
            return placed(layout, h + layer.mlp(h).astype(jnp.float32), "hidden"), None

        h = placed(layout, self.embedding[...][ids].astype(jnp.float32), "hidden")
        h, _ = jax.lax.scan(step, h, (self.layers, jnp.broadcast_to(tables, (c.layers, *tables.shape[1:]))))
        return self.final_norm(h)


@dataclasses.dataclass(frozen=True)
class T5Encoder:
    """A `TextEncoder`: the states of a T5 encoder, zeros where a caption has ended (specification, section 7).

    Attributes:
      config: sizes; tokenizer: its vocabulary, and L.
      dtype: of the products; norms, softmax and hidden states are float32.
      precision: of float32 products on accelerators.
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

    def ids(self, captions: Sequence[str]) -> np.ndarray:
        """Token ids int32 [B, L], the end-of-text token last."""
        return self.tokenizer.ids(captions)

    def known_ids(self, captions: Sequence[str]) -> np.ndarray:
        """The same."""
        return self.tokenizer.ids(captions)

    def encode(self, params: Params, ids: jax.Array | np.ndarray, layout: Layout | None = None) -> jax.Array:
        """As of `TextEncoder`."""
        ids = jnp.asarray(ids)
        mask = self.tokenizer.mask(ids)
        definition, _ = _definition(self.config, Compute(self.dtype, self.precision, layout))
        stack = nnx.merge(definition, jax.tree.map(jnp.asarray, dict(params)))
        return stack(ids, mask) * mask[:, :, None]


def _definition(config: T5Config, compute: Compute) -> tuple[Any, Any]:
    """The definition of a stack, and its parameters as ShapeDtypeStructs."""
    definitions = []

    def build(key: jax.Array) -> Any:
        definition, state = nnx.split(T5Stack(config, key, compute))
        definitions.append(definition)
        return nnx.to_pure_dict(state)

    shapes = jax.eval_shape(build, jax.random.key(0))
    return definitions[0], shapes


def read_t5(folder: PretrainedFolder, config: T5Config, dtype: str = "float32") -> dict[str, Any]:
    """The parameters of an encoder from Hugging Face's tensors (also of a whole T5, whose decoder is not read).

    Args:
      folder: the files. dtype: in which kernels and the embedding are kept; norms and biases stay float32.

    Raises:
      ValueError: a tensor that is missing or of another shape.
    """
    c, exact, kept = config, np.dtype(np.float32), jnp.dtype(dtype)
    inner = c.heads * c.head_dim

    def read(name: str, *shape: int) -> np.ndarray:
        return folder.tensor(name, shape)

    def stacked(shape: tuple[int, ...], of_layer: Any, dtype: np.dtype[Any] = kept) -> np.ndarray:
        found = np.empty((c.layers, *shape), dtype)
        for layer in range(c.layers):
            found[layer] = of_layer(f"encoder.block.{layer}.layer")
        return found

    def qkv(block: str) -> np.ndarray:
        parts = [read(f"{block}.0.SelfAttention.{one}.weight", inner, c.width) for one in "qkv"]
        return np.stack([part.T.reshape(c.width, c.heads, c.head_dim) for part in parts], axis=2)

    def dense(name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        return {"kernel": stacked((inputs, outputs), lambda block: read(f"{block}.{name}.weight", outputs, inputs).T)}

    def norm(place: int) -> dict[str, np.ndarray]:
        name = f".{place}.layer_norm.weight"
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
        "embedding": read(name, c.vocabulary, c.width).astype(kept),
        "distance_bias": np.stack([read(bias.format(i), c.buckets, c.heads).astype(exact) for i in tables]),
        "layers": {"attention": attention, "mlp": mlp},
        "final_norm": {"weight": read("encoder.final_layer_norm.weight", c.width).astype(exact)},
    }
