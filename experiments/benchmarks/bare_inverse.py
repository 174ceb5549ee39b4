"""The lower bounds on time of an inverse: its products alone, and the reading of the same bytes.

An inverse is a number of network evaluations that follow one another. Two bounds hold for it, in the same run:

- `products`: the dense products of every evaluation for the rows that it really needs (one token of each sequence in
  the sequential solver, the chunk in a Jacobi iteration, both halves of a guided batch), attention to the filled part
  of the cache alone, and the one pass over the text. The filled part grows from chunk to chunk; every evaluation of one
  kind reads its mean length, which leaves the number of multiply-adds and of bytes unchanged.
- `Reading`: a streaming read of the bytes that the evaluations need, once for each evaluation: float32 weights and the
  filled part of the cache. The sequential solver reads all weights for a few rows of products, so that no arithmetic is
  left to be saved.

The floor is the larger of the two. It is bound by bandwidth where the reading takes longer than the multiply-adds
would at the rate of a large product, and by arithmetic otherwise (`bound`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bare_products import BlockShape, attend, normal, through

from starflow_jax.solvers import Inversion

_PIECE = 2**18  # float32 values that one call reads


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A chunk of one block, as an inverse solved it.

    Attributes:
      block: index among the blocks with layers.
      sequences: rows of the batch, frames that are folded into it and both halves of a guided batch included.
      start: tokens of the cache before the chunk, text included.
      tokens: tokens of one evaluation.
      evaluations: evaluations that follow one another; with one token each, every evaluation is of the next token.
      text: text tokens of the block.
    """

    block: int
    sequences: int
    start: int
    tokens: int
    evaluations: int
    text: int


@dataclasses.dataclass(frozen=True)
class Evaluations:
    """`count` evaluations of `tokens` tokens in each of `sequences`, which see `visible` slots in the mean."""

    block: int
    sequences: int
    tokens: int
    visible: int
    count: int


