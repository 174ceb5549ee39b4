"""Folders of pictures or videos: the first folder of a path is its class, captions lie beside in .txt or .json."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import stat
from pathlib import Path

from starflow_jax.core.config.checks import check
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped, reason_of
from starflow_jax.data.sources.collection import MAX_CAPTION_BYTES, Captions, Item, captions_of_json, captions_of_text


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """Files of some suffixes in a folder and the folders in it, in the order of their names.

    Attributes:
      root: the folder; files: paths inside it, with "/".
      classes: the first folders of these paths; a file that lies in none has class -1.
      sizes: of the files, in bytes.
    """

    root: Path
    files: tuple[str, ...]
    classes: tuple[str, ...]
    sizes: tuple[int, ...]
    skipped: Skipped = dataclasses.field(default_factory=Skipped)

    @classmethod
    def of(cls, root: Path, suffixes: tuple[str, ...], classes: tuple[str, ...] | None = None) -> Folder:
        """The files below `root`; other files, hidden ones, and what is no regular file are left out.

        Args:
          classes: names of classes, where another folder decides them; None for those found.

        Raises:
          ValueError: no folder, or none of such files in it.
        """
        check(root.is_dir(), f"data folder {root} does not exist")
        sizes: dict[str, int] = {}
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                path = Path(folder, name)
                if path.suffix.lower() in suffixes and not name.startswith("."):
                    with contextlib.suppress(OSError):  # a link to nowhere
                        status = path.stat()
                        if stat.S_ISREG(status.st_mode):
                            sizes[path.relative_to(root).as_posix()] = status.st_size
        check(len(sizes) > 0, f"data folder {root} holds no file of a suffix {', '.join(suffixes)}")
        files = tuple(sorted(sizes))
        if classes is None:
            classes = tuple(sorted({file.split("/")[0] for file in files if "/" in file}))
        return cls(root, files, classes, tuple(sizes[file] for file in files))

    @property
    def name(self) -> str:
        """For logs."""
        return self.root.name

    @property
    def num_classes(self) -> int:
        """Folders at the top."""
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
        """The class, -1 for none."""
        top, slash, _ = self.files[index].partition("/")
        return self.classes.index(top) if slash and top in self.classes else -1

    def read(self, index: int, captions: bool = False) -> Item:
        """One file, opened."""
        path = self.path(index)
        found = self.captions(index) if captions else {}
        try:
            return Item(path.open("rb"), self.label(index), found)
        except OSError as error:
            raise BadExample(str(path), reason_of(error)) from error

    def captions(self, index: int) -> Captions:
        """Those of the file of the same name that ends in .json or, without that, .txt; none without both."""
        path = self.path(index)
        for suffix, read in ((".json", captions_of_json), (".txt", captions_of_text)):
            beside = path.with_suffix(suffix)
            try:
                with beside.open("rb") as file:
                    data = file.read(MAX_CAPTION_BYTES + 1)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise BadExample(str(path), f"its caption file cannot be read: {reason_of(error)}") from error
            return read(data, str(path))
        return {}

    def identity(self, index: int) -> str:
        """Its path inside the folder, and its size."""
        return f"{self.files[index]} {self.sizes[index]}"

    def signature(self) -> str:
        """A digest of names, sizes and times of the files."""
        digest = hashlib.sha256()
        for index, file in enumerate(self.files):
            try:
                status = self.path(index).stat()
                digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
            except OSError:
                digest.update(f"{file}\0gone\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def split_names(split: str) -> tuple[str, ...]:
    """What a split may be called, the likeliest first."""
    return {"test": ("test", "val", "validation")}.get(split, (split,))


def split_folder(path: Path, split: str) -> Path:
    """Where a split lies: in a folder of its name inside `path`; the training split may be `path` itself.

    Raises:
      ValueError: no such folder.
    """
    names = split_names(split)
    inside = [path / name for name in names if (path / name).is_dir()]
    if inside:
        return inside[0]
    check(path.is_dir(), f"data folder {path} does not exist")
    others = [name for name in split_names("test") if (path / name).is_dir()]
    check(
        split == "train" and not others,
        f"data folder {path} must hold a folder {' or '.join(names)} for the {split} split",
    )
    return path
