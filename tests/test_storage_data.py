"""Data read from the address of a store are those of the same local files, and shards are read by ranges."""

import gzip
import io
import pickle
import struct
import uuid
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from picture_files import encoded, picture, write_photos, write_tar

from starflow_jax.core.config.data_config import DataConfig
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.config.source_config import ComponentConfig, SourceConfig
from starflow_jax.core.storage import ranged_files
from starflow_jax.core.storage.addresses import Address
from starflow_jax.core.storage.copies import local_path
from starflow_jax.core.storage.places import storage_folder
from starflow_jax.core.storage.ranged_files import StoredFile
from starflow_jax.core.storage.retries import Retries, StoreError
from starflow_jax.core.storage.store import open_store
from starflow_jax.data.decoding.bad_examples import BadExample
from starflow_jax.data.pipeline.fingerprint import fingerprint
from starflow_jax.data.preparation.shard_writing import ShardJob, write_shard
from starflow_jax.data.sources.caption_files import CaptionFormat
from starflow_jax.data.sources.parquet import ParquetRows
from starflow_jax.data.sources.source_opening import open_source
from starflow_jax.data.sources.splits import shard_files
from starflow_jax.data.sources.tars import Tars
from starflow_jax.models.autoencoders.patch_pca import PatchPCA
from starflow_jax.models.autoencoders.storage import kept_autoencoder, load_autoencoder, save_autoencoder
from starflow_jax.sweeps.content_hash import content_hashes

SMALL = FlowConfig(channels=3, image_size=4, patch_size=2, width=16, num_blocks=1, layers_per_block=1, head_dim=8)
FLOW = FlowConfig(channels=3, image_size=8, patch_size=4, width=16, num_blocks=1, layers_per_block=1, head_dim=8)


@pytest.fixture(autouse=True)
def folder_of_copies(tmp_path, monkeypatch):
    monkeypatch.setenv("STARFLOW_STORAGE", str(tmp_path / "storage"))


def uploaded(folder, scheme="memory"):
    """The address of a copy of a local folder in the memory store, or in that of another scheme."""
    address = f"{scheme}://{uuid.uuid4().hex}/{folder.name}"
    files = fsspec.filesystem(scheme)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files.pipe_file(f"{address}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return address


def write_idx(folder):
    images = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    head = struct.pack(">HBB3I", 0, 8, 3, 2, 4, 4)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 2) + bytes([3, 4]))


def write_npz(folder):
    np.savez(folder / "train.npz", image=np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3), label=np.arange(2))


def write_tars(folder):
    rows = [{"png": encoded(picture(number)), "cls": b"%d" % number, "txt": b"a"} for number in range(4)]
    write_tar(folder / "train-0.tar", rows[:2])
    write_tar(folder / "train-1.tar", rows[2:])
    write_tar(folder / "test-0.tar", rows[:1])


