"""The checks that every implementation of attention passes, against dense attention written out in a few lines."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.kernels.attention import Causal, CausalFrames, FrameWindow, Full, Visibility, attention
from starflow_jax.kernels.kernel_choice import Target

# float32: sums in another order. bfloat16: weights and gradients are rounded to it (2^-9) before they are summed.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1.5e-2}


class Case(NamedTuple):
    """One problem: sizes as in `attention`."""

    rule: Visibility
    queries: int
    slots: int
    offset: int = 0
    length: int | None = None
    heads: int = 2
    kv_heads: int = 2
    dim: int = 64
    dtype: str = "float32"

    @property
    def bounds(self) -> dict[str, Any]:
        return {"offset": self.offset, "length": self.length}


CASES = [
    Case(Causal(), 1, 1, heads=1, kv_heads=1),
    Case(Causal(40), 40, 40, heads=2, kv_heads=1),  # a prefix alone
    Case(Full(), 3, 140, length=0),  # no key is visible
    Case(Causal(), 200, 200, heads=4, kv_heads=2),
    Case(FrameWindow(10, 50, 2, 1), 260, 260, heads=1, kv_heads=1, dtype="bfloat16"),
    Case(CausalFrames(8, 60, 0), 5, 200, offset=150, length=151, dim=32),
]


def inputs(count, slots, heads, kv_heads, dim, dtype, batch=1):
    """Query (scaled), key, value, and a gradient of the output."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(batch, heads, count, dim), *2 * [(batch, kv_heads, slots, dim)], (batch, heads, count, dim)]
    query, key, value, do = (jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True))
    return (query * dim**-0.5).astype(dtype), key, value, do


def dense_attention(query, key, value, *, visibility, offset=0, length=None):
    """The definition: softmax over the visible keys of every query, zeros where there are none; float32."""
    query, key, value = (jnp.asarray(a, jnp.float32) for a in (query, key, value))
    key, value = (jnp.repeat(a, query.shape[1] // a.shape[1], axis=1) for a in (key, value))
    rows, columns = offset + jnp.arange(query.shape[2])[:, None], jnp.arange(key.shape[2])[None]
    mask = visibility.mask(rows, columns) & (columns < (key.shape[2] if length is None else length))
    logits = jnp.einsum("bhnd,bhsd->bhns", query, key, precision="highest")
    logits = jnp.where(mask, logits, -1e30)
    weights = jnp.where(mask, jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))), 0)
    total = weights.sum(axis=-1, keepdims=True)
    return jnp.einsum("bhns,bhsd->bhnd", weights / jnp.where(total > 0, total, 1), value, precision="highest")


class AttentionSuite:
    """Values and gradients of an implementation; one subclass for each.

    Attributes:
      target: what the implementation is for. tiles: its block sizes.
      implementation: as `attention` takes it. interpret: runs kernels on a CPU.
      cases: of values and gradients.
    """

    target: Target
    tiles: Any = None
    implementation = "pallas"
    interpret = True
    cases: list[Any] = CASES

    def pytest_generate_tests(self, metafunc):
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases, ids=str)

    def attend(self, rule, **options):
        """The implementation as a function of query, key and value."""
        options |= {"implementation": self.implementation, "interpret": self.interpret, "precision": "highest"}
        return functools.partial(attention, visibility=rule, target=self.target, tiles=self.tiles, **options)

    def run(self, case, query, key, value, do):
        """The output, dq, dk and dv."""

        def values_and_gradients(arrays, do):
            out, pullback = jax.vjp(self.attend(case.rule, **case.bounds), *arrays)
            return out, *pullback(do.astype(out.dtype))

        return jax.jit(values_and_gradients)((query, key, value), do)

    def test_values_and_gradients(self, case):
        arrays = inputs(case.queries, case.slots, case.heads, case.kv_heads, case.dim, case.dtype)
        *operands, do = (jnp.asarray(a, jnp.float32) for a in arrays)
        dense = functools.partial(dense_attention, visibility=case.rule, **case.bounds)
        expected, pullback = jax.vjp(dense, *operands)
        results = self.run(case, *arrays)
        assert results[0].dtype == arrays[0].dtype
        for ours, theirs in zip(results, (expected, *pullback(do)), strict=True):
            ours = np.asarray(ours, np.float32)
            # Interpreters fill what a kernel does not write with NaN.
            assert ours.shape == theirs.shape and np.all(np.isfinite(ours))
            assert np.max(np.abs(ours - theirs)) <= TOLERANCE[case.dtype] * max(1.0, float(jnp.max(jnp.abs(theirs))))


class TransformableSuite(AttentionSuite):
    """What implementations also do that are JAX functions: traced offsets, derivatives of the gradient."""

    def test_the_offset_may_be_traced(self):
        """A chunk of queries anywhere in a cache, the gradient too, in one program."""
        rule = Causal(3)
        *arrays, do = inputs(4, 300, 2, 1, 64, "float32")

        def total(attend, offset, *arrays):
            return jnp.sum(attend(*arrays, offset=offset, length=offset + 4) * do)

        ours = jax.jit(jax.value_and_grad(functools.partial(total, self.attend(rule)), (1, 2, 3)))
        dense = functools.partial(dense_attention, visibility=rule)
        for offset in (0, 127, 290):
            expected = jax.value_and_grad(functools.partial(total, dense), (1, 2, 3))(offset, *arrays)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours(offset, *arrays), expected)

    def test_a_gradient_can_be_differentiated(self):
        """A loss that contains the gradient with respect to the input, as the score denoiser's does."""
        *arrays, do = inputs(130, 130, 1, 1, 16, "float32")

        def loss(attend, scale, arrays):
            def energy(query, key, value):
                return jnp.sum(jnp.sin(attend(scale * query, key, value)) * do)

            return sum(jnp.sum(g**2) for g in jax.grad(energy, (0, 1, 2))(*arrays))

        dense = functools.partial(dense_attention, visibility=Causal())
        expected = jax.jit(jax.value_and_grad(functools.partial(loss, dense)))(2.0, arrays)
        ours = jax.jit(jax.value_and_grad(functools.partial(loss, self.attend(Causal()))))(2.0, arrays)
        np.testing.assert_allclose(ours, expected, rtol=1e-4)
