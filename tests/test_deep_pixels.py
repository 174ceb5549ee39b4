"""TIFFs and BMPs whose numbers mean something else than they seem to, as scanners and cameras write them."""

import io
import struct

import numpy as np
import pytest
from picture_files import picture
from test_displayed_pixels import read_by_all

from starflow_jax.data.decoding.bad_examples import BadExample
from starflow_jax.data.decoding.image_decoding import image_file_size

LEVELS = np.array([[0, 51, 102, 255], [255, 204, 1, 0]])


def tiff(values: np.ndarray, bits: int, *, white_is_zero: bool = False, sample_format: int = 1, preview: int = 0):
    """A little-endian TIFF of one grey image without compression."""
    height, width = values.shape
    if bits == 12:
        text = "".join(format(value, "012b") for value in values.ravel())
        data = bytes(int(text[start : start + 8], 2) for start in range(0, len(text), 8))
    else:
        data = values.tobytes()
    tags = {
        254: preview, 256: width, 257: height, 258: bits, 259: 1, 262: 0 if white_is_zero else 1,
        273: 8 + 2 + 12 * 11 + 4, 277: 1, 278: height, 279: len(data), 339: sample_format,
    }  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


@pytest.mark.parametrize("inverted", [False, True])
def test_numbers_are_scaled_by_their_bits_and_inverted_where_white_is_zero(tmp_path, inverted):
    shown = 255 - LEVELS if inverted else LEVELS
    for name, data in {
        "8 bits": tiff(LEVELS.astype(np.uint8), 8, white_is_zero=inverted),
        "16 bits": tiff((LEVELS * 257).astype("<u2"), 16, white_is_zero=inverted),
        "floats": tiff((LEVELS / 255).astype("<f4"), 32, white_is_zero=inverted, sample_format=3),
    }.items():
        for found in read_by_all(data, tmp_path / "it", channels=1):
            np.testing.assert_array_equal(found[..., 0], shown, err_msg=name)


def test_twelve_bits_reach_white(tmp_path):
    deep = LEVELS * 4095 // 255
    for found in read_by_all(tiff(deep, 12), tmp_path / "it", channels=1):
        np.testing.assert_allclose(found[..., 0], LEVELS, atol=1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(LEVELS.astype(np.int8), 8, sample_format=2), "32-bit or signed integers"),
        (tiff(LEVELS.astype("<i2"), 16, sample_format=2), "32-bit or signed integers"),
        (tiff(LEVELS.astype(np.uint8), 8, preview=1), "a preview of another one, as in raw files of cameras"),
    ],
    ids=["signed 8 bits", "signed 16 bits", "raw"],
)
def test_what_is_not_the_picture_is_refused_by_name(data, reason):
    with pytest.raises(BadExample, match=reason):
        image_file_size(io.BytesIO(data), "it")


@pytest.mark.parametrize("alpha", [0, 255])
def test_a_bmp_without_an_alpha_channel_is_opaque(tmp_path, alpha):
    """A fourth channel of zeros says nothing; of others it counts."""
    pixels = picture(4, 4, 4)
    rows = np.dstack([pixels[::-1, :, ::-1], np.full((4, 4), alpha, np.uint8)])
    header = struct.pack("<IiiHHIIiiII", 108, 4, 4, 1, 32, 3, 64, 0, 0, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    data = b"BM" + struct.pack("<IHHI", 14 + 108 + 64, 0, 0, 14 + 108) + header.ljust(108, b"\0") + rows.tobytes()
    for found in read_by_all(data, tmp_path / "it"):
        np.testing.assert_array_equal(found, pixels)
    if alpha == 0:
        rows[0, 0, 3] = 255  # now the others are transparent
        for found in read_by_all(data[:-64] + rows.tobytes(), tmp_path / "it"):
            assert (found == 255).all(axis=-1).sum() == 15
