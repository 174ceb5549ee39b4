"""The reference of attention, also against a naive masked softmax in float64; visibility rules, cache, rotations."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_suite import TransformableSuite
from random_flows import normal

from starflow_jax.kernels.attention import Causal, CausalFrames, FrameWindow, Full, attention, reference
from starflow_jax.kernels.kernel_choice import Target
from starflow_jax.nn import KVCache
from starflow_jax.nn.rope import axial_positions, line_positions, rotation


class TestReference(TransformableSuite):
    target, implementation, interpret = Target("cpu"), "xla", False


def naive(query, key, value, visibility, offset):
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    group = query.shape[1] // key.shape[1]
    key, value = (np.repeat(a, group, axis=1) for a in (key, value))
    logits = query @ key.swapaxes(-1, -2)
    rows, columns = np.arange(query.shape[2])[:, None] + offset, np.arange(key.shape[2])[None]
    mask = np.asarray(visibility.mask(jnp.asarray(rows), jnp.asarray(columns)))
    logits = np.where(mask, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


SHAPES = [  # queries, slots, offset
    (1, 1, 0),
    (7, 7, 0),
    (5, 12, 4),
    (1, 9, 8),
    (13, 13, 0),
]


@pytest.mark.parametrize(
    "heads, kv_heads", [(4, 2), *(pytest.param(*heads, marks=pytest.mark.slow) for heads in ((2, 2), (3, 1)))]
)
@pytest.mark.parametrize("count, slots, offset", SHAPES)
@pytest.mark.parametrize("visibility", [Causal(), Full(), FrameWindow(2, 3, 2, 1)], ids=["causal", "full", "frames"])
def test_attention_in_chunks_is_the_naive_one(heads, kv_heads, count, slots, offset, visibility):
    query, key, value = (normal((2, h, n, 8), i) for i, (h, n) in enumerate([(heads, count), *2 * [(kv_heads, slots)]]))
    expected = naive(query, key, value, visibility, offset)
    for chunk in (4, 128):
        ours = attention(query, key, value, visibility=visibility, offset=offset, query_chunk=chunk)
        np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_a_traced_offset_changes_nothing():
    query, key, value = (normal((1, 2, n, 8), i) for i, n in enumerate((3, 9, 9)))
    run = jax.jit(lambda offset: attention(query, key, value, visibility=Causal(), offset=offset))
    for offset in (0, 4, 6):
        np.testing.assert_allclose(run(offset), naive(query, key, value, Causal(), offset), atol=2e-5)


@pytest.mark.slow  # the shared tests of implementations check gradients
def test_chunks_change_no_gradient():
    query, key, value = (normal((1, 2, 11, 8), i) for i in range(3))

    def loss(parts, chunk):
        return jnp.sum(attention(*parts, visibility=Causal(), query_chunk=chunk) ** 2)

    whole, chunked = (jax.grad(loss)((query, key, value), chunk) for chunk in (128, 3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), whole, chunked)


@pytest.fixture
def loops(monkeypatch):
    """Sequences of any length are taken in loops, in at most two groups of chunks."""
    monkeypatch.setattr(reference, "_MAX_STORED_PAIRS", 1)
    monkeypatch.setattr(reference, "_MAX_GROUPS", 2)


@pytest.mark.parametrize(
    "visibility",
    [Causal(), Causal(3), Full(), FrameWindow(2, 3, 2, 1), CausalFrames(2, 3, 0)],
    ids=["causal", "prefix", "full", "frames", "causal frames"],
)
def test_loops_over_chunks_are_the_naive_attention(loops, visibility):
    """17 queries in chunks of 4: groups of three and two chunks, the last of which has one query."""
    query, key, value = (normal((2, h, 17, 8), i) for i, h in enumerate((4, 2, 2)))

    @jax.jit
    def run(parts):
        attend = functools.partial(attention, visibility=visibility, query_chunk=4)
        return attend(*parts), jax.grad(lambda parts: jnp.sum(attend(*parts) ** 2))(parts)

    def by_stored_weights(parts):
        return jnp.sum(attention(*parts, visibility=visibility, query_chunk=128) ** 2)

    out, gradients = run((query, key, value))
    np.testing.assert_allclose(out, naive(query, key, value, visibility, 0), atol=2e-5)
    expected = jax.jit(jax.grad(by_stored_weights))((query, key, value))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradients, expected)


def test_loops_can_be_differentiated_twice_and_hide_what_is_not_valid(loops):
    query, key, value = (normal((1, 1, 11, 4), i) for i in range(3))

    def second(chunk):
        def loss(query):
            return jnp.sum(attention(query, key, value, visibility=Causal(), length=7, query_chunk=chunk) ** 2)

        return jax.jit(jax.grad(lambda query: jnp.sum(jax.grad(loss)(query) ** 2)))(query)

    np.testing.assert_allclose(second(4), second(128), atol=1e-4)


def test_a_query_without_visible_keys_gives_zero_and_has_no_gradient():
    def total(parts):
        out = attention(*parts, visibility=Causal(), length=0)
        assert out.shape == (1, 1, 3, 4)
        return jnp.sum((out + 1) ** 2)

    value, gradients = jax.value_and_grad(total)([normal((1, 1, 3, 4), i) for i in range(3)])
    assert value == 12
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), gradients)


RULES = [Causal(), Causal(3), Full(), CausalFrames(2, 3, 0), CausalFrames(0, 4, 1), FrameWindow(2, 3, 2, 1),
         FrameWindow(0, 4, 1, None), FrameWindow(3, 2, 3, 1)]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_bounds_never_decrease_and_spans_hold_all_visible_keys(rule):
    slots = 17
    index = np.arange(slots)
    start, end = rule.bounds(index, np)
    assert np.all(np.diff(end) >= 0) and (start is None or np.all(np.diff(start) >= 0))
    mask = np.asarray(rule.mask(jnp.asarray(index)[:, None], jnp.asarray(index)[None]))
    for first, last in itertools.combinations(range(slots + 1), 2):
        inside = np.zeros(slots, bool)
        for a, b in rule.spans(first, last, slots):
            inside[a:b] = True
        assert not np.any(mask[first:last] & ~inside)
        assert inside.sum() <= max(mask[first:last].any(axis=0).sum(), 1)


def test_frames_that_are_causal_inside_a_window():
    """Visible are the text and earlier tokens, back to the first frame of the window."""
    text, frame, window = 2, 3, 1
    slots = jnp.arange(text + 4 * frame)
    ours = np.asarray(CausalFrames(text, frame, window).mask(slots[:, None], slots[None]))
    for q, k in itertools.product(range(len(slots)), repeat=2):
        near = (k - text) // frame >= (q - text) // frame - window
        assert ours[q, k] == (k < text or (q >= k and near)), (q, k)


@pytest.mark.parametrize(
    "text, frame, frames, look_ahead, window", [(2, 3, 4, 2, 1), (0, 2, 5, 1, None), (3, 1, 4, 3, 2)]
)
def test_frame_window_is_the_rule_as_written(text, frame, frames, look_ahead, window):
    """Visible to frame q are frames q+A-1-R .. q+A-1 and all text; to text, all text and frames 0 .. A-1."""
    slots = jnp.arange(text + frame * frames)
    ours = np.asarray(FrameWindow(text, frame, look_ahead, window).mask(slots[:, None], slots[None]))
    for q, k in itertools.product(range(len(slots)), repeat=2):
        if k < text:
            expected = True
        elif q < text:
            expected = (k - text) // frame <= look_ahead - 1
        else:
            last = (q - text) // frame + look_ahead - 1
            first = 0 if window is None else last - window
            expected = first <= (k - text) // frame <= last
        assert ours[q, k] == expected, (q, k)


def test_writing_a_slot_again_replaces_it():
    first, second = normal((1, 2, 3, 4), 1), normal((1, 2, 3, 4), 2)
    empty = KVCache.empty(2, 1, 2, 8, 4, "float32")
    layer = jnp.int32(1)
    once = empty.write(layer, 2, second, first)
    twice = empty.write(layer, 2, first, second).write(layer, 2, second, first)
    jax.tree.map(np.testing.assert_array_equal, once, twice)
    np.testing.assert_array_equal(once.keys[1, :, :, 2:5], second)
    np.testing.assert_array_equal(once.values[1, :, :, 2:5], first)
    assert float(jnp.abs(once.keys[0]).max()) == 0.0  # the other layer is untouched


@pytest.mark.parametrize("pairs", ["adjacent", "half"])
def test_rotary_products_depend_on_distance_alone(pairs):
    query, key = (normal((1, 1, 1, 16), i) for i in range(2))
    table = rotation(line_positions(20), 16, pairs)

    def product(i, j):
        return float(jnp.sum(table.at(i, 1)(query) * table.at(j, 1)(key)))

    assert product(3, 1) == pytest.approx(product(17, 15), abs=1e-4)
    assert product(3, 1) != pytest.approx(product(3, 2), abs=1e-3)
    np.testing.assert_allclose(jnp.linalg.norm(table.at(9, 1)(query)), jnp.linalg.norm(query), rtol=1e-5)


def test_any_aspect_ratio_spans_the_same_area():
    for rows, columns in ((4, 4), (2, 8)):
        positions = axial_positions(rows, columns, span=4, text=3)
        extent = positions[3:].max(axis=0) - positions[3:].min(axis=0)
        scale = 4 / np.sqrt(rows * columns)
        np.testing.assert_allclose(extent, [scale * (rows - 1), scale * (columns - 1), 0])
        np.testing.assert_allclose(positions[:3, 2], [0, 4 / 3, 8 / 3])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rotation_is_the_same_with_pairs_exchanged_by_a_product(dtype):
    table = rotation(axial_positions(2, 3, span=3, axes=3, text=2), 20, "adjacent")
    x = jax.random.normal(jax.random.key(0), (2, 3, 8, 20)).astype(dtype)
    difference = table(x) - table(x, exchange_by_product=True)
    assert jnp.max(jnp.abs(difference.astype(jnp.float32))) <= jnp.finfo(dtype).eps
