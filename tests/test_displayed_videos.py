"""Videos are read as viewers show them: rotated, stretched and coloured as their files say; files of FFmpeg."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from picture_files import SHOWN, STORED, picture
from PIL import Image

from starflow_jax.core.config import DataConfig, FlowConfig
from starflow_jax.data.sources.source_opening import open_source
from starflow_jax.media import read_video, write_mp4
from starflow_jax.media.clip_reading import frames_at, video_facts


def write_stored_video(path: Path, stored: np.ndarray, **options) -> None:
    """Three frames that begin with `stored`, with a display matrix [9], a pixel aspect ratio, or colour tags."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width = stored.shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "1"}
        if "ratio" in options:
            stream.sample_aspect_ratio = options["ratio"]
        if "tags" in options:
            codec = stream.codec_context
            codec.colorspace, codec.color_range = options["tags"]
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(stored)).reformat(
                format="yuv420p",
                dst_colorspace=options.get("space", "ITU601"),
                dst_color_range=options.get("range", "MPEG"),
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if "matrix" in options:
        set_matrix(path, options["matrix"])


def set_matrix(path: Path, matrix: tuple[int, ...]) -> None:
    """Writes the display matrix of an MP4 into the header of its track, as phones do."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    assert data[header] == 0  # a header of version 0, whose matrix begins at byte 40
    data[header + 40 : header + 76] = struct.pack(">9i", *matrix)
    path.write_bytes(data)


ONE = 1 << 16
# The matrix that displays STORED[turn] as SHOWN: columns p and rows q go to a p + c q and b p + d q.
MATRICES = {1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1)} | {
    5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0),
}  # fmt: skip


def display_matrix(turn: int) -> tuple[int, ...]:
    a, b, c, d = (ONE * value for value in MATRICES[turn])
    return a, b, 0, c, d, 0, 0, 0, 1 << 30


@pytest.mark.parametrize("turn", MATRICES)
def test_videos_are_rotated_by_their_display_matrix(tmp_path, turn):
    path = tmp_path / "it.mp4"
    write_stored_video(path, STORED[turn], matrix=display_matrix(turn))
    clip = read_video(path)
    facts = video_facts(path)
    assert (facts.height, facts.width) == SHOWN.shape[:2]
    for frame in (clip.frames[0], *frames_at(path, [0.0, 0.125], 8.0)):
        assert frame.shape == SHOWN.shape
        assert np.abs(frame.astype(int) - SHOWN).max() <= 8
    fitted = read_video(path, size=SHOWN.shape[:2], channels=3).frames
    np.testing.assert_array_equal(fitted, clip.frames)


def test_an_upright_clip_of_a_phone_is_trained_on_upright(tmp_path):
    write_stored_video(tmp_path / "phone.mp4", np.rot90(picture(0, 48, 32)), matrix=display_matrix(6))
    write_stored_video(tmp_path / "wide.mp4", picture(1, 32, 48))
    flow = FlowConfig(channels=3, image_size=(24, 24), patch_size=4, width=64, num_blocks=1, layers_per_block=1)
    config = DataConfig(source="videos", path=str(tmp_path), frames=2, aspect_ratios=("2:3", "3:2"))
    source = open_source(config, "train", flow=flow)
    found = {part.source.bucket: part.source[0]["image"] for part in source.components}
    assert set(found) == {"2:3", "3:2"} and found["2:3"].shape[1] > found["2:3"].shape[2]
    rows, columns = found["2:3"].shape[1:3]
    small = np.asarray(Image.fromarray(picture(0, 48, 32)).resize((columns, rows), Image.Resampling.BOX), int)
    assert np.abs(found["2:3"][0] - small).mean() < 6


def test_a_real_muxer_and_the_patched_header_agree(tmp_path):
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV writes no display matrix")
    with av.open(str(tmp_path / "it.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width = STORED[6].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "1"}
        stream.set_display_rotation(-90)  # counterclockwise
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(STORED[6]))))
        container.mux(stream.encode())
    found = read_video(tmp_path / "it.mp4").frames[0]
    assert found.shape == SHOWN.shape and np.abs(found.astype(int) - SHOWN).max() <= 8


def test_pixels_that_are_not_square_are_stretched(tmp_path):
    narrow = np.asarray(Image.fromarray(SHOWN).resize((20, 24), Image.Resampling.BOX))
    write_stored_video(tmp_path / "it.mp4", narrow, ratio=Fraction(2, 1))
    facts = video_facts(tmp_path / "it.mp4")
    (frame,) = frames_at(tmp_path / "it.mp4", [0.0], 8.0)
    assert (facts.height, facts.width) == (24, 40) == frame.shape[:2]
    assert np.abs(frame.astype(int) - SHOWN).max() <= 12
    np.testing.assert_array_equal(read_video(tmp_path / "it.mp4").frames[0], frame)


COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 150, 30]], np.uint8)


def blocks() -> np.ndarray:
    return COLOURS.reshape(2, 2, 3).repeat(16, axis=0).repeat(16, axis=1)


@pytest.mark.parametrize(("space", "number"), [("ITU709", 1), ("ITU601", 6)])
@pytest.mark.parametrize(("levels", "limited"), [("MPEG", 1), ("JPEG", 2)])
def test_colours_are_converted_by_their_tags(tmp_path, space, number, levels, limited):
    write_stored_video(tmp_path / "it.mp4", blocks(), space=space, range=levels, tags=(number, limited))
    found = read_video(tmp_path / "it.mp4").frames[0][8::16, 8::16].reshape(4, 3)
    np.testing.assert_allclose(found.astype(int), COLOURS, atol=4)


def test_mp4s_state_their_colours(tmp_path):
    write_mp4(tmp_path / "it.mp4", blocks()[None].repeat(3, axis=0), fps=8)
    assert b"colrnclx" in (tmp_path / "it.mp4").read_bytes()
    with av.open(str(tmp_path / "it.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.color_primaries, codec.color_trc, codec.colorspace, codec.color_range) == (1, 13, 6, 1)
    found = read_video(tmp_path / "it.mp4").frames[0][8::16, 8::16].reshape(4, 3)
    np.testing.assert_allclose(found.astype(int), COLOURS, atol=4)


def test_the_cover_of_a_piece_of_music_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream("aac", rate=44100), container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.rate = 44100
        for stream, frame in ((sound, silence), (cover, av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8)))):
            container.mux([*stream.encode(frame), *stream.encode()])
    for read in (read_video, video_facts):
        with pytest.raises(ValueError, match="it contains no video"):
            read(path)
