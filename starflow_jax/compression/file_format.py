"""The bytes of a compressed file: a header that says what is needed to decode it, and the coded stream.

    "SFZ", version 2        4 bytes
    checksum                8 bytes: BLAKE2b of all that follows
    fingerprint             8 bytes: of the configuration and the parameters of the flow
    probe                   4 bytes: of the numbers that the encoder's programs compute
    pixels                  4 bytes: CRC-32 of the images
    sizes                   unsigned LEB128 integers, in the order of `Header`
    environment             four texts in UTF-8, each behind its length
    captions                DEFLATE of a JSON list, behind its length; empty without captions
    stream                  the rest (`rans.AnsStack.to_bytes`)

Every byte is covered by the checksum or compared, so that a damaged file is refused before anything is computed. The
file is untrusted all the same: sizes are bounded, and nothing in it is executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib

from starflow_jax.core.regular_files import parse_json

MAGIC, VERSION = b"SFZ", 2
_CHECKSUM = 8
# The first groups are small: what they pop has to come from somewhere, and what they push pays for larger groups.
_GROWTH = 4
MOST_VALUES = 2**32
MOST_IMAGES = 2**22
MOST_ROWS = 4096
MOST_PIXEL_BITS = 8
_MOST_TEXT = 2**26
_SIZES = (
    "levels", "count", "frames", "height", "width", "channels", "rows", "pixel_bits", "token_bits", "condition",
    "bottom_words",
)  # fmt: skip
CONDITIONS = ("none", "classes", "captions")


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
      levels: of a pixel; count: images or clips; frames: of a clip, 0 for still images; height, width, channels: of a
        frame.
      rows: images that were computed together; pixel_bits, token_bits: of the integer grids (`flow_coder.Resolution`).
      condition: index in `CONDITIONS`: nothing, a class for each image in the stream, or captions.
      bottom_words: words of 16 bits at the bottom of the stream, which contain the names of the images.
      captions: one for each clip, or one for all.
      environment: versions of this package, of JAX and of jaxlib, and the kind of the device.
      fingerprint, probe: see `environment`; pixels: CRC-32 of the images in the order of decoding.
    """

    levels: int
    count: int
    frames: int
    height: int
    width: int
    channels: int
    rows: int
    pixel_bits: int
    token_bits: int
    condition: int
    bottom_words: int
    captions: tuple[str, ...]
    environment: tuple[str, str, str, str]
    fingerprint: bytes
    probe: bytes
    pixels: int

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, H, W, C] or [n, T, H, W, C]."""
        frame = (self.height, self.width, self.channels)
        return (self.count, self.frames, *frame) if self.frames else (self.count, *frame)


def group_sizes(count: int, rows: int) -> list[int]:
    """Sizes of the groups that `count` images are coded in, the first coded (the last decoded) first."""
    sizes, done = [], 0
    while done < count:
        size = min(max(1, done // _GROWTH), rows, count - done)
        sizes.append(size)
        done += size
    return sizes


def write_file(header: Header, stream: bytes) -> bytes:
    """The bytes of a file."""
    parts = [header.fingerprint, header.probe, header.pixels.to_bytes(4, "big")]
    parts += [_leb128(getattr(header, name)) for name in _SIZES]
    parts += [_prefixed(text.encode()) for text in header.environment]
    captions = zlib.compress(json.dumps(list(header.captions)).encode(), 9) if header.captions else b""
    body = b"".join([*parts, _prefixed(captions), stream])
    return MAGIC + bytes([VERSION]) + _checksum(body) + body


def read_file(data: bytes) -> tuple[Header, bytes]:
    """The header and the stream of a file.

    Raises:
      ValueError: the file is of another format, of another version, or damaged.
    """
    if data[:3] != MAGIC:
        raise ValueError("it is not a file of starflow compress")
    if len(data) < 4 + _CHECKSUM or data[3] != VERSION:
        version = data[3] if len(data) > 3 else "missing"
        raise ValueError(f"its format has version {version}, and version {VERSION} is read, or it is damaged")
    body = data[4 + _CHECKSUM :]
    if _checksum(body) != data[4 : 4 + _CHECKSUM]:
        raise ValueError("it is damaged: its checksum does not agree with its contents")
    try:
        return _parsed(_Reader(body))
    except (IndexError, ValueError, OverflowError, zlib.error) as error:
        raise ValueError(f"it is damaged: {error}") from error


class _Reader:
    """Reads a body from its beginning to its end."""

    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def take(self, count: int) -> bytes:
        """The next bytes; ValueError where there are fewer."""
        taken = self.data[self.position : self.position + count]
        if len(taken) < count:
            raise ValueError("it ends too early")
        self.position += count
        return taken

    def leb128(self) -> int:
        """An integer of at most 42 bits."""
        value = 0
        for shift in range(0, 42, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("a size has more than 42 bits")

    def prefixed(self) -> bytes:
        """Bytes behind their number."""
        return self.take(self.leb128())


def _parsed(reader: _Reader) -> tuple[Header, bytes]:
    fingerprint, probe, pixels = reader.take(8), reader.take(4), int.from_bytes(reader.take(4), "big")
    sizes = {name: reader.leb128() for name in _SIZES}
    for name, least, most in (
        ("levels", 2, 256), ("count", 1, MOST_IMAGES), ("frames", 0, 2**20), ("height", 1, 2**16), ("width", 1, 2**16),
        ("channels", 1, 2**10), ("rows", 1, MOST_ROWS), ("pixel_bits", 0, MOST_PIXEL_BITS), ("token_bits", 0, 24),
        ("condition", 0, 2),
    ):  # fmt: skip
        if not least <= sizes[name] <= most:
            raise ValueError(f"{name} must be from {least} to {most}, got {sizes[name]}")
    values = sizes["count"] * max(1, sizes["frames"]) * sizes["height"] * sizes["width"] * sizes["channels"]
    if values > MOST_VALUES:
        raise ValueError(f"it must have at most {MOST_VALUES} pixels, got {values}")
    if sizes["rows"] != max(group_sizes(sizes["count"], sizes["rows"])):
        raise ValueError(f"rows must be the size of the largest group of {sizes['count']}, got {sizes['rows']}")
    package, jax, jaxlib, device = (reader.prefixed().decode() for _ in range(4))
    captions = _captions(reader.prefixed(), sizes)
    environment = (package, jax, jaxlib, device)
    header = Header(
        **sizes, captions=captions, environment=environment, fingerprint=fingerprint, probe=probe, pixels=pixels
    )
    return header, reader.data[reader.position :]


def _captions(packed: bytes, sizes: dict[str, int]) -> tuple[str, ...]:
    if CONDITIONS[sizes["condition"]] != "captions":
        return ()
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(packed, _MOST_TEXT)
    captions = parse_json(text) if not unpacker.unconsumed_tail else None
    if (
        not isinstance(captions, list)
        or not all(isinstance(caption, str) for caption in captions)
        or len(captions) not in (1, sizes["count"])
    ):
        raise ValueError("its captions are not one for all, or one for each")
    return tuple(captions)


def _checksum(body: bytes) -> bytes:
    # The version is in the checksum, so that a changed byte of it is noticed by any later version.
    return hashlib.blake2b(MAGIC + bytes([VERSION]) + body, digest_size=_CHECKSUM).digest()


def _leb128(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _prefixed(data: bytes) -> bytes:
    return _leb128(len(data)) + data
