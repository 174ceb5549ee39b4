"""Folders of images or videos: the first folder of a path is its class, captions are in .txt or .json files beside."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import stat
from pathlib import Path

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped, error_reason
from starflow_jax.data.decoding.image_decoding import SUFFIXES
from starflow_jax.data.sources.image_collection import (
    MAX_CAPTION_BYTES,
    Captions,
    Item,
    captions_from_json,
    captions_from_text,
)
from starflow_jax.data.sources.image_files import open_image_files
from starflow_jax.data.sources.mixture import Mixture
from starflow_jax.data.sources.source_request import SourceRequest


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """Files of given suffixes in a folder and its subfolders, sorted by path.

    Attributes:
      root: the folder; files: paths relative to it, with "/".
      classes: the first folders of these paths; a file directly in `root` has class -1.
      sizes: sizes of the files in bytes.
    """

    root: Path
    files: tuple[str, ...]
    classes: tuple[str, ...]
    sizes: tuple[int, ...]
    skipped: Skipped = dataclasses.field(default_factory=Skipped)

    @classmethod
    def scan(cls, root: Path, suffixes: tuple[str, ...], classes: tuple[str, ...] | None = None) -> Folder:
        """Lists the regular files below `root` that have one of the suffixes and are not hidden.

        Args:
          root: the folder; suffixes: in lower case.
          classes: names of the classes; None for the subfolders of `root`.

        Raises:
          ValueError: `root` does not exist, or contains no such file.
        """
        check(root.is_dir(), f"data folder {root} does not exist")
        sizes: dict[str, int] = {}
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                path = Path(folder, name)
                if path.suffix.lower() in suffixes and not name.startswith("."):
                    with contextlib.suppress(OSError):  # a broken link
                        status = path.stat()
                        if stat.S_ISREG(status.st_mode):
                            sizes[path.relative_to(root).as_posix()] = status.st_size
        check(len(sizes) > 0, f"data folder {root} contains no file with the suffix {', '.join(suffixes)}")
        files = tuple(sorted(sizes))
        if classes is None:
            classes = tuple(sorted({file.split("/")[0] for file in files if "/" in file}))
        return cls(root, files, classes, tuple(sizes[file] for file in files))

    @property
    def name(self) -> str:
        """Name in logs."""
        return self.root.name

    @property
    def num_classes(self) -> int:
        """Number of class folders."""
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.files)

    def key(self, index: int) -> str:
        """The path."""
        return str(self.root / self.files[index])

    def path(self, index: int) -> Path:
        """The path."""
        return self.root / self.files[index]

    def label(self, index: int) -> int:
        """Index of the class, -1 for none."""
        top, slash, _ = self.files[index].partition("/")
        return self.classes.index(top) if slash and top in self.classes else -1

    def read(self, index: int, captions: bool = False) -> Item:
        """Opens one file."""
        path = self.path(index)
        texts = self.captions(index) if captions else {}
        try:
            return Item(path.open("rb"), self.label(index), texts)
        except OSError as error:
            raise BadExample(str(path), error_reason(error)) from error

    def captions(self, index: int) -> Captions:
        """Captions in the file of the same name with suffix .json or, without that, .txt; empty without both."""
        path = self.path(index)
        for suffix, read in ((".json", captions_from_json), (".txt", captions_from_text)):
            caption_file = path.with_suffix(suffix)
            try:
                with caption_file.open("rb") as file:
                    data = file.read(MAX_CAPTION_BYTES + 1)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise BadExample(str(path), f"its caption file cannot be read: {error_reason(error)}") from error
            return read(data, str(path))
        return {}

    def identity(self, index: int) -> str:
        """Path relative to the folder, and size."""
        return f"{self.files[index]} {self.sizes[index]}"

    def signature(self) -> str:
        """Digest of the names, sizes and modification times of the files."""
        digest = hashlib.sha256()
        for index, file in enumerate(self.files):
            try:
                status = self.path(index).stat()
                digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
            except OSError:
                digest.update(f"{file}\0gone\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def split_names(split: str) -> tuple[str, ...]:
    """The folder names of a split, the preferred one first."""
    return {"test": ("test", "val", "validation")}.get(split, (split,))


def split_folder(path: Path, split: str) -> Path:
    """The folder of a split: a folder of its name inside `path`; the training split may be `path` itself.

    Raises:
      ValueError: there is no such folder.
    """
    names = split_names(split)
    folders = [path / name for name in names if (path / name).is_dir()]
    if folders:
        return folders[0]
    check(path.is_dir(), f"data folder {path} does not exist")
    others = [name for name in split_names("test") if (path / name).is_dir()]
    check(
        split == "train" and not others,
        f"data folder {path} must contain a folder {' or '.join(names)} for the {split} split",
    )
    return path


def open_folder(path: Path, split: str, suffixes: tuple[str, ...]) -> Folder:
    """The files of one split. The training split defines the indices of the classes.

    Raises:
      ValueError: there is no folder of the split, or no file in it.
    """
    root = split_folder(path, split)
    if split == "train" or split_folder(path, "train") == path:
        return Folder.scan(root, suffixes)
    return Folder.scan(root, suffixes, Folder.scan(split_folder(path, "train"), suffixes).classes)


@SOURCES.register("images", path=True, decoded=True, captions="text")
def open_image_folder(config: SourceConfig, request: SourceRequest) -> Mixture:
    """The images of a folder; see `open_image_files`."""
    return open_image_files(config, request, open_folder(Path(config.path or ""), request.split, SUFFIXES))
