"""A video in chunks is the video at once, by two programs, in memory that does not grow with its length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import random_params

from starflow_jax.models.autoencoders import TiledWan, WanAutoencoder, WanConfig, decode_stream, encode_stream
from starflow_jax.models.autoencoders.wan.streaming import decode_first, decode_next, encode_first, encode_next

KINDS = {
    # As Wan2.1 with a stage less, as Wan2.1, and as Wan2.2.
    "short": WanConfig(2, 4, 4, (1, 2), 1, (True,), latents_mean=(0.1, 0.2), latents_std=(2.0, 0.5)),
    "plain": WanConfig(2, 4, 4, (1, 2, 2), 1, (True, True), latents_mean=(0.1, 0.2), latents_std=(2.0, 0.5)),
    "residual": WanConfig(
        2, 4, 8, (1, 1), 1, (True,), residual=True, patch=2, latents_mean=(0.1, 0.2), latents_std=(2.0, 0.5)
    ),
}


def relative(ours, theirs):
    return float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs))


def frames(array):
    return (array[:, index] for index in range(array.shape[1]))


@pytest.fixture(
    scope="module",
    params=[("short", 1), *(pytest.param(one, marks=pytest.mark.slow) for one in (("plain", 1), ("residual", 4)))],
    ids=["short-1", "plain-1", "residual-4"],
)
def kind_and_chunk(request):
    return request.param


@pytest.fixture(scope="module")
def coded(kind_and_chunk):
    """An autoencoder, its parameters, a video of 6 latent frames, and both directions of it at once."""
    return code(kind_and_chunk[0])


def code(kind):
    autoencoder = WanAutoencoder(KINDS[kind], temporal_scale=0.6)
    params = random_params(autoencoder.abstract()[1])
    side, count = autoencoder.stride, 1 + 5 * autoencoder.frame_stride
    video = np.asarray(jax.random.uniform(jax.random.key(1), (2, count, side, 2 * side, 3), minval=-1))
    latents = autoencoder.encode(params, video)
    return autoencoder, params, video, latents, autoencoder.decode(params, latents)


PROGRAMS = (encode_first, encode_next, decode_first, decode_next)


def test_chunks_are_the_whole(coded, kind_and_chunk):
    compare_with_the_whole(coded, kind_and_chunk[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind, chunk", [("plain", 2), ("plain", 5), ("residual", 1), ("residual", 3), ("residual", 8)])
def test_any_chunks_are_the_whole(kind, chunk):
    compare_with_the_whole(code(kind), chunk)


def compare_with_the_whole(coded, chunk):
    """Of a length that the chunk divides or not, by two programs in each direction at most."""
    autoencoder, params, video, latents, pixels = coded
    for program in PROGRAMS:
        program.clear_cache()
    step = autoencoder.frame_stride
    for count in (6, 3):
        given, made = video[:, : 1 + (count - 1) * step], latents[:, :count]
        pieces = list(encode_stream(autoencoder, params, frames(given), chunk=chunk))
        rest = [count % chunk] if count % chunk else []
        assert [piece.shape[1] for piece in pieces] == [chunk] * (count // chunk) + rest
        assert relative(jnp.concatenate(pieces, axis=1), made) <= 1e-5
        pieces = list(decode_stream(autoencoder, params, frames(np.asarray(made)), chunk=chunk))
        assert len(pieces) == -(-count // chunk) and pieces[0].shape[1] == 1 + step * (min(chunk, count) - 1)
        assert relative(jnp.concatenate(pieces, axis=1), pixels[:, : given.shape[1]]) <= 1e-5
    later = int(chunk < 6)
    assert [program._cache_size() for program in PROGRAMS] == [1, later, 1, later]


def test_pixels_come_as_soon_as_their_latents(coded, kind_and_chunk):
    """The stream asks for no latent frame ahead of the pixels that it hands out."""
    autoencoder, params, _, latents, _ = coded
    chunk, asked = kind_and_chunk[1], []

    def watched():
        for index, frame in enumerate(frames(latents)):
            asked.append(index)
            yield frame

    stream = decode_stream(autoencoder, params, watched(), chunk=chunk)
    for count in range(1, 6 // chunk + 1):
        next(stream)
        assert asked == list(range(count * chunk))


def test_the_past_does_not_grow(coded):
    """What a chunk leaves has the shapes and types of what it took, so memory is that of one chunk."""
    autoencoder, params, video, latents, _ = coded
    step = autoencoder.frame_stride

    def past_after(chunk, *arguments):
        return jax.eval_shape(lambda *a: chunk(*a)[1], *arguments)

    first = past_after(autoencoder.decode_chunk, params, latents[:, :1])
    assert past_after(autoencoder.decode_chunk, params, latents[:, :3], first) == first
    assert past_after(autoencoder.decode_chunk, params, latents) == first
    first = past_after(autoencoder.encode_chunk, params, video[:, :1])
    assert past_after(autoencoder.encode_chunk, params, video[:, : 2 * step], first) == first
    assert past_after(autoencoder.encode_chunk, params, video) == first


@pytest.mark.slow
def test_tiles_in_chunks_are_the_tiled_whole():
    tiny = WanConfig(2, 4, 4, (1,), 1, (), patch=2, latents_mean=(0.1, 0.2), latents_std=(2.0, 0.5))
    autoencoder = TiledWan(WanAutoencoder(tiny), 3, 1)
    params = autoencoder.autoencoder.init(jax.random.key(0))
    latents = jax.random.normal(jax.random.key(1), (1, 3, 3, 5, 2))
    whole = autoencoder.decode(params, latents)
    pieces = list(decode_stream(autoencoder, params, frames(latents)))
    assert relative(jnp.concatenate(pieces, axis=1), whole) <= 1e-5


def test_bad_streams_are_answered(coded):
    autoencoder, params, video, latents, _ = coded
    with pytest.raises(ValueError, match="chunk must be an integer >= 1, got 0"):
        next(decode_stream(autoencoder, params, frames(latents), chunk=0))
    with pytest.raises(ValueError, match="latents must be frames of one shape"):
        next(decode_stream(autoencoder, params, iter([latents])))
    with pytest.raises(ValueError, match="frames of pixels must be 1 plus a multiple of"):
        list(encode_stream(autoencoder, params, frames(video[:, :-1]), chunk=8))
    assert list(decode_stream(autoencoder, params, iter([]))) == []
