"""Likelihood by frame and token: the parts sum to the whole, and no frame's part depends on a later frame."""

import dataclasses

import jax
import numpy as np
import pytest
from random_flows import CLASSES, IMAGE, VIDEO, normal, random_flow

from starflow_jax.evaluation.likelihood.frame_likelihood import (
    cut_windows,
    join_windows,
    token_log_probs,
    window_starts,
)
from starflow_jax.flows.order import is_frame_causal

GLOBAL = dataclasses.replace(VIDEO, shallow_local=False, denoiser=None)
TEXT = normal((2, 3, 6), 3)
CLIP = normal((2, 4, 2, 4, 2))
CASES = {
    "local shallow blocks": (VIDEO, CLIP, TEXT),
    "shallow blocks over the video": (GLOBAL, CLIP, TEXT),
    "an identity block": (dataclasses.replace(GLOBAL, layers_per_block=(1, 0, 1)), CLIP, TEXT),
    "a still image": (IMAGE, normal((2, 4, 2, 2)), TEXT),
    "a still image of a video model": (VIDEO, CLIP[:, 0], TEXT),
    "TARFlow": (CLASSES, normal((2, 4, 4, 1)), np.array([0, 2])),
}


@pytest.fixture(scope="module")
def programs():
    """Token shares and the whole log-likelihood of each kind of flow, compiled at most once."""
    found = {}

    def of(name):
        if name not in found:
            config, _, cond = CASES[name]
            flow = random_flow(config)
            found[name] = jax.jit(lambda x: (token_log_probs(flow, x, cond), flow.log_prob(x, cond)))
        return found[name]

    return of


@pytest.mark.parametrize("name", CASES)
def test_tokens_sum_to_the_log_likelihood(programs, name):
    config, x, _ = CASES[name]
    shares, whole = programs(name)(x)
    p = config.patch_size
    assert shares.shape == (*x.shape[:-3], x.shape[-3] // p, x.shape[-2] // p) and shares.dtype == np.float32
    np.testing.assert_allclose(np.asarray(shares, np.float64).reshape(2, -1).sum(1), whole, rtol=1e-5)


@pytest.mark.parametrize("name", ["local shallow blocks", "shallow blocks over the video", "an identity block"])
def test_a_frame_changes_its_own_share_and_later_ones_only(programs, name):
    config, x, _ = CASES[name]
    assert is_frame_causal(config)
    before, _ = programs(name)(x)
    for frame in range(x.shape[1]):
        after, _ = programs(name)(x.at[:, frame].add(0.5))
        moved = np.abs(np.asarray(after - before)).max(axis=(0, 2, 3)) > 0
        assert moved.tolist() == [t >= frame for t in range(x.shape[1])]


def test_logdets_are_put_back_from_the_order_of_their_block(programs):
    """Blocks 0 and 2 read each frame backwards, block 1 forwards."""
    flow, shape = random_flow(VIDEO), (2, 4, 8)
    output = jax.jit(lambda x: flow.forward(x, TEXT))(CLIP)
    first, second, deep = (np.asarray(logdet).sum(-1).reshape(shape) for logdet in output.logdets)
    z = -0.5 * np.asarray(output.tokens[-1] ** 2 + np.log(2 * np.pi)).sum(-1).reshape(shape)
    expected = z + first[..., ::-1] + second + deep[..., ::-1]
    found, _ = programs("local shallow blocks")(CLIP)
    np.testing.assert_allclose(np.reshape(found, shape), expected, rtol=1e-5)


def test_a_share_lies_where_its_token_is():
    """With blocks that read nothing but a constant, only the changed token's share moves."""
    flow = random_flow(VIDEO)
    for block in flow.blocks:
        block.proj_out.kernel[...] = np.zeros_like(block.proj_out.kernel[...])
    run = jax.jit(lambda x: token_log_probs(flow, x, TEXT))
    for place in ((0, 0, 1), (2, 1, 3), (3, 0, 0)):
        moved = np.asarray(run(CLIP) != run(CLIP.at[(slice(None), *place)].add(1.0)))
        assert np.argwhere(moved[0]).tolist() == [list(place)]


def test_frames_read_backwards_over_the_video_are_not_causal():
    assert not is_frame_causal(dataclasses.replace(GLOBAL, temporal_causal=False))
    assert not is_frame_causal(dataclasses.replace(GLOBAL, temporal_causal=False, order="R2L"))


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 7, 12])
@pytest.mark.parametrize("context", [0, 1, 2, 3])
def test_every_frame_counts_once_after_its_context(frames, context):
    x = np.arange(1, frames + 1)
    windows = cut_windows(x, 4, context)
    np.testing.assert_array_equal(join_windows(windows, frames, context), x)
    for start, later in zip(window_starts(frames, 4, context)[1:], windows[1:], strict=True):
        assert start > 0 and later[context] == start + context + 1  # the frame that counts first follows its context


def test_padding_at_the_end_changes_no_score(programs):
    run = programs("local shallow blocks")
    cut = np.stack([cut_windows(np.asarray(clip[:3]), 4, 2)[0] for clip in CLIP])
    np.testing.assert_array_equal(run(cut)[0][:, :3], run(CLIP)[0][:, :3])


def test_a_context_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="context must be below window=4, got 4"):
        window_starts(9, 4, 4)
