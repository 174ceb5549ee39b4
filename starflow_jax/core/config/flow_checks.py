"""Checks of the fields of a flow's configuration that concern its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starflow_jax.core.choices import Quantisation
from starflow_jax.core.config.checks import check, check_integer, check_real
from starflow_jax.core.config.transformer_config import TransformerConfig
from starflow_jax.core.request_errors import require

# Fewest and most inputs that share a scale of "int4". Fewer would need as much memory for scales as 8 bits do.
GROUPS = (8, 32)


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


def check_language_model(
    model: TransformerConfig, *, rope: bool, text_dim: int, layers: int, deep_width: int | None
) -> None:
    """Raises ValueError unless the fields of a flow fit the language model that is its deep block.

    Args:
      model: the deep block; layers: number of layers that the flow states for it; the others: fields of the flow.
    """
    check(rope, "language_model needs rope=True, got rope=False")
    check(
        text_dim == model.width,
        f"text_dim must equal language_model.width={model.width} (there is no text projection), got {text_dim}",
    )
    check(
        layers == model.layers,
        f"the last of layers_per_block must be language_model.layers={model.layers}, got {layers}",
    )
    check(
        deep_width in (None, model.width),
        f"deep_width must be None or language_model.width={model.width}, got {deep_width}",
    )
    check(model.rope == "1d", f"language_model.rope must be '1d', got '{model.rope}'")


def check_noise_levels(levels: tuple[float, float] | None, blocks: Sequence[TransformerConfig], *, scale: str) -> None:
    """Raises ValueError unless `levels` is None, or a range that blocks of this scale and these widths can read."""
    if levels is None:
        return
    pair = isinstance(levels, tuple) and len(levels) == 2
    check(pair, f"noise_levels must be a pair (t0, t1), got {levels!r}")
    low, high = levels
    for name, level in (("noise_levels t0", low), ("noise_levels t1", high)):
        check_real(name, level, minimum=0.0)
    check(0 < low < high, f"noise_levels must be (t0, t1) with 0 < t0 < t1, got {levels}")
    check(scale != "unit", "noise_levels needs scale 'exp' or 'softplus', got 'unit'")
    for block in blocks:
        check(block.width % 2 == 0, f"noise_levels needs blocks of an even width, got {block.width}")


def check_family(family: str, starflow_only: Mapping[str, object], *, scale: str, num_classes: int) -> None:
    """Raises ValueError for a field that the other family has alone.

    Args:
      family: "starflow" or "tarflow".
      starflow_only: the fields of a flow that TARFlow does not have, by name; falsy where they are not used.
      scale, num_classes: fields of the flow.
    """
    if family == "tarflow":
        for name, value in starflow_only.items():
            check(not value, f"{name} is only supported by family 'starflow', got family 'tarflow'")
        check(scale in ("exp", "unit"), f"scale must be 'exp' or 'unit' in family 'tarflow', got '{scale}'")
    else:
        check(num_classes == 0, f"num_classes is only supported by family 'tarflow', got {num_classes}")
        check(scale != "unit", "scale 'unit' is only supported by family 'tarflow', got family 'starflow'")


def check_rope_axes(rope_axes: int | None, *, rope: bool, three: bool) -> None:
    """Raises ValueError for rotary axes of a flow without rotary positions, or two where it needs `three`."""
    check(rope or rope_axes is None, f"rope_axes={rope_axes} needs rope=True, got rope=False")
    check(
        rope_axes != 2 or not three,
        "rope_axes must be 3 in a model with text or temporal causality, got 2",
    )


def check_axial(head_dim: int, axes: int) -> None:
    """Raises ValueError unless heads of this many channels have pairs for 2 or 3 rotary axes."""
    half = head_dim // 2
    if axes == 3:
        check(
            half > 8 and (half - 8) % 2 == 0,
            f"head_dim must be 4k >= 20 for three rotary axes (8 angles for the third), got {head_dim}",
        )
    else:
        check(half % 2 == 0, f"head_dim must be a multiple of 4 for two rotary axes, got {head_dim}")


def check_positions(positions: str, blocks: Sequence[TransformerConfig], *, rope: bool) -> None:
    """Raises ValueError for sinusoidal positions of a flow with rotary ones, or of blocks of an odd width."""
    if positions == "learned":
        return
    check(not rope, f"positions '{positions}' needs rope=False, got rope=True")
    for block in blocks:
        check(block.width % 2 == 0, f"positions '{positions}' needs blocks of an even width, got {block.width}")


def check_norm(norm: str, model: TransformerConfig | None, *, family: str, conditions: bool) -> None:
    """Raises ValueError for adaptive norms without a condition.

    Args:
      norm: the field; model: the language model that is the deep block; family: the field.
      conditions: whether the flow reads classes, classes of tokens, or noise levels.
    """
    check(model is None or model.norm != "adaptive", "language_model.norm must be 'layer' or 'rms', got 'adaptive'")
    if norm != "adaptive":
        return
    check(family == "tarflow", f"norm 'adaptive' is only supported by family 'tarflow', got family '{family}'")
    check(
        conditions,
        "norm 'adaptive' needs a condition, num_classes, token_classes or noise_levels, got 0, 0 and None",
    )


def check_default_classes(classes: tuple[int, ...] | None, token_classes: int, tokens: int) -> None:
    """Raises ValueError unless `classes` is None, or has a class, or -1, for each of the tokens."""
    if classes is None:
        return
    check(token_classes > 0, f"default_classes needs token_classes above 0, got {token_classes}")
    check(isinstance(classes, tuple), f"default_classes must be a tuple of integers or None, got {classes!r}")
    check(len(classes) == tokens, f"default_classes must have {tokens} entries, one for each token, got {len(classes)}")
    for value in classes:
        check_integer("default_classes", value, minimum=-1)
        check(
            value < token_classes,
            f"default_classes must be below token_classes={token_classes}, got {value}",
        )


def check_token_classes(token_classes: int, look_ahead: bool, *, family: str, num_classes: int) -> None:
    """Raises ValueError unless a flow can read a class for every token; arguments are fields of the flow."""
    if not token_classes:
        check(not look_ahead, "look_ahead needs token_classes above 0, got 0")
        return
    check(family == "tarflow", f"token_classes is only supported by family 'tarflow', got family '{family}'")
    check(
        not num_classes,
        f"a flow reads a class or a class for every token, not both, got num_classes={num_classes} and "
        f"token_classes={token_classes}",
    )


def scale_group(inputs: int) -> int:
    """The number of inputs of a kernel in 4 bits that share a scale: the largest divisor of `inputs` up to 32."""
    return max(size for size in range(1, GROUPS[1] + 1) if inputs % size == 0)


def check_quantise(quantise: Quantisation | None, blocks: Sequence[TransformerConfig]) -> None:
    """Raises ValueError unless every layer's inputs form pairs and groups, where kernels have 4 bits."""
    if quantise != "int4":
        return
    for block in blocks:
        inputs = (block.width, block.heads * block.head_dim, block.expansion * block.width)
        check(
            all(number % 2 == 0 and scale_group(number) >= GROUPS[0] for number in inputs),
            f"quantise 'int4' needs layers with even numbers of inputs that have a divisor from {GROUPS[0]} to "
            f"{GROUPS[1]}, got {', '.join(map(str, inputs))}",
        )


def check_trainable(quantise: Quantisation | None, what: str) -> None:
    """Raises ValueError for a flow with quantised weights; `what` names it in the message."""
    check(
        quantise is None,
        f"{what} must have float32 weights to be trained, got flow.quantise {quantise!r}: train the run that it was "
        "quantised from",
    )


def check_devices(quantise: Quantisation | None, devices: int) -> None:
    """Raises RequestError for a flow that rounds the inputs of its layers, over more than one device."""
    require(
        devices == 1 or quantise != "int8-activations",
        "a flow with int8-activations runs on one device, got a mesh of {0} devices: use {quantise} int8, where "
        "there is that option, or one device",
        devices,
    )
