"""Attention of a packed projection with rotary positions inside the kernels: values, gradients, what is refused."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from starflow_jax.core.config.transformer_config import TransformerConfig
from starflow_jax.kernels.attention import Causal, FrameWindow, attention
from starflow_jax.kernels.attention.block_sizes import Tiles
from starflow_jax.kernels.attention.packed import packed_attention, takes_packed
from starflow_jax.kernels.kernel_choice import Target
from starflow_jax.nn import attention as nn_attention
from starflow_jax.nn.linear import Compute
from starflow_jax.nn.rope import Rotation

TPU = Target("tpu", "TPU v6e")


def rotation(slots, dim, adjacent):
    angles = jax.random.uniform(jax.random.key(1), (slots, dim // 2), maxval=6.0)
    return Rotation(jnp.cos(angles), jnp.sin(angles), adjacent)


def separate(table, scale, rule, packed, bias):
    """What networks compute without the packed kernels."""
    packed = packed + bias.astype(packed.dtype)
    query, key, value = (packed[:, :, :, part].swapaxes(1, 2) for part in range(3))
    query, key = table(query), table(key)
    query = (query * jnp.float32(scale)).astype(packed.dtype)
    return attention(query, key, value, visibility=rule, implementation="xla", precision="highest")


CASES = [  # rule, slots, heads, channels, whether pairs are neighbours, dtype, tiles
    (Causal(), 200, 2, 64, True, "float32", None),
    (FrameWindow(10, 50, 2, 1), 260, 3, 32, False, "bfloat16", Tiles(128, 256, 2, 256, 128, 1)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_those_of_separate_arrays(case):
    rule, slots, heads, dim, adjacent, dtype, tiles = case
    keys = jax.random.split(jax.random.key(0), 3)
    packed = jax.random.normal(keys[0], (2, slots, heads, 3, dim)).astype(dtype)
    bias = jax.random.normal(keys[1], (heads, 3, dim))
    do = jax.random.normal(keys[2], (2, heads, slots, dim)).astype(dtype)
    table = rotation(slots, dim, adjacent)

    def by_kernels(packed, bias):
        return packed_attention(
            packed, bias, table.cos, table.sin, adjacent=adjacent, scale=dim**-0.5, visibility=rule, target=TPU,
            tiles=tiles, precision="highest", interpret=True,
        )  # fmt: skip

    def value_and_gradients(function):
        out, transposed = jax.vjp(function, packed, bias)
        return out, *transposed(do)

    computed = jax.jit(lambda: value_and_gradients(by_kernels))()
    expected = jax.jit(lambda: value_and_gradients(functools.partial(separate, table, dim**-0.5, rule)))()
    for ours, theirs in zip(computed, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        ours, theirs = (np.asarray(a, np.float32) for a in (ours, theirs))
        assert np.abs(ours - theirs).max() <= (1e-5 if dtype == "float32" else 1.5e-2) * np.abs(theirs).max()


@pytest.mark.slow
def test_second_derivatives_of_a_loop_are_those_of_separate_arrays():
    slots, heads, dim = 24, 1, 16
    packed = jax.random.normal(jax.random.key(0), (1, slots, heads, 3, dim))
    bias = jax.random.normal(jax.random.key(1), (heads, 3, dim))
    table = rotation(slots, dim, True)

    def by_kernels(*arrays):
        return packed_attention(
            *arrays, table.cos, table.sin, adjacent=True, scale=0.25, visibility=Causal(), target=TPU,
            precision="highest", interpret=True,
        )  # fmt: skip

    def twice(function):
        def layer(packed, scale):
            out = function(packed * scale, bias * scale)
            return packed + out.swapaxes(1, 2)[:, :, :, None], None

        def squares(packed, scales):
            first = jax.grad(lambda *arrays: jnp.sum(jax.lax.scan(layer, *arrays)[0] ** 3), argnums=(0, 1))(
                packed, scales
            )
            return sum(jnp.sum(gradient**2) for gradient in first)

        return jax.jit(jax.grad(squares, argnums=(0, 1)))(packed, jnp.asarray([0.5, 0.7]))

    for ours, theirs in zip(twice(by_kernels), twice(functools.partial(separate, table, 0.25, Causal())), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_a_layer_for_tpus_gives_its_projection_to_the_kernels(monkeypatch):
    config = TransformerConfig(width=32, layers=1, heads=2, kv_heads=2, head_dim=16, rope="axial")
    layer = nn_attention.Attention(config, jax.random.key(0), Compute())
    h, table = jax.random.normal(jax.random.key(1), (1, 24, 32)), rotation(24, 16, True)

    def output(temperature=None):
        return layer(h, rotation=table, visibility=Causal(), temperature=temperature)[0]

    expected = output()
    calls = []

    def interpreted(*arrays, **options):
        calls.append(options)
        return packed_attention(*arrays, **options, interpret=True)

    monkeypatch.setattr(nn_attention, "layout_target", lambda layout: TPU)
    monkeypatch.setattr(nn_attention, "packed_attention", interpreted)
    assert np.abs(jax.jit(output)() - expected).max() < 1e-5 and len(calls) == 1
    # With a temperature, the scale of the logits is traced: queries are scaled first.
    jax.eval_shape(lambda: output(2.0))
    assert len(calls) == 1


def test_what_the_packed_kernels_take():
    def takes(slots, target=TPU, implementation=None, dim=64, dtype="bfloat16"):
        shape = (1, slots, 16, 3, dim)
        return takes_packed(shape, dtype, visibility=Causal(), implementation=implementation, target=target)

    assert takes(1152) and takes(18736) and takes(1152, implementation="pallas")
    assert not takes(1152, implementation="xla") and not takes(1152, Target("cpu", "cpu"))
    assert (
        not takes(1152, Target("gpu", "NVIDIA H100")) and not takes(1152, dim=20) and not takes(1152, dtype="float16")
    )
    # Gradients of long sequences need smaller blocks than those of separate arrays, or do not fit at all.
    assert not takes(33_646) and not takes(18_736, Target("tpu", "TPU v5"))


def test_arrays_that_do_not_fit_each_other_are_refused():
    packed, table = jnp.zeros((1, 8, 2, 3, 16)), rotation(8, 16, True)
    options = {"adjacent": True, "scale": 1.0, "visibility": Causal(), "target": TPU}
    with pytest.raises(ValueError, match=r"packed must be \[B, n, h, 3, d\]"):
        packed_attention(packed, None, table.cos[:7], table.sin[:7], **options)
    with pytest.raises(ValueError, match=r"packed must be \[B, n, h, 3, d\]"):
        packed_attention(packed[:, :, :, :2], None, table.cos, table.sin, **options)
    with pytest.raises(ValueError, match=r"200000 slots of heads of 16 channels do not fit"):
        large = jax.ShapeDtypeStruct((1, 200_000, 2, 3, 16), jnp.bfloat16)
        tables = jax.ShapeDtypeStruct((200_000, 8), jnp.float32)
        jax.eval_shape(lambda large, *a: packed_attention(large, None, *a, **options), large, tables, tables)
