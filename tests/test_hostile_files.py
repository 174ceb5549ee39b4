"""Files of tensors that were made or damaged to do harm: read, or refused in a sentence, and nothing else."""

import contextlib
import io
import os
import random
import socket
import sys
import time
import zipfile
from pathlib import Path

import pytest

from starflow_jax.core.regular_files import NotAFile, check_file, open_file, read_bytes, read_json, read_text
from starflow_jax.models import pretrained_folder
from starflow_jax.porting.released_yaml import read_released
from starflow_jax.tensor_formats.mapped import map_file
from starflow_jax.tensor_formats.pickle_values import Placeholder, Refused
from starflow_jax.tensor_formats.restricted_pickle import load
from starflow_jax.tensor_formats.tensor_opening import TensorFileError, open_tensors
from starflow_jax.tensor_formats.torch_objects import NAMES

FILES = Path(__file__).parent / "goldens" / "torch_files"
SEEDS = ("zip.pth", "legacy.pt", "protocol4.pth", "nested.pth", "training.pth", "training_protocol5.pth", "kinds.pth",
         "expected.safetensors", "distributed")  # fmt: skip
WATCHED = ("os.system", "os.exec", "os.spawn", "os.posix_spawn", "subprocess.Popen", "socket.connect", "exec", "import",
           "pickle.find_class", "os.remove", "os.rename", "shutil.rmtree")  # fmt: skip


class Watch:
    """Notes what Python's audit events tell of; hooks stay for good, so there is one, and it sleeps between tests."""

    def __init__(self):
        self.active, self.seen = False, []
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if self.active and event.startswith(WATCHED) and "encodings" not in str(arguments[:1]):
            self.seen.append((event, arguments[:1]))  # a text's encoding is imported where it is first met

    @contextlib.contextmanager
    def watching(self):
        self.seen.clear()
        self.active = True
        try:
            yield
        finally:
            self.active = False


@pytest.fixture(scope="session")
def watch():
    for name in SEEDS:
        read_all(FILES / name)  # all imports are made
    return Watch()


def mutated(content, rng):
    """A copy with some of its bytes changed, cut out, doubled, or what follows a place missing."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        place = rng.randrange(len(data))
        kind = rng.random()
        if kind < 0.5:
            data[place] = rng.randrange(256)
        elif kind < 0.65:
            data[place : place + 8] = rng.choice((b"\xff" * 8, b"\x00" * 8, (2**62).to_bytes(8, "little")))
        elif kind < 0.75:
            del data[place : place + rng.randrange(1, 64)]
        elif kind < 0.85:
            other = rng.randrange(len(data))
            data[place:place] = data[other : other + rng.randrange(1, 64)]
        elif kind < 0.95:
            other = rng.randrange(len(data))
            data[place : place + 16] = data[other : other + 16]
        else:
            del data[place + 1 :]
    return bytes(data)


def inside_zip(content, rng):
    """The archive with its pickle changed and everything else whole, so that the change is reached."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, mutated(data, rng) if name.endswith("data.pkl") else data)
    return result.getvalue()


def read_all(path):
    """Reads every tensor, and every value of what is small."""
    for tensor in open_tensors(path).values():
        values = tensor.read()
        assert (values.shape, values.dtype) == (tensor.shape, tensor.dtype)
        assert values.nbytes < 2**24
        values.tobytes()


def fuzz(folder, count, seed):
    """(files that were read, files that were refused) of so many mutations of every seed; no other outcome passes."""
    rng = random.Random(seed)
    read = refused = 0
    for name in SEEDS:
        path = folder / "mutated"
        if name == "distributed":
            (folder / name).mkdir()
            for file in (FILES / name).iterdir():
                (folder / name / file.name).write_bytes(file.read_bytes())
            path = folder / name / ".metadata"
        content = ((FILES / name / ".metadata") if name == "distributed" else (FILES / name)).read_bytes()
        for number in range(count):
            in_zip = content.startswith(b"PK") and number % 2
            path.write_bytes(inside_zip(content, rng) if in_zip else mutated(content, rng))
            start = time.perf_counter()
            try:
                read_all(folder / name if name == "distributed" else path)
                read += 1
            except TensorFileError as error:
                assert "\n" not in str(error) and len(str(error)) < 1000
                refused += 1
            assert time.perf_counter() - start < 20
    return read, refused


@pytest.mark.filterwarnings("ignore:.*escape sequence")
def test_mutated_files_are_read_or_refused(tmp_path, watch):
    with watch.watching():
        read, refused = fuzz(tmp_path, 120, seed=0)
    assert watch.seen == []
    assert read + refused == 120 * len(SEEDS)
    assert refused > read > 0  # mutations reach structures, and some only change numbers


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*escape sequence")
def test_many_mutated_files_are_read_or_refused(tmp_path, watch):
    with watch.watching():
        for seed in range(1, 21):
            (folder := tmp_path / str(seed)).mkdir()
            fuzz(folder, 1000, seed)
    assert watch.seen == []


def sentence(content):
    with pytest.raises(Refused) as caught:
        load(io.BytesIO(content), NAMES)
    return str(caught.value)


