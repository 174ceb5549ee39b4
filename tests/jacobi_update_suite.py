"""The checks that every implementation of the Jacobi update passes, against the definition written out in float64."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import normal
from test_solvers_accelerated import MIX, toy

from starflow_jax.flows.affine_head import AffineHead
from starflow_jax.flows.prediction import Prediction
from starflow_jax.kernels.jacobi_update import gpu, tpu
from starflow_jax.kernels.jacobi_update.reference import Operands, UpdateCall
from starflow_jax.kernels.kernel_choice import Target
from starflow_jax.nn.cache import KVCache
from starflow_jax.solvers import Jacobi

RELEASED = AffineHead("softplus", 4.0, "ratio")
HEADS = {
    "starflow": RELEASED,
    "unguided": AffineHead("softplus", 0.0),
    "tarflow": AffineHead("exp", 0.0, "ab", annealed_tokens=300),
    "clipped exp": AffineHead("exp", 2.0, "a"),
    "unit": AffineHead("unit", 4.0, "b"),
}


def operands(samples: int, tokens: int, channels: int, head, dtype=jnp.float32, spread: float = 0.5) -> Operands:
    """Sample 0 has no committed prefix, sample 1 has one and ends early, sample 2 has converged."""
    keys = jax.random.split(jax.random.key(tokens), 3)
    outputs = channels if head.scale == "unit" else 2 * channels
    out = spread * jax.random.normal(keys[0], (head.num_passes * samples, tokens, outputs))
    z, x = (jax.random.normal(key, (samples, tokens, channels)) for key in keys[1:])
    span = jnp.asarray([[0, tokens], [1, max(tokens - 1, 1)], [3, 3]][:samples], jnp.int32)
    return Operands(out.astype(dtype), z, x, span, jnp.float32(1.5), jnp.int32(7))


def written_out(head: AffineHead, given: Operands) -> tuple[np.ndarray, np.ndarray]:
    """The update in float64: the specification's sections 1.5, 3 and 4, formula by formula."""
    out, z, x = (np.asarray(a, np.float64) for a in given[:3])
    weight, first, (samples, tokens, _) = float(given.weight), int(given.first), x.shape
    out = head.soft_clip * np.tanh(out / head.soft_clip) if head.soft_clip else out
    a, mean = (np.zeros_like(out), out) if head.scale == "unit" else np.split(out, 2, axis=-1)
    softplus = np.logaddexp(0, a + np.log(np.e - 1))
    scale = {"softplus": softplus, "exp": np.exp(a), "unit": np.ones_like(a)}[head.scale]
    (mean, *mean_u), (scale, *scale_u) = (np.split(array, head.num_passes) for array in (mean, scale))
    w = weight * (first + np.arange(tokens))[:, None] / (head.annealed_tokens - 1) if head.annealed_tokens else weight
    if head.guidance == "ratio":
        s = np.minimum(scale / scale_u[0], 1) ** 2
        d = 1 + w - w * s
        mean, scale = ((1 + w) * mean - w * s * mean_u[0]) / d, scale / np.sqrt(d)
    elif head.guidance:
        mean = mean + w * (mean - mean_u[0]) if "b" in head.guidance else mean
        scale = scale * (scale / scale_u[0]) ** w if "a" in head.guidance else scale
    new, sums = x.copy(), np.zeros((samples, 2))
    for sample, (begin, end) in enumerate(np.asarray(given.span)):
        moved = (mean + scale * z)[sample, begin:end]
        sums[sample] = ((moved - x[sample, begin:end]) ** 2).sum(), (moved**2).sum()
        new[sample, begin:end] = moved
    return new, sums


