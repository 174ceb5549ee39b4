"""Checks of the fields of a flow's configuration that concern its blocks."""

from __future__ import annotations

from collections.abc import Sequence

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.core.config.transformer_config import TransformerConfig


def check_orders(orders: Sequence[Sequence[int]] | None, num_blocks: int, tokens: int, *, frames: bool) -> None:
    """Raises ValueError unless `orders` is None, or has () or a permutation of the tokens for every block.

    Args:
      orders: the field; num_blocks: number of blocks; tokens: number of tokens of an image.
      frames: whether the flow is one of videos.
    """
    if orders is None:
        return
    check(
        not frames,
        "orders are only supported by flows of still images and vectors, got temporal_causal or shallow_local",
    )
    check(len(orders) == num_blocks, f"orders must have num_blocks={num_blocks} entries, got {len(orders)}")
    for block, order in enumerate(orders):
        valid = not order or sorted(order) == list(range(tokens))
        check(valid, f"orders of block {block} must be () or a permutation of 0 to {tokens - 1}, got {order}")


def check_shared_layers(shared: int, blocks: Sequence[TransformerConfig], *, language_model: bool) -> None:
    """Raises ValueError unless every block with layers has more than `shared` of them, all of one width.

    Args:
      shared: the field; blocks: the transformers; language_model: whether the deep block is a language model.
    """
    check_integer("shared_layers", shared, minimum=0)
    if not shared:
        return
    check(not language_model, "shared_layers must be 0 with a language_model")
    blocks = [block for block in blocks if block.layers]
    fewest = min((block.layers for block in blocks), default=0)
    check(
        shared < fewest,
        f"shared_layers must be below the number of layers of every block, at most {fewest - 1}, got {shared}",
    )
    widths = sorted({block.width for block in blocks})
    check(len(widths) == 1, f"shared_layers needs blocks of one width, got {widths}")
