"""The TPU's attention kernels pass the shared checks, interpreted on a CPU; what they do not support."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_suite import CASES, AttentionSuite, Case, TransformableSuite, inputs

from starflow_jax.kernels.attention import Causal, CausalFrames, FrameWindow, Full, attention, reference
from starflow_jax.kernels.attention.api import partial_attention
from starflow_jax.kernels.attention.block_sizes import COSTS, Tiles, tiles_for
from starflow_jax.kernels.kernel_choice import Target

TPU = Target("tpu", "TPU v5e")
SLOW = [
    Case(Causal(), 128, 128, dtype="bfloat16"),
    Case(Causal(40), 290, 290, heads=3, kv_heads=1, dim=128, dtype="bfloat16"),
    Case(Causal(), 3, 300, offset=130, heads=6),
    Case(Full(), 130, 140, length=129, dim=256),
    Case(CausalFrames(10, 50, 1), 260, 260, length=200),
    Case(FrameWindow(10, 50, 1, None), 260, 260, heads=4, kv_heads=4, dtype="bfloat16"),
    Case(FrameWindow(0, 30, 3, 1), 200, 200, dim=16),
]


class TestSequences(TransformableSuite):
    target, tiles = TPU, Tiles(128, 128, 2, 128, 128, 2)
    cases = [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)]  # noqa: RUF012 (pytest reads it)


class TestDecoding(AttentionSuite):
    """A few queries and the cache of one layer; the derivatives are the reference's."""

    target = TPU
    cases = [  # noqa: RUF012
        Case(Causal(7), 1, 300, offset=140, length=141, heads=6, dtype="bfloat16"),
        Case(CausalFrames(10, 50, 1), 3, 200, offset=130, length=133, heads=4, kv_heads=4),
        Case(Full(), 2, 140, length=0, dim=128),  # no key is visible
    ]

    def attend(self, rule, **options):
        attend_to_caches = super().attend(rule, **options)

        def attend_to_layer(query, key, value):
            caches = (jnp.stack([jnp.full_like(a, jnp.nan), a]) for a in (key, value))
            return attend_to_caches(query, *caches, layer=1)

        return attend_to_layer


@pytest.mark.parametrize(("heads", "kv_heads", "count"), [(4, 4, 1), (6, 2, 3)])
def test_decoding_reads_one_layer_as_far_as_it_is_written(heads, kv_heads, count):
    """Packed heads; later slots and other layers hold NaN, which must not be read."""
    offset, slots = 140, 300
    query, key, value, _ = inputs(count, slots, heads, kv_heads, 32, "float32", batch=2)
    written = jnp.arange(slots)[:, None] < offset + count
    caches = [jnp.stack([jnp.full_like(a, jnp.nan), jnp.where(written, a, jnp.nan)]) for a in (key, value)]
    run = jax.jit(
        functools.partial(attention, visibility=Causal(), implementation="pallas", target=TPU, interpret=True)
    )
    ours = run(query, *caches, offset=offset, length=offset + count, layer=1)
    expected = reference.attention(query, key, value, visibility=Causal(), offset=offset, precision="highest")
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_an_unsupported_call_is_an_error_with_the_reason():
    query, key, value, _ = inputs(4, 4, 2, 2, 20, "float32")
    with pytest.raises(ValueError, match=r"needs heads of a multiple of 16 channels, at most 256, and these have 20"):
        attention(query, key, value, visibility=Causal(), implementation="pallas", target=TPU)
    query, key, value, _ = inputs(4, 4, 2, 2, 64, "float16")
    with pytest.raises(ValueError, match=r"needs inputs of one dtype, bfloat16 or float32"):
        attention(query, key, value, visibility=Causal(), implementation="pallas", target=TPU)
    with pytest.raises(ValueError, match=r"kernels for gpu and tpu, not for cpu"):
        attention(query, key, value, visibility=Causal(), implementation="pallas", target=Target("cpu"))


@pytest.mark.parametrize("chip", COSTS)
@pytest.mark.parametrize("count", [1, 100, 1152, 18736])
def test_blocks_cover_a_sequence_with_little_to_spare(chip, count):
    """Blocks are whole lanes, and pad a sequence by less than a tenth or a lane."""
    tiles = tiles_for(Causal(), count, count, 48, 64, 2, chip)
    backward = (tiles.block_q_backward,)
    if chip == "v4" and count == 18736:
        assert backward == (0,)  # 16 MiB of vector memory do not hold the gradients of so many keys
        backward = ()
    for size in (tiles.block_q, *backward):
        padded = -(-count // size) * size
        assert size % 128 == 0 and padded - count < max(128, 0.1 * count)


def test_gradients_that_do_not_fit_are_the_references():
    """A chip whose vector memory is too small for a head's gradients runs the forward kernel, and XLA backward."""
    *arrays, do = inputs(140, 140, 1, 1, 16, "float32")

    def gradients(attend):
        return jax.grad(lambda *a: jnp.sum(attend(*a, visibility=Causal()) * do), (0, 1, 2))(*arrays)

    options = {"implementation": "pallas", "target": TPU, "interpret": True}
    ours = gradients(functools.partial(attention, tiles=Tiles(128, 128, 1, 0, 0, 0), **options))
    expected = gradients(functools.partial(reference.attention, precision="highest"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, expected)


@pytest.mark.parametrize("sizes", [(100, 128, 1), (128, 128, 0), (0, 0, 0)])
def test_invalid_tiles_are_an_error(sizes):
    with pytest.raises(ValueError, match="tiles must have blocks of multiples of 128 and heads >= 1"):
        Tiles(*sizes, 128, 128, 1)


def test_arrays_that_do_not_fit_are_an_error(shapes_unchecked):
    query, key, value, _ = inputs(4, 4, 4, 4, 16, "float32")
    for other_key, other_value in ((key[:, :3], value[:, :3]), (key[..., :8], value[..., :8]), (key, value[:, :, :2])):
        with pytest.raises(ValueError, match="with k dividing h"):
            attention(query, other_key, other_value, visibility=Causal())


@pytest.mark.parametrize("offset", [-100, *(pytest.param(offset, marks=pytest.mark.slow) for offset in (0, 50, -300))])
def test_attention_to_a_part_gives_the_weight_of_its_merge(offset):
    """Queries before the first key of the part see none of it."""
    query, key, value, _ = inputs(256, 128, 2, 2, 64, "float32")
    options = {"visibility": Causal(), "offset": jnp.int32(offset)}
    found = partial_attention(query, key, value, target=TPU, implementation="pallas", interpret=True, **options)
    expected = reference.attention_with_lse(query, key, value, **options)
    for ours, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=2e-5)
    assert (np.asarray(found[1]) == -1e30).any() == (offset < 0)
