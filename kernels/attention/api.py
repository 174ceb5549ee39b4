"""Attention by whatever computes it best: the one operation that the networks call.

`reference.attention` is the specification. Where a kernel runs, the backward pass is one, too: it computes the weights
anew, and nothing of queries x keys is kept. Differentiated once, everything is kernels; the gradient itself can be
differentiated in reverse, once or more often, as a loss does that contains the gradient of a likelihood: those further
derivatives are the specification's. Forward-mode differentiation of a kernel raises JAX's own error: ask for "xla".
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from starflow_jax.kernels.attention import reference
from starflow_jax.kernels.attention.masks import Visibility
from starflow_jax.kernels.attention.schedule import Problem
from starflow_jax.kernels.attention.tiling import COSTS, Tiles, chip_of, tiles_for
from starflow_jax.kernels.choice import KERNEL_PLATFORMS, Implementation, Target, choose, target_of


@dataclasses.dataclass(frozen=True)
class _Case:
    """What is static about one call of a kernel; `tiles` and `packed` are the TPU's, of which one is set.

    Attributes:
      platform: whose kernel. rule: which slots see which.
      offset, length: where they are known; None where they are traced.
      stacked: keys and values are those of all layers.
      packed: heads side by side in decoding; 0: whole sequences and longer chunks.
      padding: slots that are added to the keys, and seen by none.
      exact: float32 products in float32. interpret: run on any device.
    """

    platform: str
    rule: Visibility
    offset: int | None
    length: int | None
    stacked: bool
    tiles: Any
    packed: int
    padding: int
    exact: bool
    interpret: bool


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    visibility: Visibility,
    offset: int | jax.Array = 0,
    length: int | jax.Array | None = None,
    layer: int | jax.Array | None = None,
    implementation: Implementation = None,
    target: Target | None = None,
    tiles: Any = None,
    precision: jax.lax.PrecisionLike = None,
    query_chunk: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Scaled attention whose scale (and temperature) is already inside `query`; sums in float32.

    A query that sees nothing gets zeros.

    Args:
      query: [B, h, n, d], already multiplied by the softmax scale and divided by the temperature.
      key, value: [B, k, S, d] with k dividing h (grouped-query attention: head j uses kv head j // (h / k)).
      visibility: which slots see which.
      offset: slot index of the first query (may be traced).
      length: keys from this slot on are seen by none (may be traced); None: all S are there.
      layer: if given, key and value are the caches of all layers, [layers, B, k, S, d], of which this one is read.
      implementation: "xla", "pallas", or None for the rule of `choice`.
      target: the devices that the program is for; None: those that programs without shardings run on.
      tiles: blocks of the kernel (`tiling.Tiles`, on GPUs `attention_gpu.Blocks`); None: by the model of `tiling`.
      precision: of float32 products; kernels compute them in float32 unless it is the lowest.
      query_chunk: queries at a time of the specification.
      interpret: with implementation="pallas", run the kernel of `target` on any device, slowly.

    Returns:
      [B, h, n, d] in the dtype of `value`.

    Raises:
      ValueError: arrays that do not fit one another; tiles that are none; no kernel covers the case, and
        `implementation` insists on one.
    """
    target = target_of() if target is None else target
    _check_shapes(query, key, value, layer)
    case = _choose(
        query, key, value, visibility, offset, length, layer, target, tiles, precision, interpret, implementation
    )
    if case is None:
        if layer is not None:
            key, value = (jax.lax.dynamic_index_in_dim(a, layer, keepdims=False) for a in (key, value))
        return reference.attention(
            query, key, value, visibility=visibility, offset=offset, length=length, query_chunk=query_chunk,
            precision=precision,
        )  # fmt: skip
    slots = key.shape[-2]
    length = slots if length is None else min(length, slots) if isinstance(length, int) else jnp.minimum(length, slots)
    if case.padding:
        key, value = (jnp.pad(a, ((0, 0), (0, 0), (0, case.padding), (0, 0))) for a in (key, value))
    numbers = [offset, length, 0 if layer is None else layer]
    stacked = jnp.stack([jnp.asarray(number, jnp.int32) for number in numbers])
    if case.packed:
        return _decode(case, query, key, value, stacked)
    return _fused(case, query, key, value, stacked)[0]


def chosen(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    visibility: Visibility,
    layer: Any = None,
    implementation: Implementation = None,
    target: Target,
) -> Literal["xla", "pallas"]:
    """What `attention` runs; only the shapes and types of the arrays matter."""
    found = _choose(query, key, value, visibility, None, None, layer, target, None, None, False, implementation)
    return "xla" if found is None else "pallas"


