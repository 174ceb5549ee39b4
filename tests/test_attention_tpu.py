"""The TPU's attention kernels are the specification, interpreted on any device; what they refuse."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from starflow_jax.kernels.attention import Causal, CausalFrames, FrameWindow, Full, attention, reference
from starflow_jax.kernels.attention.tiling import COSTS, Tiles, tiles_for
from starflow_jax.kernels.choice import Target

# float32: sums in another order. bfloat16: weights and gradients are rounded to it (2^-9) before they are added up.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1.5e-2}
TILES = Tiles(128, 128, 2, 128, 128, 2)
TPU = Target("tpu", "TPU v5e")


def inputs(count, slots, heads, kv_heads, dim, dtype, batch=1):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(batch, heads, count, dim), *2 * [(batch, kv_heads, slots, dim)], (batch, heads, count, dim)]
    query, key, value, weight = (jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True))
    return (query * dim**-0.5).astype(dtype), key, value, weight


class SameAsTheSpecification:
    """Values and gradients of a kernel; subclasses say of which."""

    target: Target
    tiles: object = None

    def kernel(self, rule, **options):
        return functools.partial(
            attention, visibility=rule, implementation="pallas", target=self.target, tiles=self.tiles, interpret=True,
            **options,
        )  # fmt: skip

    def check(self, rule, count, slots, offset=0, length=None, heads=2, kv_heads=2, dim=64, dtype="float32"):
        *arrays, weight = inputs(count, slots, heads, kv_heads, dim, dtype)
        options = {"offset": offset, "length": length}

        def both(attend, arrays, weight):
            out, pullback = jax.vjp(attend, *arrays)
            return out, *pullback(weight.astype(out.dtype))

        exact = functools.partial(reference.attention, visibility=rule, precision="highest", **options)
        expected = both(exact, [a.astype(jnp.float32) for a in arrays], weight)
        found = jax.jit(functools.partial(both, self.kernel(rule, **options)))(arrays, weight)
        assert found[0].dtype == arrays[0].dtype
        for ours, theirs in zip(found, expected, strict=True):
            # Of what is not written, interpreters make NaN.
            assert ours.shape == theirs.shape and bool(jnp.all(jnp.isfinite(ours)))
            error = jnp.max(jnp.abs(ours.astype(jnp.float32) - theirs))
            assert error <= TOLERANCE[dtype] * max(1.0, float(jnp.max(jnp.abs(theirs))))


# rule, queries, slots, offset, length, heads, key heads, channels, dtype
QUICK = [
    (Causal(), 1, 1, 0, None, 1, 1, 64, "float32"),
    (Causal(40), 40, 40, 0, None, 2, 1, 64, "float32"),  # a prefix alone
    (Full(), 3, 140, 0, 0, 2, 2, 64, "float32"),  # nothing is seen
    (Causal(), 200, 200, 0, None, 4, 2, 64, "float32"),
    (FrameWindow(10, 50, 2, 1), 260, 260, 0, None, 1, 1, 64, "bfloat16"),
    (CausalFrames(8, 60, 0), 5, 200, 150, 151, 2, 2, 32, "float32"),
]
SLOW = [
    (Causal(), 128, 128, 0, None, 2, 2, 64, "bfloat16"),
    (Causal(40), 290, 290, 0, None, 3, 1, 128, "bfloat16"),
    (Causal(), 3, 300, 130, None, 6, 2, 64, "float32"),
    (Full(), 130, 140, 0, 129, 2, 2, 256, "float32"),
    (CausalFrames(10, 50, 1), 260, 260, 0, 200, 2, 2, 64, "float32"),
    (FrameWindow(10, 50, 1, None), 260, 260, 0, None, 4, 4, 64, "bfloat16"),
    (FrameWindow(0, 30, 3, 1), 200, 200, 0, None, 2, 2, 16, "float32"),
]


class TestOnTPUs(SameAsTheSpecification):
    target, tiles = TPU, TILES

    @pytest.mark.parametrize("case", QUICK, ids=str)
    def test_values_and_gradients(self, case):
        self.check(*case)

    @pytest.mark.slow
    @pytest.mark.parametrize("case", SLOW, ids=str)
    def test_more_values_and_gradients(self, case):
        self.check(*case)

    def test_the_offset_may_be_traced(self):
        """A chunk of queries anywhere in a cache, the gradient too, in one program."""
        rule = Causal(3)
        *arrays, weight = inputs(4, 300, 2, 1, 64, "float32")

        def total(attend, offset, *arrays):
            return jnp.sum(attend(*arrays, offset=offset, length=offset + 4) * weight)

        found = jax.jit(jax.value_and_grad(functools.partial(total, self.kernel(rule)), (1, 2, 3)))
        plain = functools.partial(reference.attention, visibility=rule)
        for offset in (0, 127, 290):
            expected = jax.value_and_grad(functools.partial(total, plain), (1, 2, 3))(offset, *arrays)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found(offset, *arrays), expected)

    def test_a_gradient_can_be_differentiated(self):
        """A loss that contains the gradient with respect to the input, as the score denoiser's does."""
        *arrays, weight = inputs(130, 130, 1, 1, 16, "float32")

        def loss(attend, scale, arrays):
            def energy(query, key, value):
                return jnp.sum(jnp.sin(attend(scale * query, key, value)) * weight)

            return sum(jnp.sum(g**2) for g in jax.grad(energy, (0, 1, 2))(*arrays))

        plain = functools.partial(reference.attention, visibility=Causal(), precision="highest")
        expected = jax.jit(jax.value_and_grad(functools.partial(loss, plain)))(2.0, arrays)
        found = jax.jit(jax.value_and_grad(functools.partial(loss, self.kernel(Causal()))))(2.0, arrays)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