def test_pickles_that_would_take_memory_or_time_do_not(tmp_path):
    start = time.perf_counter()
    assert "damaged" in sentence(b"\x80\x02r\xff\xff\xff\xff.")  # a place in memory that is far away
    assert "damaged" in sentence(b"\x80\x04\x8e" + b"\xff" * 8 + b".")  # 2^64 bytes
    assert "damaged" in sentence(b"\x80\x02\x8b" + b"\xff\xff\xff\x7f" + b".")  # an integer of 2^31 bytes
    wide = b"\x80\x02\x8b" + (10**6).to_bytes(4, "little") + b"\x7f" * 10**6 + b"q\x00."
    assert load(io.BytesIO(wide), {}).name == "an integer of 1000000 bytes"  # and so no number to calculate with
    assert "no end" in sentence(b"\x80\x02") or "damaged" in sentence(b"\x80\x02")
    twice = b"\x80\x02)" + b"q\x00h\x00\x86" * 200 + b"q\x000}h\x00K\x01s."  # its hash has 2^200 steps
    assert list(load(io.BytesIO(twice), {}).values()) == [1]
    with pytest.raises(Refused, match="more than 1000 objects, or 4000 operations"):
        load(io.BytesIO(b"\x80\x02" + b"]" * 1001 + b"."), {}, max_objects=1000)
    # A call of a huge tuple, or of a huge shape, again and again.
    arguments = b"\x80\x02(" + b"N" * 10**5 + b"tq\x000ctorch\nSize\nq\x010("
    assert "damaged" in sentence(arguments + b"h\x01h\x00R" * 10**4 + b"t.")
    assert "invalid shape" in sentence(arguments + b"h\x01h\x00\x85R" * 10**4 + b"t.")
    pairs = b"\x80\x02(" + b"K\x01K\x02\x86" * 10**4 + b"l\x85q\x000ccollections\nOrderedDict\nq\x010("
    load(io.BytesIO(pairs + b"h\x01h\x00R" * 10**4 + b"t."), NAMES)
    deep = b"\x80\x02" + b"(" * 10**5 + b"t" * 10**5 + b"."
    load(io.BytesIO(deep), {})
    doubled = b"q\x00h\x00\x86" * 60 + b"."  # 2^60 ways down
    assert archive_of(tmp_path, b"\x80\x02)" + doubled) == {}
    assert len(archive_of(tmp_path, b"\x80\x02cposix\nsystem\n" + doubled).left_aside) == 1
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x01\x85K\x01\x85\x89NtR"
    with pytest.raises(TensorFileError, match="nested too deeply"):
        archive_of(tmp_path, b"\x80\x02" + tensor + doubled)
    itself = b"\x80\x02}q\x00(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00b" + tensor + b"u."
    assert list(archive_of(tmp_path, itself)) == ["b"]
    assert time.perf_counter() - start < 20


def archive_of(folder, pickled):
    """What is read of an archive of this pickle and one storage of four bytes."""
    with zipfile.ZipFile(folder / "archive.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(4))
    return open_tensors(folder / "archive.pth")


@pytest.mark.parametrize("module", ["os", "builtins", "torch", "torch.serialization", "numpy.core.multiarray"])
def test_a_name_outside_of_the_table_stands_for_nothing(module, watch):
    name = {"torch": "load", "torch.serialization": "load", "builtins": "getattr", "os": "system"}.get(module, "scalar")
    by_text = f"c{module}\n{name}\n".encode("latin1")
    by_stack = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)) + b"\x93"
    calls = (b".", b"(X\x04\x00\x00\x00trueX\x01\x00\x00\x00atR.", b")\x81}b.", b")}\x92(K\x01K\x02u(K\x01e(K\x01\x90.")
    with watch.watching():
        found = [load(io.BytesIO(head + call), NAMES) for head in (b"\x80\x04" + by_text, by_stack) for call in calls]
    assert watch.seen == []
    assert [(type(one), one.name) for one in found] == [(Placeholder, f"{module}.{name}")] * 8


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "link to a pipe", "socket"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, kind):
    path = tmp_path / "weights.pth"
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "link to a pipe":
            os.mkfifo(tmp_path / "pipe")
            path.symlink_to(tmp_path / "pipe")
        else:
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(path))
        what = {"link to a pipe": "named pipe", "pipe": "named pipe"}.get(kind, kind)
        for read in (open_file, check_file, read_bytes, read_text):
            with pytest.raises(NotAFile, match=f"it is a {what}, not a file"):
                read(path)
        for read in (
            read_json,
            read_released,
            pretrained_folder.read_json,
            map_file,
            *([] if kind == "folder" else [open_tensors]),
        ):
            with pytest.raises(ValueError, match=f"cannot be read: it is a {what}, not a file") as caught:
                read(path)
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"a": ' + "9" * 4000 + "}", "an integer of 4000 digits"),
        ('{"a": -' + "9" * 30 + "}", "an integer of 30 digits"),
        ("[" * 10**5, "nested too deeply"),
        ("{", "is not JSON"),
        ("\xff", "bytes that are not UTF-8"),
    ],
)
def test_json_that_is_none_or_has_huge_numbers_is_refused_in_a_sentence(tmp_path, content, sentence):
    (path := tmp_path / "config.json").write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match=sentence) as caught:
        read_json(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