def _check_shapes(query: jax.Array, key: jax.Array, value: jax.Array, layer: Any) -> None:
    """Raises ValueError in one sentence."""
    axes = 4 if layer is None else 5
    fits = len(query.shape) == 4 and len(key.shape) == len(value.shape) == axes
    if fits:
        batch, heads, _, dim = query.shape
        fits = key.shape[:-1] == value.shape[:-1] and (key.shape[-4], key.shape[-1]) == (batch, dim)
        fits = fits and key.shape[-3] > 0 and heads % key.shape[-3] == 0
    if not fits:
        of_key = "[B, k, S, d]" if layer is None else "[layers, B, k, S, d]"
        raise ValueError(
            f"query must be [B, h, n, d] and key and value {of_key} with k dividing h, "
            f"got {query.shape}, {key.shape}, {value.shape}"
        )


def _choose(
    query, key, value, visibility, offset, length, layer, target, tiles, precision, interpret, implementation
) -> _Case | None:
    """The case of the kernel that runs; None where the specification does."""
    refusals: dict[str, str | None] = dict.fromkeys(KERNEL_PLATFORMS)
    found: _Case | str | None = None
    if implementation != "xla" and target.platform in refusals:
        found = _case(query, key, value, visibility, offset, length, layer, target, tiles, precision, interpret)
        refused = found if isinstance(found, str) else None
        if target.platform == "gpu" and implementation is None and refused is None:
            # Its code is tested on threads and lowers, but no GPU has run it: it has to be asked for.
            refused = "has been timed on no GPU yet; implementation='pallas' asks for it"
        refusals[target.platform] = refused
    if choose("attention", implementation, target, refusals) == "xla":
        return None
    return found if isinstance(found, _Case) else None


def _case(query, key, value, visibility, offset, length, layer, target, tiles, precision, interpret) -> _Case | str:
    """The kernel's case, or why there is none."""
    platform = target.platform
    _, heads, count, dim = query.shape
    kv_heads, slots = key.shape[-3], key.shape[-2]
    if not (query.dtype == key.dtype == value.dtype and query.dtype in (jnp.bfloat16, jnp.float32)):
        return f"needs bfloat16 or float32 alike, and these are {query.dtype}, {key.dtype}, {value.dtype}"
    starts, ends = (
        number if isinstance(number, int) else None for number in (offset, slots if length is None else length)
    )
    packed = padding = 0
    if platform == "tpu":
        if dim % 16 or dim > 256:
            return f"needs heads of a multiple of 16 channels, at most 256, and these have {dim}"
        chip, size = chip_of(target.kind), query.dtype.itemsize
        if layer is not None and tiles is None:
            from starflow_jax.kernels.attention import tpu_decoding as decoding_tpu

            packed = decoding_tpu.packed_heads(heads, kv_heads, count, dim, size, COSTS[chip].memory)
        if tiles is None:
            tiles = tiles_for(visibility, count, slots, heads, dim, size, chip)
        elif not isinstance(tiles, Tiles):
            raise ValueError(f"tiles of the TPU's kernels must be kernels.tiling.Tiles, got {tiles!r}")
    else:
        from starflow_jax.kernels.attention import gpu as attention_gpu

        refused = attention_gpu.refusal(query, key, target, stacked=layer is not None, blocks=tiles)
        if refused is not None:
            return refused
        tiles = attention_gpu.BLOCKS[dim] if tiles is None else tiles
        padding = 0 if layer is not None else attention_gpu.padded_slots(slots, tiles) - slots
    exact = precision not in (None, "default", "fastest", "bfloat16", jax.lax.Precision.DEFAULT)
    ends = None if ends is None else min(ends, slots)
    return _Case(platform, visibility, starts, ends, layer is not None, tiles, packed, padding, exact, interpret)


def _bounds(case: _Case, numbers: jax.Array) -> tuple[Any, Any]:
    """Offset and length, integers where they are known."""
    return tuple(numbers[i] if n is None else n for i, n in enumerate((case.offset, case.length)))  # type: ignore


def _options(case: _Case, query: jax.Array, key: jax.Array) -> dict[str, Any]:
    problem = Problem(case.rule, query.shape[2], key.shape[-2], query.shape[2])
    return {"problem": problem, "tiles": case.tiles, "exact": case.exact, "interpret": case.interpret}


