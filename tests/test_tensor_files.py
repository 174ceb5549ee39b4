"""Files of tensors, as PyTorch wrote them (tests/goldens/torch_files), read without it."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from starflow_jax.tensor_formats.tensor_opening import TensorFileError, open_tensors

FILES = Path(__file__).parent / "goldens" / "torch_files"


def assert_equal(found, expected):
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    values = found.read()
    assert (values.shape, values.dtype) == (found.shape, found.dtype)
    assert values.tobytes() == np.ascontiguousarray(expected.read()).tobytes()


@pytest.mark.parametrize(("file", "lacking"), [("zip.pth", set()), ("protocol4.pth", set()), ("legacy.pt", {"fp8"})])
def test_every_format_of_pytorch_gives_the_same_numbers(file, lacking):
    expected, found = open_tensors(FILES / "expected.safetensors"), open_tensors(FILES / file)
    # transposed, sliced and aliased views of one storage, parameters, bfloat16, float8, a scalar, no values at all
    assert set(expected) - set(found) == lacking
    for name in set(found) & set(expected):
        assert_equal(found[name], expected[name])
    if "u16" in found:  # safetensors of that PyTorch had no such type
        assert found["u16"].read().tolist() == [1, 65535]


def test_shards_of_two_processes_are_put_together():
    expected, found = open_tensors(FILES / "distributed_expected.safetensors"), open_tensors(FILES / "distributed")
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert_equal(tensor, expected[name])


def test_nested_values_get_dotted_names_and_what_is_no_tensor_is_left_out():
    found = open_tensors(FILES / "nested.pth")
    assert set(found) == {"model.module.a", "model.module.b", "ema.a", "opt.state.0.exp_avg"}
    np.testing.assert_array_equal(found["ema.a"].read(), 2 * found["model.module.a"].read())


def test_a_format_is_recognised_by_content(tmp_path):
    for file in ("zip.pth", "legacy.pt", "expected.safetensors"):
        copy = tmp_path / "weights.dat"
        copy.write_bytes((FILES / file).read_bytes())
        assert set(open_tensors(copy)) == set(open_tensors(FILES / file))


def test_a_file_in_pieces_is_one_mapping(tmp_path):
    pieces = {"0.weight": "a.bin", "0.bias": "a.bin", "plain": "b.safetensors"}
    (tmp_path / "a.bin").write_bytes((FILES / "module.bin").read_bytes())
    (tmp_path / "b.safetensors").write_bytes((FILES / "expected.safetensors").read_bytes())
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": pieces}))
    for path in (index, tmp_path):
        found = open_tensors(path)
        assert set(found) == set(pieces)
        assert_equal(found["plain"], open_tensors(FILES / "expected.safetensors")["plain"])


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def zip_of(pickled, **entries):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in {"data.pkl": pickled, "byteorder": b"little", **entries}.items():
            archive.writestr(f"archive/{name}", data)
    return content.getvalue()


def test_code_that_a_file_names_is_left_aside_and_does_not_run(tmp_path):
    import os

    (path := tmp_path / "weights.pth").write_bytes(zip_of(pickle.dumps(Call(os.system, f"touch {tmp_path}/ran"), 2)))
    with pytest.raises(TensorFileError, match=r"contains an object of '(posix|nt)\.system' in place of named tensors"):
        open_tensors(path)
    path.write_bytes(zip_of(pickle.dumps({"a": [Call(eval, "1")], "b": 2}, 4)))
    assert [(one.path, one.name) for one in open_tensors(path).left_aside] == [("a.0", "builtins.eval")]
    assert not (tmp_path / "ran").exists()
    with pytest.raises(TensorFileError, match=r"an object of 'torch\.nn\.modules\.container\.Sequential' in place"):
        open_tensors(FILES / "whole_module.pth")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(100), "damaged or cut short"),
        ((2**62).to_bytes(8, "little") + b"{}", "claims 4611686018427387904 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<html>", "an unknown format"),
        (b'{"weight_map": {"a": "../a.safetensors"}}', "'../a.safetensors', which is not a file name"),
        (b'{"weight_map": {"a": "/etc/passwd"}}', "'/etc/passwd', which is not a file name"),
        (b'{"weight_map": {"a": "weights"}}', "lists itself"),
        (zip_of(b"\x80\x02."), "pickled part is damaged"),
    ],
)
def test_what_is_no_file_of_tensors_gets_one_sentence(tmp_path, content, sentence):
    (path := tmp_path / "weights").write_bytes(content)
    with pytest.raises(TensorFileError, match=sentence) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def safetensors_of(**entry):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entry}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"dtype": 31}, "damaged entry"),
        ({"shape": [2**40, 2**40]}, "does not lie in bytes 0 to 8 of 8"),
        ({"shape": [-2]}, "damaged entry"),
        ({"data_offsets": [8, 16]}, "does not lie in bytes 8 to 16 of 8"),
        ({"data_offsets": [0]}, "damaged entry"),
    ],
)
def test_a_safetensors_table_that_does_not_fit_its_bytes_is_refused(tmp_path, entry, sentence):
    (path := tmp_path / "a.safetensors").write_bytes(safetensors_of())
    assert open_tensors(path)["a"].read().tolist() == [0, 0]
    path.write_bytes(safetensors_of(**entry))
    with pytest.raises(TensorFileError, match=sentence):
        open_tensors(path)


def test_a_type_that_is_not_known_is_left_aside(tmp_path):
    (path := tmp_path / "a.safetensors").write_bytes(safetensors_of(dtype="F4"))
    assert (dict(found := open_tensors(path)), list(map(str, found.left_aside))) == ({}, ["a (a tensor of type F4)"])


def test_a_distributed_checkpoint_that_points_out_of_its_folder_is_refused(tmp_path):
    content = (FILES / "distributed" / ".metadata").read_bytes()
    assert b"__0_0.distcp" in content
    (tmp_path / ".metadata").write_bytes(content.replace(b"__0_0.distcp", b"../_0.distcp"))
    with pytest.raises(TensorFileError, match=r"lies in '\.\./_0\.distcp'"):
        open_tensors(tmp_path)
