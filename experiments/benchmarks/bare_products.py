"""The lower bound on time ("floor") of the flow's benchmarks: its matrix products alone.

One compiled program computes every product of a pass, with operands of the same shapes, in the same order and number,
but without norms, activations, softmaxes, residuals, caches or rotary positions. Each product reads the result of the
previous one (its first columns if it is wider), so that none can be skipped or moved out of a loop. Layers are unrolled
and have separate weights, because a scan over stacked weights would add a copy of each layer's weights to the floor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from starflow_jax.core.config import FlowConfig, TransformerConfig


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """The sizes of one block and its batch.

    Attributes:
      transformer: sizes of the layers. channels: token channels c.
      batch: rows B (including frames folded into the batch). tokens: N. text: L, 0 if the block reads no text.
      text_channels: channels of the text states if they are projected, else 0.
    """

    transformer: TransformerConfig
    channels: int
    batch: int
    tokens: int
    text: int
    text_channels: int

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
        shapes.append(
            BlockShape(
                transformer,
                config.token_channels,
                batch * (frames or 1) if local else batch,
                frame if local else frame * (frames or 1),
                text if reads else 0,
                config.text_dim if reads and config.language_model is not transformer else 0,
            )
        )
    return shapes


def random_weights(shape: BlockShape, key: jax.Array) -> list[jax.Array]:
    """The dense kernels [in, out] of a block in order: input projection, all layers, output projection."""
    c = shape.transformer
    mixed = c.heads * c.head_dim
    hidden = c.expansion * c.width
    # A gated MLP projects to twice its hidden channels.
    up = hidden * (2 if c.mlp == "gated" else 1)
    packed = (c.heads + 2 * c.kv_heads) * c.head_dim
    layer = [(c.width, packed), (mixed, c.width), (c.width, up), (hidden, c.width)]
    sizes = [(shape.channels, c.width), *(layer * c.layers), (c.width, 2 * shape.channels)]
    keys = jax.random.split(key, len(sizes))
    return [jax.random.normal(k, size) * size[0] ** -0.5 for k, size in zip(keys, sizes, strict=True)]


def _through(kernels: Iterable[jax.Array], x: jax.Array) -> jax.Array:
    for kernel in kernels:
        x = jnp.dot(x[:, : kernel.shape[0]], kernel, precision="highest")
    return x


def forward_products(shape: BlockShape, weights: list[jax.Array], operands: dict[str, Any]) -> list[jax.Array]:
    """Every product of one parallel pass: dense layers, and attention of each query to each key."""
    out = []
    x = _through(weights[:1], operands["tokens"])
    if shape.text_channels:
        text = jnp.dot(operands["text"], operands["text_kernel"], precision="highest")
        x = jnp.concatenate([text, x])
    elif shape.text:
        x = jnp.concatenate([operands["text"], x])
    out.append(_through(weights[1:-1], x))
    out.append(_through(weights[-1:], out[0][: shape.batch * shape.tokens]))
    query = operands["query"]
    for layer in range(shape.transformer.layers):
        logits = jnp.einsum("bknd,bksd->bkns", query, operands["keys"][layer], precision="highest")
        query = jnp.einsum("bkns,bksd->bknd", logits, operands["values"][layer], precision="highest")
    return [*out, query]


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


def parallel_operands(shape: BlockShape, key: jax.Array) -> dict[str, Any]:
    """The operands of `forward_products` and `backward_products` besides the weights."""
    c = shape.transformer
    keys = iter(jax.random.split(key, 16))

    def normal(*size, std=1.0):
        return std * jax.random.normal(next(keys), size)

    rows, slots = shape.batch * shape.tokens, shape.batch * shape.slots
    # Rows and columns of the left operand of each product.
    before = {(slots, n) for n in (c.width, c.heads * c.head_dim, c.expansion * c.width)}
    before |= {(rows, c.width), (rows, shape.channels), (shape.batch * shape.text, shape.text_channels)}
    heads = (shape.batch, c.kv_heads)
    queries = shape.slots * c.heads // c.kv_heads
    operands: dict[str, Any] = {
        "tokens": normal(rows, shape.channels),
        "output": normal(rows, 2 * shape.channels),
        "entered": {f"{n}x{m}": normal(n, m) for n, m in sorted(before)},
        "query": normal(*heads, queries, c.head_dim),
        "logits": normal(*heads, queries, shape.slots),
        "keys": normal(c.layers, *heads, shape.slots, c.head_dim, std=c.head_dim**-0.5),
        "values": normal(c.layers, *heads, shape.slots, c.head_dim, std=shape.slots**-0.5),
    }
    if shape.text:
        channels = shape.text_channels or c.width
        operands["text"] = normal(shape.batch * shape.text, channels)
        operands["text_kernel"] = normal(channels, c.width, std=channels**-0.5)
    # One array per layer, so that the timed program does not slice arrays.
    return {k: list(v) if k in ("keys", "values") else v for k, v in operands.items()}


def evaluation_products(weights: list[jax.Array], tokens: jax.Array, evaluations: int) -> jax.Array:
    """The dense products of `evaluations` consecutive network evaluations of the same tokens [rows, c].

    Attention over the cache and the single pass of the text are not included.
    """

    def evaluate(_, last):
        # Adding a small multiple of the last result to every input keeps evaluations in order and numbers bounded.
        return _through(weights, tokens + 1e-3 * last)[:, : tokens.shape[1]]

    return jax.lax.fori_loop(0, evaluations, evaluate, tokens)
