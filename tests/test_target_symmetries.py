"""A proposal made symmetric: its density, its samples, and a target that has the symmetry."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_targets import Shifted

import starflow_jax as sf

SHIFT = 2.0


@flax.struct.dataclass
class Moved(Shifted):
    """A normal distribution around a point, with the method that names the axes of conditions."""

    def leading_axes(self, condition):
        return ()


def around(point):
    return Moved({"mean": jnp.asarray(point), "log_scale": jnp.zeros(len(point))}, (len(point),))


def pair(x):
    """Two normal densities at +-SHIFT in the first number, without their normaliser."""
    squares = jnp.stack([(x - jnp.array([side, 0.0])) ** 2 for side in (SHIFT, -SHIFT)]).sum(axis=-1)
    return 1.5 + jax.nn.logsumexp(-0.5 * squares, axis=0) - jnp.log(2 * jnp.pi)


def test_the_mixture_over_a_group_has_equal_weights_where_it_is_the_target():
    one = around([SHIFT, 0.0])
    both = sf.targets.symmetrised(one, [jnp.negative])
    drawn = sf.targets.draw(both, pair, jax.random.key(0), 2000)
    assert float(drawn.effective_sample_size) > 1999 and abs(float(drawn.log_z) - 1.5 - np.log(2)) < 1e-4
    assert 0.45 < float(jnp.mean(drawn.x[:, 0] > 0)) < 0.55
    alone = sf.targets.draw(one, pair, jax.random.key(0), 2000)
    assert float(alone.effective_sample_size) < 400
    x = jax.random.normal(jax.random.key(1), (3, 4, 2))
    np.testing.assert_allclose(both.log_prob(x), both.log_prob(-x), rtol=1e-6)
    assert both.log_prob(x).shape == (3, 4)


def test_translations_are_a_group():
    rolls = [functools.partial(jnp.roll, shift=shift, axis=1) for shift in (1, 2)]
    mixture = sf.targets.symmetrised(around([1.0, 2.0, 3.0]), rolls)
    x = jax.random.normal(jax.random.key(2), (5, 3))
    expected = jax.nn.logsumexp(
        jnp.stack([around([1.0, 2.0, 3.0]).log_prob(jnp.roll(x, shift, 1)) for shift in range(3)]), axis=0
    ) - jnp.log(3)
    np.testing.assert_allclose(mixture.log_prob(x), expected, rtol=1e-5)


def test_tuning_trains_the_flow_by_the_likelihood_of_the_mixture():
    points = jax.random.normal(jax.random.key(3), (400, 2)) + jnp.array([SHIFT, 0.0])
    points = points * jax.random.choice(jax.random.key(4), jnp.array([-1.0, 1.0]), (400, 1))
    fitted, losses = sf.targets.tune(
        sf.targets.symmetrised(around([0.5, 0.3]), [jnp.negative]), points, jax.random.key(5), steps=200, lr=0.05
    )
    np.testing.assert_allclose(jnp.abs(fitted.params["mean"][0]), SHIFT, atol=0.3)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("symmetries", "message"),
    [
        ([], "at least one map"),
        ([lambda x: x[:, :2]], r"symmetries\[0\] must keep the shape \[1, 3\]"),
        ([lambda x: 2 * x], "must preserve volumes, got a factor of 8"),
        ([functools.partial(jnp.roll, shift=1, axis=1)], "must hold a whole group but the identity"),
        ([jnp.negative, lambda x: -x], r"got symmetries\[1\] twice or the identity"),
        ([lambda x: x], r"got symmetries\[0\] twice or the identity"),
    ],
)
def test_maps_that_are_no_group_are_refused(symmetries, message):
    with pytest.raises(ValueError, match=message):
        sf.targets.symmetrised(around([0.0, 0.0, 0.0]), symmetries)
