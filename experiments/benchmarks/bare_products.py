"""The lower bound on time ("floor") of the parallel passes of a flow: their matrix products alone.

One compiled program computes every product of a pass, with operands of the same shapes, in the same order and number,
but without norms, activations, softmaxes, residuals, caches or rotary positions. Each product reads the result of the
previous one (its first columns if it is wider), so that none can be skipped or moved out of a loop. Layers are unrolled
and have separate weights, because a scan over stacked weights would add a copy of each layer's weights to the floor.

Attention is counted once: all queries times as many keys as a query sees on average, (S + 1) / 2 of S slots under a
causal mask (rounded down), so that the multiply-adds are those of the visible pairs alone. The floors of inverses are
in bare_inverse.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config import FlowConfig, TransformerConfig


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """The sizes of one block and its batch.

    Attributes:
      transformer: sizes of the layers. channels: token channels c.
      batch: rows B (including frames folded into the batch). tokens: N. text: L, 0 if the block reads no text.
      text_channels: channels of the text states if they are projected, else 0.
      outputs: channels of the output projection.
      visible: keys that a query sees, in the mean over all queries, rounded down.
    """

    transformer: TransformerConfig
    channels: int
    batch: int
    tokens: int
    text: int
    text_channels: int
    outputs: int
    visible: int

    @property
    def slots(self) -> int:
        """Number of text and image tokens."""
        return self.text + self.tokens


def block_shapes(config: FlowConfig, batch: int, frames: int | None, frame: int, text: int) -> list[BlockShape]:
    """The blocks with layers, from the data upwards; `frame` tokens in each of `frames` frames (None: one image)."""
    shapes = []
    for index, transformer in enumerate(config.blocks):
        if not transformer.layers:
            continue
        local = config.is_local(index) and frames is not None
        reads = config.is_conditioned(index)
        tokens = frame if local else frame * (frames or 1)
        shapes.append(
            BlockShape(
                transformer,
                config.token_channels,
                batch * (frames or 1) if local else batch,
                tokens,
                text if reads else 0,
                config.text_dim if reads and config.language_model is not transformer else 0,
                config.token_channels * (1 if config.scale == "unit" else 2),
                ((text if reads else 0) + tokens + 1) // 2,
            )
        )
    return shapes


def denoiser_shape(config: FlowConfig, batch: int, frames: int | None, frame: int, text: int) -> BlockShape:
    """The learned denoiser as a block; arguments as in `block_shapes`."""
    options = config.denoiser
    assert options is not None
    text = text if options.conditional else 0
    tokens = frame * (frames or 1)
    visible = text + tokens
    if frames is not None and options.look_ahead is not None:
        ahead, window = options.look_ahead, options.window
        pairs = text * (text + frame * min(ahead, frames))
        for query in range(frames):
            first = 0 if window is None else min(max(query + ahead - 1 - window, 0), frames)
            pairs += frame * (text + frame * (min(query + ahead, frames) - first))
        visible = pairs // (text + tokens)
    c = config.token_channels
    return BlockShape(config.denoiser_transformer, c, batch, tokens, text, config.text_dim if text else 0, c, visible)


def normal(rng: np.random.Generator, *size: int, std: float = 1.0) -> jax.Array:
    """Random float32 numbers, drawn by NumPy, since JAX compiles a program for every shape."""
    return jnp.asarray(np.float32(std) * rng.standard_normal(size, np.float32))


def random_weights(shape: BlockShape, rng: np.random.Generator) -> list[jax.Array]:
    """The dense kernels [in, out] of a block in order: input projection, all layers, output projection."""
    c = shape.transformer
    mixed = c.heads * c.head_dim
    hidden = c.expansion * c.width
    # A gated MLP projects to twice its hidden channels.
    up = hidden * (c.mlp_kernels - 1)
    packed = (c.heads + 2 * c.kv_heads) * c.head_dim
    layer = [(c.width, packed), (mixed, c.width), (c.width, up), (hidden, c.width)]
    sizes = [(shape.channels, c.width), *(layer * c.layers), (c.width, shape.outputs)]
    return [normal(rng, *size, std=size[0] ** -0.5) for size in sizes]


def through(kernels: Iterable[jax.Array], x: jax.Array) -> jax.Array:
    """x [rows, channels] times each kernel in turn, which reads the first columns of the last product."""
    for kernel in kernels:
        x = jnp.dot(x[:, : kernel.shape[0]], kernel, precision="highest")
    return x


def forward_products(shape: BlockShape, weights: list[jax.Array], operands: dict[str, Any]) -> list[jax.Array]:
    """Every product of one parallel pass: dense layers, and attention of each query to the keys that it sees."""
    out = []
    x = through(weights[:1], operands["tokens"])
    if shape.text_channels:
        text = jnp.dot(operands["text"], operands["text_kernel"], precision="highest")
        x = jnp.concatenate([text, x])
    elif shape.text:
        x = jnp.concatenate([operands["text"], x])
    out.append(through(weights[1:-1], x))
    out.append(through(weights[-1:], out[0][: shape.batch * shape.tokens]))
    return [*out, attend(operands["query"], operands["keys"], operands["values"])]


def attend(query: jax.Array, keys: list[jax.Array], values: list[jax.Array]) -> jax.Array:
    """The two products of attention in every layer: query [B, k, n, d], keys and values [B, k, s, d] of each layer."""
    for key, value in zip(keys, values, strict=True):
        logits = jnp.einsum("bknd,bksd->bkns", query, key, precision="highest")
        query = jnp.einsum("bkns,bksd->bknd", logits, value, precision="highest")
    return query


def backward_products(shape: BlockShape, weights: list[jax.Array], operands: dict[str, Any]) -> list[jax.Array]:
    """The two transposed products of every product of `forward_products`."""

    def transposed(kernel, gradient):
        if kernel.shape[1] > gradient.shape[1]:  # only some columns of the packed projection were used
            gradient = jnp.concatenate([gradient] * (-(-kernel.shape[1] // gradient.shape[1])), axis=1)
        gradient = gradient[:, : kernel.shape[1]]
        entered = operands["entered"][f"{gradient.shape[0]}x{kernel.shape[0]}"]
        of_kernel = jnp.dot(entered.T, gradient, precision="highest")
        return jnp.dot(gradient, kernel.T, precision="highest"), of_kernel

    gradient, of_kernel = transposed(weights[-1], operands["output"])
    out = [of_kernel]
    if shape.text:  # the last projection reads only the tokens
        gradient = jnp.concatenate([gradient, gradient])[: shape.batch * shape.slots]
    for kernel in reversed(weights[1:-1]):
        gradient, of_kernel = transposed(kernel, gradient)
        out.append(of_kernel)
    out.extend(transposed(weights[0], gradient[: shape.batch * shape.tokens]))
    if shape.text_channels:
        out.extend(transposed(operands["text_kernel"], gradient[: shape.batch * shape.text]))
    mixed = operands["query"]
    for layer in reversed(range(shape.transformer.layers)):
        key, value = operands["keys"][layer], operands["values"][layer]
        out.append(jnp.einsum("bkns,bknd->bksd", operands["logits"], mixed, precision="highest"))
        logits = jnp.einsum("bknd,bksd->bkns", mixed, value, precision="highest")
        out.append(jnp.einsum("bkns,bknd->bksd", logits, operands["query"], precision="highest"))
        mixed = jnp.einsum("bkns,bksd->bknd", logits, key, precision="highest")
    return [*out, mixed]


def parallel_operands(shape: BlockShape, rng: np.random.Generator) -> dict[str, Any]:
    """The operands of `forward_products` and `backward_products` besides the weights.

    There is one array per layer, so that the timed program slices none.
    """
    c = shape.transformer
    rows, slots = shape.batch * shape.tokens, shape.batch * shape.slots
    # Rows and columns of the left operand of each product.
    before = {(slots, n) for n in (c.width, c.heads * c.head_dim, c.expansion * c.width)}
    before |= {(rows, c.width), (rows, shape.channels), (shape.batch * shape.text, shape.text_channels)}
    heads = (shape.batch, c.kv_heads)
    cache = (*heads, shape.visible, c.head_dim)
    queries = shape.slots * c.heads // c.kv_heads
    operands: dict[str, Any] = {
        "tokens": normal(rng, rows, shape.channels),
        "output": normal(rng, rows, shape.outputs),
        "entered": {f"{n}x{m}": normal(rng, n, m) for n, m in sorted(before)},
        "query": normal(rng, *heads, queries, c.head_dim),
        "logits": normal(rng, *heads, queries, shape.visible),
        "keys": [normal(rng, *cache, std=c.head_dim**-0.5) for _ in range(c.layers)],
        "values": [normal(rng, *cache, std=shape.visible**-0.5) for _ in range(c.layers)],
    }
    if shape.text:
        channels = shape.text_channels or c.width
        operands["text"] = normal(rng, shape.batch * shape.text, channels)
        operands["text_kernel"] = normal(rng, channels, c.width, std=channels**-0.5)
    return operands
