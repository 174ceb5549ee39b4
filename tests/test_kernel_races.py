"""The TPU's kernels have no races and read nothing out of bounds: an interpreter of two cores with vector clocks."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_suite import Case, dense_attention, inputs
from jacobi_update_suite import HEADS, RELEASED, operands, written_out
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from starflow_jax.kernels.attention import Causal, CausalFrames, FrameWindow, attention
from starflow_jax.kernels.attention.block_sizes import Tiles
from starflow_jax.kernels.attention.packed import packed_attention
from starflow_jax.kernels.attention.rotary import Rotary
from starflow_jax.kernels.jacobi_update import tpu
from starflow_jax.kernels.jacobi_update.reference import UpdateCall
from starflow_jax.kernels.kernel_choice import Target

TPU = Target("tpu", "TPU v5e")
# Two cores share the parallel axes of a grid, in a random order; memory that was not written is NaN.
WATCHED = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2, random_seed=0)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh_interpreter():
    """An error leaves the interpreter's memory behind."""
    pltpu.reset_tpu_interpret_mode_state()
    yield
    pltpu.reset_tpu_interpret_mode_state()


def assert_no_race():
    assert interpret_pallas_call.races is not None, "the kernel was not interpreted"
    assert not interpret_pallas_call.races.races_found


def test_a_race_is_found():
    """Both cores write the same block: the check below is one that can fail."""

    def write(_, out):
        out[...] = jnp.full(out.shape, pl.program_id(0), jnp.float32)

    run = pl.pallas_call(
        write,
        grid=(4,),
        in_specs=[pl.BlockSpec((8, 128), lambda i: (0, 0))],
        out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)),
        out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=WATCHED,
    )
    jax.block_until_ready(run(jnp.zeros((8, 128))))
    assert interpret_pallas_call.races.races_found


@pytest.mark.parametrize(
    "case",
    [
        Case(Causal(), 256, 256, heads=2, kv_heads=2, dim=16),
        Case(Causal(9), 200, 200, heads=4, kv_heads=2, dim=16),  # shared keys, ragged blocks
        Case(FrameWindow(10, 50, 2, 1), 260, 260, heads=2, kv_heads=2, dim=16),
        Case(CausalFrames(8, 60, 0), 5, 200, offset=150, length=151, dim=16),
    ],
    ids=str,
)
def test_attention_and_its_gradients(case):
    *arrays, do = inputs(case.queries, case.slots, case.heads, case.kv_heads, case.dim, case.dtype, batch=2)
    tiles = Tiles(128, 128, 1, 128, 128, 1)
    options = {"implementation": "pallas", "target": TPU, "tiles": tiles, "precision": "highest"}
    attend = functools.partial(attention, visibility=case.rule, interpret=WATCHED, **options, **case.bounds)
    out, pullback = jax.vjp(attend, *arrays)
    jax.block_until_ready(out)
    assert_no_race()
    gradients = jax.block_until_ready(pullback(do))
    assert_no_race()
    expected, pullback = jax.vjp(functools.partial(dense_attention, visibility=case.rule, **case.bounds), *arrays)
    for ours, theirs in zip((out, *gradients), (expected, *pullback(do)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("rule", "slots", "tiles"),
    [
        (Causal(), 300, Tiles(128, 128, 2, 256, 128, 1)),
        (Causal(9), 200, Tiles(256, 128, 1, 128, 256, 2)),
        (FrameWindow(10, 50, 2, 1), 260, Tiles(128, 128, 1, 128, 128, 2)),
    ],
    ids=str,
)
def test_attention_of_a_packed_projection(rule, slots, tiles):
    keys = jax.random.split(jax.random.key(0), 3)
    packed, do = jax.random.normal(keys[0], (2, slots, 2, 3, 16)), jax.random.normal(keys[1], (2, 2, slots, 16))
    angles = jax.random.normal(keys[2], (slots, 8))
    rotary = Rotary(adjacent=True, scale=0.25)

    def expected(packed):
        operands = rotary.unpack(packed.transpose(3, 0, 2, 4, 1), rotary.tables(jnp.cos(angles), jnp.sin(angles)))
        return dense_attention(*operands, visibility=rule)

    attend = functools.partial(
        packed_attention, adjacent=True, scale=0.25, visibility=rule, target=TPU, tiles=tiles, precision="highest",
        interpret=WATCHED,
    )  # fmt: skip
    out, pullback = jax.vjp(lambda packed: attend(packed, None, jnp.cos(angles), jnp.sin(angles)), packed)
    jax.block_until_ready(out)
    assert_no_race()
    (gradient,) = jax.block_until_ready(pullback(do))
    assert_no_race()
    theirs, pullback = jax.vjp(expected, packed)
    np.testing.assert_allclose(out, theirs, atol=1e-4)
    np.testing.assert_allclose(gradient, *pullback(do), atol=1e-4)


@pytest.mark.parametrize(("heads", "kv_heads", "count"), [(4, 4, 1), (6, 2, 3)])
def test_decoding(heads, kv_heads, count):
    offset, slots = 140, 300
    query, key, value, _ = inputs(count, slots, heads, kv_heads, 32, "float32", batch=2)
    caches = [jnp.stack([jnp.full_like(a, jnp.nan), a]) for a in (key, value)]
    out = attention(
        query, *caches, visibility=Causal(), offset=offset, length=offset + count, layer=1, implementation="pallas",
        target=TPU, interpret=WATCHED,
    )  # fmt: skip
    jax.block_until_ready(out)
    assert_no_race()
    expected = dense_attention(query, key, value, visibility=Causal(), offset=offset)
    np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize("head", [RELEASED, HEADS["tarflow"]], ids=["starflow", "tarflow"])
def test_the_jacobi_update(head, monkeypatch):
    """Several tiles of several samples; the estimate is replaced in place.

    Whole tiles: this interpreter returns a ragged array that is replaced in place with the padding of its last tile.
    """
    monkeypatch.setattr(tpu, "_BLOCK_BYTES", 2**15)
    given = operands(3, 384, 4, head)
    call = UpdateCall.from_arrays(given.out, given.x, head, TPU, WATCHED)
    new, sums = jax.block_until_ready(tpu.TPUUpdate().update(call, given))
    assert_no_race()
    expected, expected_sums = written_out(head, given)
    np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sums, expected_sums, rtol=1e-4)
