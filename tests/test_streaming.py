"""Videos frame by frame: the videos of `generate`, each frame as early as its denoiser allows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_flows import VIDEO, normal, random_flow
from test_cli_sample_videos import CONFIG
from test_stream import compilations  # noqa: F401 (a fixture)

from starflow_jax.core.config import DenoiserConfig
from starflow_jax.flows import denoise_in_chunks
from starflow_jax.sampling.streaming.denoise_chunks import FrameDenoiser, chunk_plan, frames_ahead
from starflow_jax.sampling.streaming.stream import stream, stream_plan
from starflow_jax.sampling.videos.video_plan import plan_videos
from starflow_jax.sampling.videos.video_sampling import generate
from starflow_jax.solvers import Jacobi, Sequential

KEY = jax.random.key(3)
CAPTIONS = ["a one left", "two"]


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_streamed_denoising_is_that_of_chunks_and_as_early_as_can_be(data):
    """For a denoiser that mixes each frame with the next few of its chunk, frames arriving in groups of any size."""
    total = data.draw(st.integers(1, 9), "frames")
    chunk = data.draw(st.none() | st.integers(1, 9), "chunk")
    overlap = None if chunk is None else data.draw(st.none() | st.integers(0, chunk - 1), "overlap")
    ahead = data.draw(st.none() | st.integers(0, 3), "ahead")
    video = np.random.default_rng(total).normal(size=(1, total, 1, 1, 1)).astype(np.float32)

    def denoise(x, start):
        reach = x.shape[1] if ahead is None else ahead
        later = [x[:, min(t, x.shape[1]) : t + reach + 1].sum(axis=1) for t in range(x.shape[1])]
        return jnp.stack(later, axis=1) * jnp.arange(1.0, x.shape[1] + 1)[:, None, None, None]

    expected = denoise_in_chunks(denoise, video, chunk=chunk, overlap=overlap)
    plan = chunk_plan(total, chunk, overlap)
    frames = tuple(video[:, t] for t in range(total))
    denoiser = FrameDenoiser(
        plan,
        ahead,
        lambda x, start: tuple(np.moveaxis(np.asarray(denoise(np.stack(x, axis=1), start)), 1, 0)),
        np.zeros_like(frames[0]),
    )
    found, at = [], 0
    while at < total:
        count = data.draw(st.integers(1, total - at), "group")
        found += denoiser.push(frames[at : at + count])
        at += count
        # A frame waits for those ahead of it in the chunk that it is taken from.
        ends = [chunk.start + chunk.length for chunk in plan for _ in range(chunk.keep, chunk.length)]
        due = sum(at >= (end if ahead is None else min(t + ahead + 1, end)) for t, end in enumerate(ends))
        assert len(found) == due
    assert [final.time for final in found] == list(range(total))
    np.testing.assert_allclose(np.stack([f.denoised for f in found], axis=1), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.stack([f.noisy for f in found], axis=1), video)


def test_how_far_the_denoiser_looks_ahead():
    """Two layers that each see one frame ahead: frame t depends on frame t + 2, and on none after it."""
    assert frames_ahead(VIDEO.denoiser) == 2
    assert frames_ahead(DenoiserConfig(3, True, None, None)) is None
    flow, x = random_flow(VIDEO), normal((1, 6, 2, 2, 2))
    flow.denoiser.proj_out.kernel[...] = normal(flow.denoiser.proj_out.kernel.shape, 1)
    run = jax.jit(flow.denoiser)
    text = normal((1, 3, 6), 3)
    before, after = run(x, text), run(x.at[:, 4].add(1.0), text)
    changed = np.abs(before - after).max(axis=(0, 2, 3, 4))
    assert (changed[:2] < 1e-6).all() and changed[2] > 1e-6


@pytest.mark.parametrize(
    "options",
    [
        {"solver": Sequential(), "denoise": "learned"},
        pytest.param(
            {
                "solver": Jacobi(block=2, tolerance=1e-6, per_sample=True),
                "frames": 7,
                "prefix": np.full((1, 4, 4, 1), 200, np.uint8),
                "denoise": "learned",
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_stream_shows_the_videos_of_generate(options, compilations):  # noqa: F811 (a fixture)
    flow = random_flow(CONFIG.flow)
    whole = generate(flow, CONFIG, KEY, CAPTIONS, **options)
    frames = list(videos := stream(flow, CONFIG, KEY, CAPTIONS, **options))
    assert [frame.index for frame in frames] == list(range(whole.videos.shape[1]))
    for name in ("x", "denoised"):
        drawn = np.stack([getattr(frame, name) for frame in frames], axis=1)
        np.testing.assert_allclose(drawn, getattr(whole, name), atol=1e-4)
    pixels = np.stack([frame.pixels for frame in frames], axis=1)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - whole.videos).max() <= 1
    given_frames = whole.given_frames
    np.testing.assert_array_equal(pixels[:, :given_frames], whole.videos[:, :given_frames])
    report = videos.report
    assert report.frames == len(frames) - given_frames
    assert 0 < report.first_frame == frames[given_frames].seconds <= report.seconds == frames[-1].seconds
    assert report.frames_per_second == report.frames / report.seconds
    assert all(block.converged.all() for block in report.blocks)
    if not given_frames:
        other_key = jax.random.key(4)  # may compile
        before = len(compilations)
        other = list(stream(flow, CONFIG, other_key, CAPTIONS[::-1], **options))
        assert len(compilations) == before
        assert not np.allclose(other[0].x, frames[0].x)
        # Batch after batch, the last one filled up: the same two videos and a third.
        plan = plan_videos(CONFIG, [*CAPTIONS, "one"], **options, batch_size=2)
        counts = []
        drawn, reports = stream_plan(flow, KEY, plan, progress=counts.append)
        assert drawn.videos.shape[0] == 3 and len(reports) == 2
        assert counts == [2] * len(frames) + [1] * len(frames)
        np.testing.assert_array_equal(drawn.videos[:2], pixels)
        np.testing.assert_array_equal(drawn.x[:2], np.stack([frame.x for frame in frames], axis=1))


def test_a_stream_may_be_left_early_and_refuses_what_it_cannot_do():
    flow = random_flow(CONFIG.flow)
    with stream(flow, CONFIG, KEY, CAPTIONS, solver=Sequential(), denoise="learned") as videos:
        next(videos)
    assert list(videos) == []
    assert videos.report.frames == 1 and videos.report.blocks == ()
    with pytest.raises(ValueError, match="batch_size is not an option of a stream"):
        stream(flow, CONFIG, KEY, CAPTIONS, batch_size=1)
