"""Image files are read as viewers show them, by every reader; files of Pillow."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from picture_files import SHOWN, STORED, encoded, picture
from PIL import Image, features

from starflow_jax.core.config import DataConfig, FlowConfig
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped
from starflow_jax.data.decoding.image_decoding import Crop, decode_image, image_file_size
from starflow_jax.data.sources.size_index import scan_files
from starflow_jax.data.sources.source_opening import open_source
from starflow_jax.media import read_video, write_gif, write_mp4, write_png
from starflow_jax.media.clip_reading import frames_at, video_facts
from starflow_jax.media.file_kind import FileKind, kind_of

FORMATS = {"JPEG": 6, "MPO": 6, "PNG": 0, "WEBP": 0, "TIFF": 0, "AVIF": 8, "HEIF": 6}  # with the error of their coding
OPTIONS = {
    "JPEG": {"quality": 95},
    "MPO": {"quality": 95},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 95},
    "HEIF": {"quality": 95},
}


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(turn: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    data: Image.Exif | bytes = exif.tobytes() if kind == "HEIF" else exif  # pillow-heif takes bytes
    options = dict(OPTIONS.get(kind, {}))
    if kind == "MPO":  # a second, smaller picture, as phones store one
        options |= {"save_all": True, "append_images": [Image.fromarray(SHOWN[:5, :7])]}
    return saved(Image.fromarray(np.ascontiguousarray(STORED[turn])), kind, exif=data, **options)


def read_by_all(data: bytes, path: Path, background: str = "white", channels: int = 3) -> list[np.ndarray]:
    """A file's pixels as the data sources and as `--image`, scoring and encoding read them."""
    path.write_bytes(data)
    size = image_file_size(io.BytesIO(data), "it")
    trained = decode_image(io.BytesIO(data), "it", Crop(size, channels, background=background))
    (given,) = read_video(path, background=background).frames
    (fitted,) = read_video(path, size=size, channels=channels, background=background).frames
    assert given.shape[:2] == size
    return [trained, given, fitted]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("turn", STORED)
def test_orientation_is_applied_in_every_format(tmp_path, kind, turn):
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    for pixels in read_by_all(with_orientation(turn, kind), tmp_path / "it.png"):
        assert pixels.shape == SHOWN.shape
        assert np.abs(pixels.astype(int) - SHOWN).max() <= FORMATS[kind]


def test_orientation_behind_the_pixels_of_a_png(tmp_path):
    data = with_orientation(6, "PNG")
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    late = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert late.index(b"IDAT") < late.index(b"eXIf")
    for pixels in read_by_all(late, tmp_path / "late.png"):
        np.testing.assert_array_equal(pixels, SHOWN)


def test_a_damaged_orientation_is_none():
    image = Image.fromarray(SHOWN)
    data = saved(
        image, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\xff\xff\xff\xff", quality=95
    )
    assert image_file_size(io.BytesIO(data), "it") == SHOWN.shape[:2]


def test_a_large_upright_jpeg_is_decoded_at_a_fraction_and_turned():
    shown = picture(9, 400, 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(np.ascontiguousarray(np.rot90(shown))), "JPEG", exif=exif, quality=95)
    found = decode_image(io.BytesIO(data), "it", Crop((40, 20), 3)).astype(int)
    assert np.abs(found - np.asarray(Image.fromarray(shown).resize((20, 40), Image.Resampling.BOX), int)).max() <= 4


def transparent_files() -> dict[str, tuple[bytes, list[int], bool]]:
    """Files of two pixels, the first of them transparent: bytes, colour of the second, whether the file is grey."""
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 90, 80, 70])
    palette.putdata([0, 1])
    rgb = Image.new("RGB", (2, 1))
    rgb.putdata([(10, 20, 30), (90, 80, 70)])
    grey = Image.new("L", (2, 1))
    grey.putdata([10, 90])
    deep = Image.fromarray(np.array([[2570, 90 * 257]], np.uint16))
    alpha = Image.new("L", (2, 1))
    alpha.putdata([0, 255])
    rgba, la = rgb.copy(), grey.copy()
    rgba.putalpha(alpha)
    la.putalpha(alpha)
    colour = [90, 80, 70]
    return {
        "RGBA png": (saved(rgba, "PNG"), colour, False),
        "RGBA webp": (saved(rgba, "WEBP", lossless=True, exact=True), colour, False),
        "RGBA tiff": (saved(rgba, "TIFF"), colour, False),
        "LA png": (saved(la, "PNG"), [90] * 3, True),
        "palette, one index": (saved(palette, "PNG", transparency=0), colour, False),
        "palette, an alpha for each": (saved(palette, "PNG", transparency=b"\0\xff"), colour, False),
        "palette gif": (saved(palette, "GIF", transparency=0), colour, False),
        "RGB png with a colour": (saved(rgb, "PNG", transparency=(10, 20, 30)), colour, False),
        "grey png with a level": (saved(grey, "PNG", transparency=10), [90] * 3, True),
        "16-bit png with a level": (saved(deep, "PNG", transparency=2570), [90] * 3, True),
    }


