"""Windows after the first may have a condition of their own: "(extend) ..." where a clip continues."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import VIDEO, normal, random_flow

from starflow_jax.core.config import load_config
from starflow_jax.flows.parameters import split
from starflow_jax.sampling.videos.video_plan import plan_videos, text_states
from starflow_jax.solvers import SlidingWindow, inverse
from starflow_jax.solvers.streaming.pipeline import FrameStream

WINDOW = SlidingWindow(2, 1)
SHAPE = (1, 4, 2, 2, 2)


@pytest.fixture(scope="module")
def flow():
    return random_flow(VIDEO)


@pytest.fixture(scope="module")
def draw(flow):
    return jax.jit(lambda z, cond, later: inverse(flow, z, cond, window=WINDOW, later_cond=later).x)


def test_it_conditions_the_windows_after_the_first_alone(draw):
    z, first, second = normal(SHAPE), normal((1, 3, 6), 1), normal((1, 3, 6), 2)
    plain, mixed = draw(z, first, first), draw(z, first, second)
    np.testing.assert_array_equal(mixed[:, :2], plain[:, :2])
    assert float(jnp.min(jnp.max(jnp.abs(mixed - plain)[:, 2:], axis=(2, 3, 4)))) > 1e-3


def test_a_stream_draws_the_same(flow, draw):
    z, first, second = normal(SHAPE), normal((1, 3, 6), 1), normal((1, 3, 6), 2)
    stream = FrameStream(split(flow)[1], flow.config, SHAPE, first, window=WINDOW, later_cond=second)
    frames = [frame for group in stream.run(z, None, lambda _, frames: frames) for frame in group]
    np.testing.assert_allclose(jnp.stack(frames, axis=1), draw(z, first, second), atol=1e-5)


def test_another_shape_is_refused(flow):
    with pytest.raises(ValueError, match=r"later_cond must have the shape of cond, \(1, 3, 6\), got \(1, 2, 6\)"):
        inverse(flow, normal(SHAPE), normal((1, 3, 6)), window=WINDOW, later_cond=normal((1, 2, 6)))


def test_a_long_video_is_captioned_as_one_that_goes_on():
    config = load_config("experiments/moving_digits.py:tiny")
    plan = plan_videos(config, ["a seven moving left", "", "(extend) a two moving up"], frames=9)
    expected = text_states(config, ["(extend) a seven moving left", "", "(extend) a two moving up"])
    np.testing.assert_array_equal(plan.later_text, expected)
    assert plan_videos(config, ["a seven moving left"]).later_text is None
