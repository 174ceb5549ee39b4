"""Files of tensors that were made or damaged to do harm: read, or refused in a sentence, and nothing else."""

import contextlib
import io
import pickle
import random
import sys
import time
import zipfile
from pathlib import Path

import pytest

from starflow_jax.tensor_formats.restricted_pickle import Refused, load
from starflow_jax.tensor_formats.tensor_opening import TensorFileError, open_tensors

FILES = Path(__file__).parent / "goldens" / "torch_files"
SEEDS = ("zip.pth", "legacy.pt", "protocol4.pth", "nested.pth", "expected.safetensors", "distributed")
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
        read, refused = fuzz(tmp_path, 350, seed=0)
    assert watch.seen == []
    assert read + refused == 350 * len(SEEDS)
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
        load(io.BytesIO(content), {})
    return str(caught.value)


def test_pickles_that_would_take_memory_or_time_do_not(tmp_path):
    start = time.perf_counter()
    assert "damaged" in sentence(b"\x80\x02r\xff\xff\xff\xff.")  # a place in memory that is far away
    assert "damaged" in sentence(b"\x80\x04\x8e" + b"\xff" * 8 + b".")  # 2^64 bytes
    assert "damaged" in sentence(b"\x80\x02\x8b" + b"\xff\xff\xff\x7f" + b".")  # an integer of 2^31 bytes
    assert "no end" in sentence(b"\x80\x02") or "damaged" in sentence(b"\x80\x02")
    twice = b"\x80\x02)" + b"q\x00h\x00\x86" * 200 + b"q\x00}h\x00K\x01s."  # its hash has 2^200 steps
    assert "key of type tuple" in sentence(twice)
    deep = b"\x80\x02" + b"(" * 10**5 + b"t" * 10**5 + b"."
    load(io.BytesIO(deep), {})
    nested = b"\x80\x02)" + b"q\x00h\x00\x86" * 60 + b"."
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", nested)
    (tmp_path / "deep.pth").write_bytes(content.getvalue())
    with pytest.raises(TensorFileError, match="nested too deeply"):  # 2^60 ways down
        open_tensors(tmp_path / "deep.pth")
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("module", ["os", "builtins", "torch", "torch.serialization", "numpy.core.multiarray"])
def test_no_name_outside_of_the_table_is_taken(module):
    from starflow_jax.tensor_formats.torch_objects import NAMES

    name = {"torch": "load", "torch.serialization": "load", "builtins": "getattr", "os": "system"}.get(module, "scalar")
    for content in (f"\x80\x02c{module}\n{name}\n.".encode("latin1"), pickle.dumps((module, name), 4)[:-2] + b"\x93."):
        with pytest.raises(Refused):
            load(io.BytesIO(content), NAMES)