@pytest.mark.parametrize("name", transparent_files())
def test_transparent_pixels_show_the_background(tmp_path, name):
    data, colour, grey = transparent_files()[name]
    for background, level in (("white", 255), ("grey", 128), ("black", 0)):
        trained, given, fitted = read_by_all(data, tmp_path / "it", background)
        np.testing.assert_array_equal(trained, [[[level] * 3, colour]])
        np.testing.assert_array_equal(fitted, trained)
        assert given.shape[2] == (1 if grey else 3)
        np.testing.assert_array_equal(np.broadcast_to(given, trained.shape), trained)


def test_half_transparent_pixels_are_mixed(tmp_path):
    pixels = np.array([[[200, 100, 0, 51], [200, 100, 0, 255]]], np.uint8)
    for found in read_by_all(encoded(pixels), tmp_path / "it", "black"):
        np.testing.assert_allclose(found[0, 0].astype(int), [40, 20, 0], atol=1)


def test_numbers_of_more_than_eight_bits(tmp_path):
    levels = np.array([[0, 1, 128, 254, 255]], np.uint8)
    for name, image in (
        ("floats", Image.fromarray(levels.astype(np.float32) / 255)),
        ("16 bits", Image.fromarray(levels.astype(np.uint16) * 257)),
    ):
        for found in read_by_all(saved(image, "TIFF"), tmp_path / "it.tif"):
            assert found.tolist() == np.broadcast_to(levels[..., None], found.shape).tolist(), name
    deep = Image.fromarray(levels.astype(np.uint16) * 257)
    for found in read_by_all(saved(deep, "PNG"), tmp_path / "it.png"):
        np.testing.assert_array_equal(found, np.broadcast_to(levels[..., None], found.shape))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0.0, 255.0]], np.float32), "floats must be from 0 to 1, got 0 to 255"),
        (np.array([[-0.5, 0.5]], np.float32), "floats must be from 0 to 1, got -0.5 to 0.5"),
        (np.array([[0.0, np.nan]], np.float32), "not finite"),
        (np.array([[0, 1]], np.int32), "32-bit or signed integers"),
        (np.array([[0, 2**31 - 1]], np.int32), "32-bit or signed integers"),
    ],
)
def test_numbers_without_a_known_range_are_refused_by_name(tmp_path, values, reason):
    path = tmp_path / "it.tif"
    path.write_bytes(saved(Image.fromarray(values), "TIFF"))
    with pytest.raises(ValueError, match=reason):
        read_video(path)
    with path.open("rb") as stream, pytest.raises(BadExample, match=reason):
        decode_image(stream, "it", Crop((1, 2), 3))


def test_kinds_of_colour(tmp_path):
    rgb = Image.fromarray(SHOWN)
    for name, data in (
        ("CMYK jpeg", saved(rgb.convert("CMYK"), "JPEG", quality=97)),
        ("CMYK tiff", saved(rgb.convert("CMYK"), "TIFF")),
        ("YCbCr tiff", saved(rgb.convert("YCbCr"), "TIFF")),
        ("palette", saved(rgb.quantize(250), "BMP")),
    ):
        for found in read_by_all(data, tmp_path / "it"):
            assert np.abs(found.astype(int) - SHOWN).max() <= (14 if name == "palette" else 6), name
    one_bit = Image.fromarray(np.eye(4) > 0)
    for found in read_by_all(saved(one_bit, "PNG"), tmp_path / "it", channels=1):
        np.testing.assert_array_equal(found[..., 0], 255 * np.eye(4))
    lab = saved(Image.new("LAB", (4, 4)), "TIFF")
    with pytest.raises(BadExample, match="of the kind LAB, which is not read"):
        decode_image(io.BytesIO(lab), "it", Crop((4, 4), 3))


def test_the_second_picture_of_a_still_image_is_no_frame(tmp_path):
    pages = [Image.fromarray(picture(seed, 8, 8)) for seed in range(3)]
    for kind in ("TIFF", "MPO"):
        (tmp_path / "it").write_bytes(saved(pages[0], kind, save_all=True, append_images=pages[1:]))
        assert len(read_video(tmp_path / "it").frames) == 1


