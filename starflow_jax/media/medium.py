"""Which files of a folder are images or videos: by suffix, and by their first bytes where the suffix says nothing."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from starflow_jax.core.regular_files import open_file
from starflow_jax.media.file_kind import HEAD_BYTES, kind_of

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif",
    ".heic", ".heif",
)  # fmt: skip
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif")
# Files with these are none of their own, whatever they contain: previews and raw files that cameras write beside images
# and videos, earlier copies, unfinished downloads, and music, which may have a cover.
_ASIDE = (
    ".thm", ".lrv", ".dng", ".nef", ".nrw", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".pef", ".srw", ".raf",
    ".bak", ".orig", ".old", ".tmp", ".part", ".crdownload", ".download", ".m4a", ".m4b", ".mka",
)  # fmt: skip
# Files that often lie beside every image, and are not worth opening.
_OTHERS = (".npy", ".npz", ".pt", ".pth", ".safetensors", ".xml", ".csv", ".tsv", ".jsonl", ".yaml", ".yml", ".md")


class Medium(NamedTuple):
    """What folders and tars are searched for.

    Attributes:
      name: in sentences; suffixes: files with these are taken without being opened, in lower case.
      video: whether containers of videos are wanted, or images. An animated GIF is both.
    """

    name: str
    suffixes: tuple[str, ...]
    video: bool

    def in_head(self, head: bytes) -> bool:
        """Whether a file with these first `HEAD_BYTES` is wanted."""
        kind = kind_of(io.BytesIO(head))
        return kind is not None and (kind.video == self.video or kind.format == "GIF")

    def in_file(self, path: Path) -> bool:
        """Whether a regular file is wanted, by its content; False for what cannot be read."""
        try:
            with open_file(path) as stream:
                return self.in_head(stream.read(HEAD_BYTES))
        except OSError:
            return False

    def of_folder(self, folder: Path) -> list[Path]:
        """The wanted files of a folder, sorted by name; hidden ones are left out."""
        return sorted(self._of(path for path in folder.iterdir() if path.name[0] != "."))

    def _of(self, paths: Iterable[Path]) -> Iterable[Path]:
        for path in paths:
            suffix = path.suffix.lower()
            if suffix in self.suffixes or (is_open(suffix) and path.is_file() and self.in_file(path)):
                yield path


IMAGES = Medium("image", IMAGE_SUFFIXES, video=False)
VIDEOS = Medium("video", VIDEO_SUFFIXES, video=True)


def is_open(suffix: str) -> bool:
    """Whether only its content says what a file with this suffix, in lower case, is: the suffix is unknown or empty."""
    return suffix not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, *_ASIDE, *_OTHERS) and not suffix.endswith("~")
