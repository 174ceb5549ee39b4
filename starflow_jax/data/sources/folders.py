"""Folders of images or videos: the first folder of a path is its class, captions are in files beside or in tables."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped, error_reason
from starflow_jax.data.sources.caption_files import (
    DEFAULT_FORMAT,
    FILE_KINDS,
    MAX_CAPTION_BYTES,
    CaptionFormat,
    has_text,
)
from starflow_jax.data.sources.caption_tables import TABLES, CaptionTables, read_tables
from starflow_jax.data.sources.folder_walk import Listing, list_files
from starflow_jax.data.sources.image_collection import ExampleCaptions, Item
from starflow_jax.data.sources.image_files import open_image_files
from starflow_jax.data.sources.lazy_reader import LazyReader
from starflow_jax.data.sources.mixture import Mixture
from starflow_jax.data.sources.regular_file import open_regular
from starflow_jax.data.sources.source_request import SourceRequest
from starflow_jax.data.sources.splits import split_folder
from starflow_jax.data.sources.suffix_counts import most_frequent
from starflow_jax.media.medium import IMAGES, Medium


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """Images or videos in a folder and its subfolders, sorted by path.

    Attributes:
      root: the folder; files: paths relative to it, with "/".
      classes: the first folders of these paths; a file directly in `root` has class -1.
      sizes: sizes of the files in bytes.
      skipped: folders that cannot be read; notes: sentences about links, files and classes that are left aside.
      reading: how captions are read; forms: the endings of caption files, in the order in which they are tried.
      tables: the captions of metadata files; stray: caption files that belong to no file.
    """

    root: Path
    files: tuple[str, ...]
    classes: tuple[str, ...]
    sizes: tuple[int, ...]
    skipped: Skipped = dataclasses.field(default_factory=Skipped)
    notes: tuple[str, ...] = ()
    reading: CaptionFormat = DEFAULT_FORMAT
    forms: tuple[str, ...] = ()
    tables: LazyReader[CaptionTables] = dataclasses.field(default_factory=lambda: LazyReader(CaptionTables))
    stray: tuple[str, ...] = ()

    @classmethod
    def scan(
        cls,
        root: Path,
        medium: Medium,
        classes: tuple[str, ...] | None = None,
        *,
        reading: CaptionFormat = DEFAULT_FORMAT,
        above: bool = False,
    ) -> Folder:
        """Lists the regular files below `root` that are images or videos and not hidden; links are followed.

        Args:
          root: the folder; medium: what it is searched for.
          classes: names of the classes; None for the subfolders of `root`.
          reading: how captions are read; above: whether metadata files in the folder above `root` are read, too.

        Raises:
          ValueError: `root` does not exist, or contains no such file.
        """
        check(root.is_dir(), f"data folder {root} does not exist")
        listing = list_files(root, medium)
        skipped = Skipped()
        skipped.bad += len(listing.unreadable)
        skipped.name(listing.unreadable)
        others = f", but other files: {most_frequent(listing.others)}" if listing.others else ""
        check(
            len(listing.sizes) > 0,
            f"data folder {root} contains no {medium.name}{others}{skipped.first()}",
        )
        files = tuple(sorted(listing.sizes))
        tops = collections.Counter(file.split("/")[0] for file in files if "/" in file)
        unknown = {} if classes is None else {top: tops[top] for top in tops if top not in classes}
        notes = _notes(medium, listing, unknown)
        if classes is None:
            classes = tuple(sorted(tops))
        forms = tuple(sorted(listing.forms, key=_form_order))
        outside = [f"../{name}" for name in TABLES if (root.parent / name).is_file()] if above else []
        tables = LazyReader(functools.partial(read_tables, root, (*outside, *listing.tables), reading))
        sizes = tuple(listing.sizes[file] for file in files)
        return cls(root, files, classes, sizes, skipped, notes, reading, forms, tables, tuple(listing.stray))

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

    def relative_key(self, index: int) -> str:
        """The path relative to the folder."""
        return self.files[index]

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
        texts = self.captions(index).texts if captions else {}
        try:
            return Item(open_regular(path), self.label(index), texts)
        except OSError as error:
            raise BadExample(str(path), error_reason(error)) from error

    @functools.cached_property
    def _forms(self) -> dict[str, list[str]]:
        """The endings of caption files by what precedes their suffix: "" for ".txt", ".png" for ".png.txt"."""
        forms: dict[str, list[str]] = {}
        for form in self.forms:
            forms.setdefault(form.removesuffix(_last(form)), []).append(form)
        return forms

    def captions(self, index: int) -> ExampleCaptions:
        """Captions in the first of these that has one: .json, .txt and .caption files beside, metadata files."""
        path = self.path(index)
        for form in sorted((*self._forms.get("", ()), *self._forms.get(path.suffix, ())), key=_form_order):
            suffix = _last(form)
            try:
                with open_regular(path.with_name(path.stem + form)) as file:
                    data = file.read(MAX_CAPTION_BYTES + 1)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise BadExample(str(path), f"its caption file cannot be read: {error_reason(error)}") from error
            texts = self.reading.read(suffix.lower(), data, str(path))
            if has_text(texts):
                return ExampleCaptions(texts, FILE_KINDS[suffix.lower()])
        return self.tables().captions.get(self.files[index], ExampleCaptions({}))

    def caption_notes(self) -> list[str]:
        """Sentences about metadata and caption files: what cannot be read, and what belongs to no file here."""
        tables = self.tables()
        strays = tables.rows.difference(self.files)
        stray = [f"{len(strays)} rows of metadata name no file here, such as {min(strays)}"] if strays else []
        if self.stray:
            stray.append(f"{len(self.stray)} caption files belong to no file here, such as {min(self.stray)}")
        return [*tables.notes, *stray]

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


def open_folder(path: Path, split: str, medium: Medium, reading: CaptionFormat = DEFAULT_FORMAT) -> Folder:
    """The files of one split. The training split defines the indices of the classes.

    Raises:
      ValueError: there is no folder of the split, or no file in it.
    """
    root = split_folder(path, split)
    train = root if split == "train" else split_folder(path, "train")
    classes = None if train == root else Folder.scan(train, medium).classes
    return Folder.scan(root, medium, classes, reading=reading, above=root != path)


@SOURCES.register("images", path=True, decoded=True, captions="text")
def open_image_folder(config: SourceConfig, request: SourceRequest) -> Mixture:
    """The images of a folder; see `open_image_files`."""
    reading = CaptionFormat.from_config(config.captions)
    return open_image_files(config, request, open_folder(Path(config.path or ""), request.split, IMAGES, reading))


def _notes(medium: Medium, listing: Listing, unknown: Mapping[str, int]) -> tuple[str, ...]:
    """Sentences about links and files that are not read, and about files of classes that the training split lacks."""
    notes = []
    for some, what in (
        (listing.not_followed, "linked folders lead to a folder that is read already and are left aside"),
        (listing.broken, "links lead to no file and are left aside"),
    ):
        if some:
            notes.append(f"{len(some)} {what}, such as {min(some)}")
    if listing.others:
        notes.append(
            f"{listing.others.total()} files are no {medium.name}s and are left aside: {most_frequent(listing.others)}"
        )
    if unknown:
        notes.append(
            f"{sum(unknown.values())} files are of classes that the training split lacks, and have none: "
            f"{', '.join(sorted(unknown)[:8])}"
        )
    return tuple(notes)


def _last(form: str) -> str:
    return form[form.rindex(".") :]


def _form_order(form: str) -> tuple[int, int, bool, str]:
    """Kinds of caption files in their order; "0.txt" before "0.png.txt", and ".txt" before ".TXT"."""
    suffix = _last(form)
    return tuple(FILE_KINDS).index(suffix.lower()), form.count("."), suffix != suffix.lower(), form
