"""The integer codes and transforms of `starflow_jax.compression`: nothing is lost, lengths are as the theory says."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starflow_jax.compression.lifting import LiftedBasis
from starflow_jax.compression.modular_scale import Grid, ScaledGrid, pop_scaled, push_scaled, scaled_grid
from starflow_jax.compression.noise_code import NoiseCode
from starflow_jax.compression.pixel_grid import PixelGrid
from starflow_jax.compression.rans import AnsStack
from starflow_jax.core.config.pixel_map_config import PixelMapConfig
from starflow_jax.data.decoding.dequantise import dequantise
from starflow_jax.flows.pixel_map import map_pixels, token_basis

WORDS = st.lists(st.integers(0, 2**16 - 1), max_size=20)
UNIFORM = st.integers(1, 2**24).flatmap(lambda size: st.tuples(st.integers(0, size - 1), st.just(size)))
BITS = st.integers(0, 24).flatmap(lambda count: st.tuples(st.integers(0, 2**count - 1), st.just(count)))
SEED = st.integers(0, 2**32 - 1)


@settings(max_examples=40, deadline=None)
@given(WORDS, st.lists(st.tuples(UNIFORM, BITS), max_size=40))
def test_what_is_pushed_is_popped_in_reverse(words, symbols):
    stack = AnsStack(words)
    for (value, size), (bits, count) in symbols:
        stack.push_uniform(value, size)
        stack.push_bits(bits, count)
    read = AnsStack.from_bytes(stack.to_bytes())
    for (value, size), (bits, count) in reversed(symbols):
        assert read.pop_bits(count) == bits
        assert read.pop_uniform(size) == value
    assert read.restored(words)


@settings(max_examples=40, deadline=None)
@given(WORDS, st.lists(st.one_of(st.integers(1, 2**24), st.integers(0, 24).map(lambda count: -count)), max_size=40))
def test_what_is_popped_can_be_pushed_back(words, sizes):
    """Also where more is popped than there is: the words from below the bottom return to where they came from."""
    stack, values = AnsStack(words), []
    for size in sizes:
        values.append(stack.pop_uniform(size) if size > 0 else stack.pop_bits(-size))
        assert 0 <= values[-1] < (size if size > 0 else 2**-size)
    read = AnsStack.from_bytes(stack.to_bytes())
    for size, value in reversed(list(zip(sizes, values, strict=True))):
        if size > 0:
            read.push_uniform(value, size)
        else:
            read.push_bits(value, -size)
    assert read.restored(words)


def test_the_length_is_the_entropy():
    rng, stack = np.random.default_rng(0), AnsStack()
    sizes = rng.integers(2, 5000, 3000)
    for size in sizes:
        stack.push_uniform(int(rng.integers(size)), int(size))
    assert stack.bits - 41 == pytest.approx(np.log2(sizes).sum(), rel=1e-4, abs=16)
    assert 8 * len(stack.to_bytes()) <= stack.bits + 16


def test_a_stream_that_no_stack_wrote_is_refused():
    for data in (b"", b"1234567" + b"x", b"\0" * 7, bytes(6)):
        with pytest.raises(ValueError, match="a coded stream must"):
            AnsStack.from_bytes(data)


def test_a_stack_that_was_read_does_not_borrow():
    stack = AnsStack.from_bytes(AnsStack().to_bytes())
    with pytest.raises(ValueError, match="the coded stream ends too early"):
        stack.pop_bits(24)


@pytest.mark.parametrize("value", [2**3000, -(2**3000)])
def test_a_number_that_no_image_leads_to_is_refused(value):
    code, stack, scaled = NoiseCode(8), AnsStack(), ScaledGrid(np.ones(1, np.int64), np.zeros(1, np.int64))
    stack.push_bits(0, 12)
    code.push(stack, value)
    with pytest.raises(ValueError, match="a number that no image leads to"):
        pop_scaled(AnsStack.from_bytes(stack.to_bytes()), code, scaled)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 12), st.lists(st.one_of(st.integers(-(2**14), 2**14), st.integers(-(2**200), 2**200))))
def test_noise_of_any_size_comes_back(bits, values):
    code, stack = NoiseCode(bits), AnsStack()
    for value in values:
        code.push(stack, value)
    assert [code.pop(stack) for _ in values] == values[::-1]
    assert stack.restored([])


@pytest.mark.parametrize("bits", [3, 8])
def test_noise_costs_its_density(bits):
    z, code, stack = np.random.default_rng(0).normal(size=4000), NoiseCode(bits), AnsStack()
    for value in np.floor(z * 2**bits).astype(int).tolist():
        code.push(stack, value)
    exact = (0.5 * (z**2).sum() + 2000 * math.log(2 * math.pi)) / math.log(2) + 4000 * bits
    assert stack.bits - 41 == pytest.approx(exact, rel=2e-3)


@settings(max_examples=30, deadline=None)
@given(SEED, st.sampled_from([2.0**-8, 0.0074, 0.25]), st.booleans())
def test_the_modular_scale_transform_is_a_bijection(seed, spacing, is_last):
    """Whatever the network predicts, also scales of 0 and infinity, and means that are no numbers."""
    rng = np.random.default_rng(seed)
    values, mean = rng.integers(-3000, 3000, (5, 4)), rng.normal(size=(5, 4)).astype(np.float32)
    scale = np.exp(3 * rng.normal(size=(5, 4))).astype(np.float32)
    scale[0], mean[1] = [0, np.nan, np.inf, 1e-38], [np.nan, np.inf, -np.inf, 1e30]
    scaled = scaled_grid(mean, scale, Grid(spacing, rng.normal(size=4)), 2.0**-8)
    noise, stack = NoiseCode(8) if is_last else None, AnsStack([1, 2, 3])
    z = push_scaled(stack, values, scaled, noise)
    read = AnsStack.from_bytes(stack.to_bytes())
    np.testing.assert_array_equal(pop_scaled(read, z if noise is None else noise, scaled), values)
    assert read.restored([1, 2, 3])


def test_the_modular_scale_transform_costs_the_log_determinant():
    rng = np.random.default_rng(1)
    mean, scale = rng.normal(size=(2000, 1)), np.exp(rng.normal(size=(2000, 1)))
    grid = Grid(2.0**-7, np.zeros(1))
    values = np.floor((mean + scale * rng.normal(size=scale.shape)) / grid.spacing).astype(np.int64)
    scaled = scaled_grid(mean.astype(np.float32), scale.astype(np.float32), grid, 2.0**-9)
    stack = AnsStack(rng.integers(2**16, size=4000).tolist())
    before = stack.bits
    z = push_scaled(stack, values, scaled, None)
    # log2 of the cells of the outgoing grid that one cell of the incoming grid becomes, for each value
    assert before - stack.bits == pytest.approx(np.log2(4 / scale).sum(), rel=2e-3)
    # The image of a value is where the real map puts its cell, to one cell of the outgoing grid.
    low, high = ((values + end) * grid.spacing - mean for end in (0, 1))
    assert np.all(z >= np.floor(low / scale * 2**9) - 1) and np.all(z <= np.floor(high / scale * 2**9) + 1)


@settings(max_examples=20, deadline=None)
@given(SEED, st.integers(1, 6))
def test_a_lifted_basis_is_a_bijection_near_the_orthogonal_map(seed, size):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    lifted, values = LiftedBasis.of(basis), rng.integers(-5000, 5000, (50, size))
    result = lifted.forward(values)
    np.testing.assert_array_equal(lifted.backward(result), values)
    assert np.abs(result - values @ basis).max() < 2 * size


def test_the_cosine_basis_is_lifted():
    config = PixelMapConfig(basis="cosine")
    basis = token_basis(config, 1, 4, "tarflow")
    values = np.random.default_rng(0).integers(0, 1500, (200, 16))
    assert np.abs(LiftedBasis.of(basis).forward(values) - values @ basis).max() < 10


MAPS = (
    None,
    PixelMapConfig(levels=17, normal_cells=((0, 8.0), (16, 3.0))),
    PixelMapConfig(levels=17, kind="logit"),
)


@pytest.mark.parametrize("pixel_map", MAPS, ids=["none", "normal cells", "logit"])
def test_pixels_come_back_from_their_places(pixel_map):
    grid, pixels = PixelGrid(17, 3, pixel_map), np.random.default_rng(0).integers(17, size=(4, 50))
    stack = AnsStack([5])
    positions = grid.pop(stack, pixels)
    read = AnsStack.from_bytes(stack.to_bytes())
    np.testing.assert_array_equal(grid.push(read, positions), pixels)
    assert read.restored([5])
    for position in (-1, grid.starts[-1]):
        with pytest.raises(ValueError, match="no level"):
            grid.push(read, np.asarray([position]))


@pytest.mark.parametrize("pixel_map", MAPS, ids=["none", "normal cells", "logit"])
def test_places_are_distributed_as_uniform_noise_is_by_the_map(pixel_map):
    """The mean and the spread of the places of one level are those of mapped dequantised pixels."""
    rng, level = np.random.default_rng(0), np.zeros((1, 4000), int)
    stack = AnsStack(rng.integers(2**16, size=10_000).tolist())
    coded = PixelGrid(17, 3, pixel_map)
    real = coded.grid.real(coded.pop(stack, level)[..., None])
    x = dequantise(level, rng.random(level.shape).astype(np.float32), 17)
    exact = x if pixel_map is None else np.asarray(jax.jit(map_pixels, static_argnums=0)(pixel_map, jnp.asarray(x))[0])
    assert real.mean() == pytest.approx(float(exact.mean()), abs=float(4 * exact.std() / 60))
    assert real.std() == pytest.approx(float(exact.std()), rel=0.06)


def test_a_map_that_is_too_wide_is_refused():
    wide = dataclasses.replace(PixelMapConfig(levels=17), normal_cells=((0, 1e5),))
    with pytest.raises(ValueError, match=r"flow.pixel_map must give a level at most 65536 positions"):
        PixelGrid(17, 3, wide)