def _kernels(case: _Case) -> tuple[Any, Any]:
    """The forward and the backward kernel."""
    # Their modules load Pallas, which takes a second.
    if case.platform == "tpu":
        from starflow_jax.kernels.attention import tpu as attention_tpu

        return attention_tpu.forward, attention_tpu.backward
    from starflow_jax.kernels.attention import gpu as attention_gpu
    from starflow_jax.kernels.attention import gpu_backward as attention_gpu_backward

    return attention_gpu.forward, attention_gpu_backward.backward


def _of_layer(case: _Case, caches: tuple[jax.Array, jax.Array], numbers: jax.Array) -> list[jax.Array]:
    """Keys and values [B, k, S, d]."""
    if not case.stacked:
        return list(caches)
    return [jax.lax.dynamic_index_in_dim(a, numbers[2], keepdims=False) for a in caches]


def _plain(case: _Case, numbers: jax.Array) -> Any:
    """The specification of a case, as a function of query, key and value [B, k, S, d]."""
    offset, length = _bounds(case, numbers)
    precision = "highest" if case.exact else None
    return functools.partial(
        reference.attention, visibility=case.rule, offset=offset, length=length, precision=precision
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _decode(case: _Case, query: jax.Array, keys: jax.Array, values: jax.Array, numbers: jax.Array) -> jax.Array:
    """The decoding kernel's attention; numbers: offset, length, layer. Its derivatives are the specification's."""
    from starflow_jax.kernels.attention import tpu_decoding as decoding_tpu

    return decoding_tpu.decode(
        query, keys, values, *_bounds(case, numbers), layer=numbers[2], rule=case.rule, packed=case.packed,
        memory=case.tiles.memory, exact=case.exact, interpret=case.interpret,
    )  # fmt: skip


def _decode_forward(case: _Case, query, keys, values, numbers):
    return _decode(case, query, keys, values, numbers), (query, keys, values, numbers)


def _decode_backward(case: _Case, residuals, gradient):
    query, keys, values, numbers = residuals

    def plain(query, keys, values):
        return _plain(case, numbers)(query, *_of_layer(case, (keys, values), numbers))

    return *jax.vjp(plain, query, keys, values)[1](gradient), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(
    case: _Case, query: jax.Array, key: jax.Array, value: jax.Array, numbers: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The kernel's attention, and its sums of weights, by which nothing is differentiated."""
    layer = numbers[2] if case.stacked else None
    return _kernels(case)[0](query, key, value, *_bounds(case, numbers), layer=layer, **_options(case, query, key))


def _fused_forward(case: _Case, query, key, value, numbers):
    # A second derivative differentiates this rule: so it calls what has a derivative.
    out, sums = _fused(case, query, key, value, numbers)
    return (out, sums), (query, key, value, out, sums, numbers)


def _fused_backward(case: _Case, residuals, cotangents):
    query, key, value, out, sums, numbers = residuals
    of_query, *found = _gradients(
        case, query, *_of_layer(case, (key, value), numbers), out, sums, cotangents[0], numbers
    )
    if case.stacked:
        found = [jnp.zeros_like(a).at[numbers[2]].set(g) for a, g in zip((key, value), found, strict=True)]
    return of_query, *found, None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradients(case: _Case, query, key, value, out, sums, gradient, numbers) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients with respect to query, key and value [B, k, S, d], as a function of those and of `gradient`.

    `out` and `sums` follow from the others, so that what depends on them is in the derivatives by the others.
    """
    if case.platform == "tpu" and not case.tiles.block_q_backward:
        # A head's gradients have no room in the vector memory.
        return jax.vjp(_plain(case, numbers), query, key, value)[1](gradient)
    return _kernels(case)[1](
        query, key, value, out, sums, gradient, *_bounds(case, numbers), **_options(case, query, key)
    )


def _gradients_forward(case: _Case, query, key, value, out, sums, gradient, numbers):
    found = _gradients(case, query, key, value, out, sums, gradient, numbers)
    return found, (query, key, value, out, sums, gradient, numbers)


def _gradients_backward(case: _Case, residuals, cotangents):
    query, key, value, out, sums, gradient, numbers = residuals

    def plain(query, key, value, gradient):
        return jax.vjp(_plain(case, numbers), query, key, value)[1](gradient)

    by_query, by_key, by_value, by_gradient = jax.vjp(plain, query, key, value, gradient)[1](cotangents)
    return by_query, by_key, by_value, jnp.zeros_like(out), jnp.zeros_like(sums), by_gradient, None


_gradients.defvjp(_gradients_forward, _gradients_backward)
_fused.defvjp(_fused_forward, _fused_backward)
_decode.defvjp(_decode_forward, _decode_backward)