def chunks_of(result: Inversion, blocks: Sequence[int], shapes: Sequence[BlockShape], guided: set[int]) -> list[Chunk]:
    """The chunks of an inverse in their order.

    Args:
      result: of the inverse.
      blocks, shapes: index in the flow, and shape, of each block with layers.
      guided: the blocks whose batch is doubled.
    """
    chunks = []
    for report in result.reports:
        index = list(blocks).index(report.block)
        shape = shapes[index]
        sequences = shape.batch * (2 if report.block in guided else 1)
        columns = (report.starts, report.lengths, report.evaluations, report.tokens)
        for start, length, evaluations, tokens in zip(*map(np.asarray, columns), strict=True):
            # A padded last chunk needs only its own tokens.
            at_once = min(int(tokens) // int(evaluations) // shape.batch, int(length))
            chunks.append(Chunk(index, sequences, shape.text + int(start), at_once, int(evaluations), shape.text))
    return chunks


def evaluations_of(chunks: Sequence[Chunk]) -> list[Evaluations]:
    """The evaluations of the chunks, one entry for each block and number of tokens."""
    kinds: dict[tuple[int, int, int], list[Chunk]] = {}
    for chunk in chunks:
        kinds.setdefault((chunk.block, chunk.sequences, chunk.tokens), []).append(chunk)
    result = []
    for (block, sequences, tokens), members in kinds.items():
        count = sum(chunk.evaluations for chunk in members)
        # The last token of an evaluation sees `tokens` slots of its own, the first one sees one.
        visible = sum(
            chunk.evaluations * (2 * chunk.start + (chunk.evaluations if tokens == 1 else tokens) + 1)
            for chunk in members
        )
        result.append(Evaluations(block, sequences, tokens, max(1, visible // (2 * count)), count))
    return result


def inverse_operands(
    shapes: Sequence[BlockShape], evaluations: Sequence[Evaluations], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """The operands of `inverse_products` besides the weights, one dictionary for each kind of evaluation."""
    operands = []
    for one in evaluations:
        shape = shapes[one.block]
        c = shape.transformer
        heads = (one.sequences, c.kv_heads)
        cache = (*heads, one.visible, c.head_dim)
        operand: dict[str, Any] = {
            "tokens": normal(rng, one.sequences * one.tokens, shape.channels),
            "query": normal(rng, *heads, one.tokens * c.heads // c.kv_heads, c.head_dim),
            "keys": [normal(rng, *cache, std=c.head_dim**-0.5) for _ in range(c.layers)],
            "values": [normal(rng, *cache, std=one.visible**-0.5) for _ in range(c.layers)],
        }
        if shape.text:  # read once, by the first kind of evaluation of its block
            channels = shape.text_channels or c.width
            operand["text"] = normal(rng, one.sequences * shape.text, channels)
            operand["text_kernel"] = normal(rng, channels, c.width, std=channels**-0.5)
        operands.append(operand)
    return operands


def inverse_products(
    shapes: Sequence[BlockShape],
    evaluations: Sequence[Evaluations],
    weights: Sequence[list[jax.Array]],
    operands: Sequence[dict[str, Any]],
) -> list[Any]:
    """Every product of an inverse: the text once, then evaluations, each of which reads the result of the last."""
    out: list[Any] = []
    read: set[int] = set()
    for one, operand in zip(evaluations, operands, strict=True):
        shape, kernels = shapes[one.block], weights[one.block]
        if shape.text and one.block not in read:
            read.add(one.block)
            text = operand["text"]
            text = jnp.dot(text, operand["text_kernel"], precision="highest") if shape.text_channels else text
            out.append(through(kernels[1:-1], text))

        def evaluate(_: Any, last: Any, operand: dict[str, Any] = operand, kernels: list[jax.Array] = kernels) -> Any:
            # Adding a small multiple of the last result to every input keeps evaluations in order and numbers bounded.
            tokens, query = (
                operand[name] + 1e-3 * value for name, value in zip(("tokens", "query"), last, strict=True)
            )
            return (
                through(kernels, tokens)[:, : tokens.shape[1]],
                attend(query, operand["keys"], operand["values"]),
            )

        out.append(jax.lax.fori_loop(0, one.count, evaluate, (operand["tokens"], operand["query"])))
    return out


def work(
    shapes: Sequence[BlockShape], evaluations: Sequence[Evaluations], weights: Sequence[Any]
) -> tuple[int, list[int]]:
    """Multiply-adds of all evaluations, and the float32 values that one evaluation of each entry reads."""
    arithmetic, values = 0, []
    for one in evaluations:
        c = shapes[one.block].transformer
        dense = sum(kernel.size for kernel in weights[one.block])
        rows = one.sequences * one.tokens
        arithmetic += one.count * rows * (dense + 2 * c.layers * c.heads * c.head_dim * one.visible)
        values.append(dense + 2 * c.layers * one.sequences * c.kv_heads * c.head_dim * one.visible)
    return arithmetic, values


class Reading:
    """Streams the bytes of all evaluations through `threads` threads, each of which reads its share of them.

    A product of a vector with itself reads every value once from memory and adds it to a sum; it is the fastest read
    that NumPy has. NumPy's own threads must be switched off (OPENBLAS_NUM_THREADS=1), since the shares are small.
    """

    def __init__(self, evaluations: Sequence[Evaluations], values: Sequence[int], threads: int):
        self.shares = [
            (one.count, [np.ones(-(-count // threads), np.float32) for _ in range(threads)])
            for one, count in zip(evaluations, values, strict=True)
        ]
        self.pool = ThreadPoolExecutor(threads)
        self.threads = threads

    def __call__(self) -> float:
        """Reads everything once for each evaluation, and returns a sum that depends on all of it."""
        return sum(self.pool.map(self._read, range(self.threads)))

    def _read(self, thread: int) -> float:
        total = 0.0
        for count, shares in self.shares:
            share = shares[thread]
            pieces = [share[first : first + _PIECE] for first in range(0, share.size, _PIECE)]
            for _ in range(count):
                for piece in pieces:
                    total += float(np.dot(piece, piece))
        return total
