"""Recognises files of images and videos by their first bytes. Their names play no part."""

from __future__ import annotations

from typing import IO, NamedTuple

HEAD_BYTES = 512  # the first bytes of a file that say what it is
_IMAGE_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_MATROSKA = b"\x1a\x45\xdf\xa3"
# Kinds of the first box of a QuickTime file without `ftyp`. Those of the second row are words that may follow the
# first four letters of a text, which would be a size of at least 2^29 bytes.
_QUICKTIME_BOXES = (b"moov", b"mdat")
_SHORT_BOXES = (b"wide", b"free", b"skip", b"pnot")
_TEXT_SIZE = 2**29
# Sizes of the second header of a BMP. Its first two bytes, BM, may also begin a text.
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class FileKind(NamedTuple):
    """What the first bytes of a file say it is.

    Attributes:
      format: the decoder of Pillow ("PNG"), or the container of FFmpeg ("mov").
      video: whether it is a container of videos. Animated images are images.
    """

    format: str
    video: bool


def kind_of(stream: IO[bytes]) -> FileKind | None:
    """The kind of an open file, whose position is moved back to its start; None for any other file.

    Only containers of their own frames are recognised: playlists and concatenations, which make FFmpeg open
    further files, are not.
    """
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    if head[8:10] == b"CR" and head.startswith(b"II*\0"):
        return None  # a raw file of Canon, whose layout is otherwise that of TIFF
    for signature, name in _IMAGE_SIGNATURES:
        if head.startswith(signature):
            return FileKind(name, False)
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return FileKind("BMP", False)
    if head.startswith(b"RIFF"):
        return {b"WEBP": FileKind("WEBP", False), b"AVI ": FileKind("avi", True)}.get(head[8:12])
    if head.startswith(_MATROSKA):
        return FileKind("matroska", True)
    if head[4:8] == b"ftyp":
        return _kind_of_brands(head)
    short = head[4:8] in _SHORT_BOXES and int.from_bytes(head[:4], "big") < _TEXT_SIZE
    return FileKind("mov", True) if short or head[4:8] in _QUICKTIME_BOXES else None


def _kind_of_brands(head: bytes) -> FileKind:
    """The kind of a file of ISO's base media format, which MP4, AVIF and HEIF share, from its brands."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    major, compatible = head[8:12], [head[offset : offset + 4] for offset in range(16, end - 3, 4)]
    if major in _AVIF_BRANDS or (major in _HEIF_BRANDS and any(brand in _AVIF_BRANDS for brand in compatible)):
        return FileKind("AVIF", False)
    return FileKind("HEIF", False) if major in _HEIF_BRANDS else FileKind("mov", True)