def write_parquet(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": encoded(picture(number)), "path": ""} for number in range(3)]
    pq.write_table(pa.table({"image": images, "label": [0, 1, 2]}), folder / "train.parquet", row_group_size=2)


WRITERS = {
    "idx": write_idx,
    "npz": write_npz,
    "images": lambda folder: write_photos(folder, {"cats": [(20, 30)], "dogs": [(30, 20), (9, 9)]}),
    "tars": write_tars,
    "parquet": write_parquet,
}


@pytest.mark.parametrize("source", WRITERS)
def test_examples_are_those_of_the_local_files(source, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    WRITERS[source](folder)
    levels = 256 if source in ("idx", "npz") else None
    local = SourceConfig(source=source, path=str(folder), levels=levels)
    stored = SourceConfig(source=source, path=uploaded(folder), levels=levels)
    one, other = (open_source(config, "train", flow=FLOW) for config in (local, stored))
    assert len(one) == len(other) > 1 and one.num_classes == other.num_classes
    for index in range(len(one)):
        for name, value in one[index].items():
            np.testing.assert_array_equal(value, other[index][name])
    assert fingerprint(one) == fingerprint(other)
    assert stored.path.startswith("memory://")
    copies = [path for path in storage_folder().rglob("*") if path.is_file() and ".used" not in path.parts]
    assert bool(copies) == (source not in ("tars", "parquet"))  # which are read by ranges


class OtherStore(MemoryFileSystem):
    """A second store, which shares nothing with the first."""

    protocol = "elsewhere"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("elsewhere://"))


def test_a_mixture_reads_from_several_stores_and_a_folder_at_once(tmp_path):
    fsspec.register_implementation("elsewhere", OtherStore, clobber=True)
    for name, writer in (("tars", write_tars), ("npz", write_npz), ("parquet", write_parquet)):
        (tmp_path / name).mkdir()
        writer(tmp_path / name)
    places = [uploaded(tmp_path / "tars"), uploaded(tmp_path / "npz", "elsewhere"), str(tmp_path / "parquet")]

    def examples(paths):
        parts = [
            ComponentConfig(source=name, path=path, weight=1.0, levels=levels)
            for name, path, levels in zip(("tars", "npz", "parquet"), paths, (None, 256, None), strict=True)
        ]
        source = open_source(DataConfig(source="mixture", mixture=tuple(parts)), "train", flow=SMALL)
        return [source[index] for index in range(len(source))]

    found, expected = examples(places), examples([str(tmp_path / name) for name in ("tars", "npz", "parquet")])
    assert len(found) == len(expected) == 4 + 2 + 3
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
    assert not fsspec.filesystem("memory").exists(places[1].replace("elsewhere", "memory"))


def test_array_record_reads_local_files_alone():
    """Why shards of ArrayRecord are copied: the reader takes a path, and reads no address and no file object."""
    reader = pytest.importorskip("array_record.python.array_record_module").ArrayRecordReader
    with pytest.raises(TypeError, match="path: str"):
        reader(io.BytesIO(b""))
    assert not reader("s3://bucket/x.array_record").ok()


def test_a_source_of_a_store_survives_pickling_and_identifies_its_content(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_tars(folder)
    config = DataConfig(source="tars", path=uploaded(folder))
    source = open_source(config, "train", flow=FLOW)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(source[3]["image"], again[3]["image"])
    first = content_hashes(source, config)
    assert first == content_hashes(again, config)
    fsspec.filesystem("memory").pipe_file(f"{config.path}/train-1.tar", b"")
    assert first != content_hashes(source, config)


@pytest.mark.parametrize("layout", ["flat", "split", "Train", "pattern", "file"])
def test_shards_are_found_as_in_a_folder(layout, tmp_path):
    folder = tmp_path / "data"
    inside = folder / ("train" if layout == "split" else "Train" if layout == "Train" else "")
    inside.mkdir(parents=True)
    for name in ("train-0.tar", "train-1.tar", "val-0.tar", ".train-2.tar", "x.txt"):
        (inside / name).write_bytes(b"1")
    end = {"pattern": "/train-*.tar", "file": "/train-1.tar"}.get(layout, "")
    address = uploaded(folder)
    for split in ("train", "test"):
        names = [file.name for file in shard_files(f"{folder}{end}", split, ".tar")]
        assert [file.name for file in shard_files(f"{address}{end}", split, ".tar")] == names


def test_only_the_bytes_of_a_member_are_read(tmp_path):
    address = Address.parse(uploaded_bytes(bytes(range(256)) * 4000))
    file = StoredFile.at(address, 256 * 4000, 1)
    assert file.read(10, 4) == bytes([10, 11, 12, 13]) and file.read(256 * 4000 - 1, 9) == b"\xff"
    assert file.read(256 * 4000, 9) == b""
    with file.open() as stream:
        stream.seek(256 * 3000 + 7)
        assert stream.read(2) == bytes([7, 8]) and stream.tell() == 256 * 3000 + 9
        stream.seek(-1, 2)
        assert stream.read() == b"\xff"


def uploaded_bytes(data):
    address = f"memory://{uuid.uuid4().hex}/x.bin"
    fsspec.filesystem("memory").pipe_file(address, data)
    return address


def test_a_shard_that_is_gone_is_a_bad_example(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_tars(folder)
    config = SourceConfig(source="tars", path=uploaded(folder))
    source = open_source(config, "train", flow=FLOW)
    fsspec.filesystem("memory").rm_file(f"{config.path}/train-1.tar")
    source[0]
    with pytest.raises(BadExample, match=r"memory://\S+/train-1.tar/001"):
        source[3]


@pytest.mark.parametrize("kind", ["tars", "parquet"])
def test_a_store_that_is_away_is_no_bad_example(kind, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    WRITERS[kind](folder)
    config = SourceConfig(source=kind, path=uploaded(folder))
    source = open_source(config, "train", flow=FLOW)
    images = {"tars": Tars.scan, "parquet": ParquetRows.open}[kind](config.path, "train", reading=CaptionFormat())
    files = [file for file in fsspec.filesystem("memory").find(config.path) if "train" in file]

    def away(self, path, start=None, end=None):
        raise ConnectionResetError("the connection broke")

    attempts = Retries(attempts=1)
    with monkeypatch.context() as broken:
        broken.setattr(ranged_files, "open_store", lambda address: open_store(address, attempts))
        broken.setattr(MemoryFileSystem, "cat_file", away)
        for read in (lambda: source[1], lambda: images.read(1), lambda: images.captions(1))[
            : 3 if kind == "tars" else 2
        ]:
            with pytest.raises(StoreError, match="cannot be read: ConnectionResetError"):
                read()
        with pytest.raises(StoreError, match="cannot be read: ConnectionResetError"):
            write_shard(images, tmp_path, ShardJob("train", "train-0", 0, 2), decode=True)
        with pytest.raises(StoreError, match="cannot be read: ConnectionResetError"):
            open_source(config, "train", flow=FLOW)
        for file in files:
            fsspec.filesystem("memory").pipe_file(file, b"short")
        with pytest.raises(BadExample, match="has 5 bytes instead of"):
            source[1]
    assert not list(tmp_path.glob("*.json"))


def test_missing_data_are_named_by_their_address():
    with pytest.raises(ValueError, match=r"contains no \.tar file for the train split"):
        open_source(SourceConfig(source="tars", path="memory://nothing/x"), "train", flow=FLOW)


def test_the_autoencoder_of_latents_is_read_without_the_latents(tmp_path):
    folder = tmp_path / "latents"
    (folder / "train").mkdir(parents=True)
    params = {"mean": np.zeros(4), "basis": np.eye(4)[:, :2], "std": np.ones(2)}
    save_autoencoder(folder / "train" / "autoencoder.npz", PatchPCA(2, 1, 2), params)
    (folder / "train" / "latents-000-00000.array_record").write_bytes(b"large")
    address = uploaded(folder)
    kept = kept_autoencoder(Path(address))
    assert kept is not None and not list(kept.parent.glob("*.array_record"))
    assert (
        load_autoencoder(kept)[0] == load_autoencoder(Path(f"{address}/train/autoencoder.npz"))[0] == PatchPCA(2, 1, 2)
    )
    assert local_path(address).joinpath("train/latents-000-00000.array_record").is_file()