class TestDecoding(SameAsTheSpecification):
    """The same of a few queries and the cache of a layer; its derivatives are the specification's."""

    target = TPU

    def kernel(self, rule, **options):
        attend = super().kernel(rule, **options)

        def of_layer(query, key, value):
            caches = (jnp.stack([jnp.full_like(a, jnp.nan), a]) for a in (key, value))
            return attend(query, *caches, layer=1)

        return of_layer

    @pytest.mark.parametrize(
        "case",
        [
            (Causal(7), 1, 300, 140, 141, 6, 2, 64, "bfloat16"),
            (CausalFrames(10, 50, 1), 3, 200, 130, 133, 4, 4, 64, "float32"),
            (Full(), 2, 140, 0, 0, 2, 2, 128, "float32"),  # nothing is seen
        ],
        ids=str,
    )
    def test_values_and_gradients(self, case):
        self.check(*case)


@pytest.mark.parametrize(("heads", "kv_heads", "count"), [(4, 4, 1), (6, 2, 3)])
def test_decoding_reads_one_layer_as_far_as_it_is_written(heads, kv_heads, count):
    """Packed heads; slots ahead and other layers hold NaN, which nothing may touch."""
    offset, slots = 140, 300
    query, key, value, _ = inputs(count, slots, heads, kv_heads, 32, "float32", batch=2)
    written = jnp.arange(slots)[:, None] < offset + count
    caches = [jnp.stack([jnp.full_like(a, jnp.nan), jnp.where(written, a, jnp.nan)]) for a in (key, value)]
    run = jax.jit(
        functools.partial(attention, visibility=Causal(), implementation="pallas", target=TPU, interpret=True)
    )
    found = run(query, *caches, offset=offset, length=offset + count, layer=1)
    expected = reference.attention(query, key, value, visibility=Causal(), offset=offset, precision="highest")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_case_without_a_kernel_is_refused_with_the_reason():
    query, key, value, _ = inputs(4, 4, 2, 2, 20, "float32")
    with pytest.raises(ValueError, match=r"needs heads of a multiple of 16 channels, at most 256, and these have 20"):
        attention(query, key, value, visibility=Causal(), implementation="pallas", target=TPU)
    query, key, value, _ = inputs(4, 4, 2, 2, 64, "float16")
    with pytest.raises(ValueError, match=r"needs bfloat16 or float32 alike"):
        attention(query, key, value, visibility=Causal(), implementation="pallas", target=TPU)
    with pytest.raises(ValueError, match=r"kernels for gpu and tpu, not for cpu"):
        attention(query, key, value, visibility=Causal(), implementation="pallas", target=Target("cpu"))


@pytest.mark.parametrize("chip", COSTS)
@pytest.mark.parametrize("count", [1, 100, 1152, 18736])
def test_blocks_cover_a_sequence_with_little_to_spare(chip, count):
    """Fewer than twice the pairs that are seen, from a few blocks on, and at least 128 lanes."""
    tiles = tiles_for(Causal(), count, count, 48, 64, 2, chip)
    backward = (tiles.block_q_backward,)
    if chip == "v4" and count == 18736:
        assert backward == (0,)  # 16 MiB of vector memory do not hold the gradients of so many keys
        backward = ()
    for size in (tiles.block_q, *backward):
        padded = -(-count // size) * size
        assert size % 128 == 0 and padded - count < max(128, 0.1 * count)


def test_gradients_that_have_no_room_are_the_specifications():
    """A chip whose vector memory is too small for a head's gradients runs the forward kernel, and XLA backward."""
    *arrays, weight = inputs(140, 140, 1, 1, 16, "float32")

    def gradients(attend):
        return jax.grad(lambda *a: jnp.sum(attend(*a, visibility=Causal()) * weight), (0, 1, 2))(*arrays)

    options = {"implementation": "pallas", "target": TPU, "interpret": True}
    found = gradients(functools.partial(attention, tiles=Tiles(128, 128, 1, 0, 0, 0), **options))
    expected = gradients(functools.partial(reference.attention, precision="highest"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.parametrize("sizes", [(100, 128, 1), (128, 128, 0), (0, 0, 0)])
def test_tiles_that_are_none_are_refused(sizes):
    with pytest.raises(ValueError, match="tiles must have blocks of multiples of 128 and heads >= 1"):
        Tiles(*sizes, 128, 128, 1)


def test_arrays_that_do_not_fit_are_refused():
    query, key, value, _ = inputs(4, 4, 4, 4, 16, "float32")
    for of_key, of_value in ((key[:, :3], value[:, :3]), (key[..., :8], value[..., :8]), (key, value[:, :, :2])):
        with pytest.raises(ValueError, match="with k dividing h"):
            attention(query, of_key, of_value, visibility=Causal())