def test_a_file_is_what_it_holds(tmp_path):
    video = np.stack([picture(seed, 16, 16) for seed in (0, 1, 1)])
    write_mp4(tmp_path / "true.mp4", video, fps=8)
    write_gif(tmp_path / "true.gif", video, fps=10)
    write_png(tmp_path / "true.png", video[0])
    with av.open(str(tmp_path / "true.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 16
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    for true, false, frames in (("mp4", "gif", 3), ("gif", "mp4", 3), ("png", "mp4", 1), ("mkv", "jpg", 3)):
        for name in (f"it.{false}", "it"):
            (tmp_path / name).write_bytes((tmp_path / f"true.{true}").read_bytes())
            found, expected = read_video(tmp_path / name), read_video(tmp_path / f"true.{true}")
            assert len(found.frames) == frames and found.fps == expected.fps
            np.testing.assert_array_equal(found.frames, expected.frames)
            if frames > 1:
                assert video_facts(tmp_path / name) == video_facts(tmp_path / f"true.{true}")
                (frame,) = frames_at(tmp_path / name, [0.0], found.fps)
                np.testing.assert_array_equal(frame, expected.frames[0])
    with (tmp_path / "true.mp4").open("rb") as stream, pytest.raises(BadExample, match="a video, not an image"):
        decode_image(stream, "it", Crop((8, 8), 3))
    with pytest.raises(ValueError, match="a still image"):
        video_facts(tmp_path / "true.png")
    (tmp_path / "words.mp4").write_text("words")
    with pytest.raises(ValueError, match="not a video"):
        frames_at(tmp_path / "words.mp4", [0.0], 8)


def test_first_bytes():
    box = struct.Struct(">I4s4sI")
    for head, expected in (
        (box.pack(24, b"ftyp", b"isom", 0) + b"mp42avif", FileKind("mov", True)),
        (box.pack(24, b"ftyp", b"mif1", 0) + b"mif1avif", FileKind("AVIF", False)),
        (box.pack(24, b"ftyp", b"mif1", 0) + b"mif1heic", FileKind("HEIF", False)),
        (box.pack(20, b"ftyp", b"heic", 0) + b"mif1", FileKind("HEIF", False)),
        (b"\0\0\0\x08wide", FileKind("mov", True)),
        (b"II+\0\x08\0\0\0", FileKind("TIFF", False)),
        (b"RIFF\0\0\0\0WAVE", None),
        (b"", None),
        (b"#EXTM3U", None),
        (b"ffconcat version 1.0", None),
    ):
        assert kind_of(io.BytesIO(head)) == expected


def test_heic_is_named_where_it_is_not_read():
    if "HEIF" in Image.OPEN or _has_heif():
        pytest.skip("this Pillow reads HEIF")
    with pytest.raises(BadExample, match="HEIC or HEIF, which needs pillow-heif"):
        image_file_size(io.BytesIO(b"\0\0\0\x14ftypheic\0\0\0\0mif1"), "it")


def _has_heif() -> bool:
    import importlib.util

    return importlib.util.find_spec("pillow_heif") is not None


def test_what_is_not_a_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder").mkdir()
    for path, reason in (
        (tmp_path / "pipe.mp4", "a named pipe"),
        (Path("/dev/zero"), "a device"),
        (tmp_path / "folder", "contains no images"),
        (tmp_path / ("x" * 300), "name too long"),
        (tmp_path / "gone", "no such file or folder"),
    ):
        with pytest.raises(ValueError, match=reason):
            read_video(path)
    with pytest.raises(OSError, match="a named pipe"):
        frames_at(tmp_path / "pipe.mp4", [0.0], 8)
    os.mkfifo(tmp_path / "folder" / "0.png")
    with pytest.raises(ValueError, match="a named pipe"):
        read_video(tmp_path / "folder")


def test_frames_in_a_folder_may_be_any_images(tmp_path):
    for number in range(11):
        Image.fromarray(np.full((4, 4, 3), 20 * number, np.uint8)).save(tmp_path / f"{number}.jpg")
    frames = read_video(tmp_path).frames
    np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), 20 * np.arange(11), atol=3)
    write_png(tmp_path / "0.png", np.zeros((4, 4, 3), np.uint8))  # PNGs come before previews
    assert len(read_video(tmp_path).frames) == 1


def test_an_index_of_an_earlier_version_is_measured_again(tmp_path):
    file = tmp_path / "index.json"
    file.write_text(json.dumps({"format": "starflow index 1", "signature": "s", "facts": [[40.0, 24.0]]}))
    assert scan_files(1, lambda index: (24, 40), "s", file, Skipped()) == [[24, 40]]
    assert scan_files(1, lambda index: (1, 1), "s", file, Skipped()) == [[24, 40]]


def test_a_background_goes_with_files(tmp_path):
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(tmp_path / "0.png")
    flow = FlowConfig(channels=3, image_size=(8, 8), width=64, num_blocks=1, layers_per_block=1)
    for background, level in (("white", 255), ("black", 0)):
        config = DataConfig(source="images", path=str(tmp_path), background=background)
        image = open_source(config, "train", flow=flow).components[0].source[0]["image"]
        np.testing.assert_array_equal(image, np.full((8, 8, 3), level))
    with pytest.raises(ValueError, match="background requires source"):
        DataConfig(source="digits", background="black")
    with pytest.raises(ValueError, match="background must be one of 'white', 'grey', 'black', got 'pink'"):
        DataConfig(source="images", path=str(tmp_path), background="pink")


def test_a_png_of_endless_chunks_is_read(tmp_path):
    chunk = struct.pack(">I", 0) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))
    data = encoded(SHOWN)
    assert image_file_size(io.BytesIO(data[:33] + chunk * 20_000 + data[33:]), "it") == SHOWN.shape[:2]