class JacobiUpdateSuite:
    """One subclass for every implementation; subclasses set the attributes.

    Attributes:
      implementation: a `reference.UpdateImplementation`.
      target: what it is for. interpret: runs it on a CPU.
    """

    implementation: object
    target: Target
    interpret: object = False

    @classmethod
    @functools.cache
    def compiled(cls, head: AffineHead):
        """The update as a jitted function of `Operands`."""

        def run(given):
            call = UpdateCall.from_arrays(given.out, given.x, head, cls.target, cls.interpret)
            assert cls.implementation.supports(call)
            return cls.implementation.update(call, given)

        return jax.jit(run)

    def check(self, head: AffineHead, given: Operands) -> None:
        """Same values as written out, and tokens that do not move are bitwise unchanged."""
        expected, expected_sums = written_out(head, given)
        new, sums = self.compiled(head)(given)
        # A few roundings of float32, relative to the terms that are added up.
        np.testing.assert_allclose(new, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())
        np.testing.assert_allclose(sums, expected_sums, rtol=2e-5, atol=1e-6)
        for sample, (begin, end) in enumerate(given.span.tolist()):
            for kept in (slice(0, begin), slice(end, None)):
                np.testing.assert_array_equal(new[sample, kept], given.x[sample, kept])

    @pytest.mark.parametrize("name", HEADS)
    def test_values_and_sums(self, name):
        """33 tokens: ragged, and a last tile that overlaps the one before; float32."""
        self.check(HEADS[name], operands(3, 33, 4, HEADS[name]))

    def test_bfloat16_with_many_tiles(self, monkeypatch):
        monkeypatch.setattr(tpu, "_BLOCK_BYTES", 2**15)
        monkeypatch.setattr(gpu, "_TILE_VALUES", 512)
        head = dataclasses.replace(RELEASED, soft_clip=3.0)  # compiled anew, with these tiles
        self.check(head, operands(2, 300, 12, head, jnp.bfloat16))

    def test_large_outputs_keep_their_precision(self):
        head = dataclasses.replace(RELEASED, soft_clip=0.0)
        self.check(head, operands(1, 33, 4, head, spread=8.0))

    def test_nan_does_not_spread(self):
        """NaN in the old estimate of tokens that move, and in the outputs of tokens that do not, affects no other."""
        given = operands(3, 33, 4, RELEASED)
        index = jnp.arange(33)
        moves = ((index >= given.span[:, :1]) & (index < given.span[:, 1:]))[:, :, None]
        expected, expected_sums = written_out(RELEASED, given)
        out = jnp.where(jnp.concatenate([moves, moves]), given.out, jnp.nan)
        x = jnp.where(moves, jnp.nan, given.x)
        new, sums = self.compiled(RELEASED)(given._replace(out=out, x=x))
        np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(sums[:, 1], expected_sums[:, 1], rtol=2e-5)
        assert np.isnan(sums[:2, 0]).all() and sums[2, 0] == 0

    def test_a_solver_takes_the_same_iterations(self):
        """A solver that runs this implementation gets the same tokens after the same iterations."""
        suite = self

        @dataclasses.dataclass(frozen=True)
        class Run(Prediction):
            def update(self, z, x, span):
                arrays = (self.out, z, x, span, jnp.float32(self.weight), jnp.int32(self.first))
                return suite.compiled(self.head)(Operands(*arrays))

        head, plain = AffineHead("softplus", 4.0), toy({1: MIX}, power=0.3)

        def predict(prediction):
            def read(previous, first, cache):
                affine, history = plain(previous, first, cache.keys)
                out = jnp.concatenate([jnp.full_like(affine.mean, -0.5), affine.mean], axis=-1)
                return prediction(out, 0.0, first, head), dataclasses.replace(cache, keys=history)

            return read

        z, known = normal((2, 70, 2)), jnp.zeros((2, 1, 2))
        solver = Jacobi(block=64, growth=1, per_sample=True, start="noise", tolerance=1e-6, max_iterations=40)
        cache = KVCache(jnp.zeros((2, 70 + 64, 2)), jnp.zeros(()))  # the keys are the tokens that `toy` has read
        runs = [
            jax.jit(lambda z, p=p: solver(predict(p), z, known, cache, start=0, frame=70))(z) for p in (Prediction, Run)
        ]
        np.testing.assert_allclose(runs[0].x, runs[1].x, atol=1e-5)
        np.testing.assert_array_equal(runs[0].report.iterations, runs[1].report.iterations)
