"""Addresses of object stores: their text is kept, and what takes no address says so and creates nothing."""

import ast
from pathlib import Path

import pytest

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config.build import build
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.storage.addresses import Address, address_text, is_address

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("text", ["gs://b/x", "s3://b", "s3://bucket/a/b.png", "memory://b/x y", "abfs://c/k"])
def test_an_address_keeps_its_text(text):
    assert str(Address.parse(text)) == text == address_text(Path(text))


def test_parts_of_an_address():
    address = Address.parse("GS://b//runs/a/")
    assert str(address) == "gs://b/runs/a" and address.name == "a" and str(address.parent) == "gs://b/runs"
    assert str(address / "checkpoints/5") == "gs://b/runs/a/checkpoints/5"


@pytest.mark.parametrize("text", ["runs/a", "/a/b", "C:/a", "a.py:tiny", "x.npz:0.6", "./gs:/b", ""])
def test_paths_are_no_addresses(text):
    assert not is_address(text)


@pytest.mark.parametrize("text", ["gs:/b/x", "gs:///x", "gs://", "gs://b/../x", "gs://b/a\n", "runs/a", "gs://b/a\\b"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="must be an address SCHEME://BUCKET/KEY"):
        Address.parse(text)


@pytest.mark.parametrize("text", ["s3://id:hunter2@b/x", "s3://b/x?X-Amz-Signature=hunter2"])
def test_credentials_in_an_address_are_refused_and_not_repeated(text):
    with pytest.raises(ValueError, match="credentials are read from") as error:
        Address.parse(text)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--config", "gs://b/x.py", "--workdir", "w"],
        ["plan", "--config", "s3:/b/x.py:tiny"],
        ["init", "--data", "gs://b/images", "--out", "x.py"],
        ["port", "--to-torch", "gs://b/x.pth", "--workdir", "w"],
    ],
)
def test_options_without_addresses_say_so_and_create_nothing(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert "must be a path of a file system, got the address" in message and "://b/" in message
    assert message.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_field_without_addresses_says_so():
    with pytest.raises(ValueError, match="index must be a path of a file system, got the address"):
        build(SourceConfig, {"source": "images", "path": "p", "index": "gs://b/i.json"})


def test_only_the_storage_package_renames_and_locks():
    """`os.replace`, `os.rename`, `Path.rename`, `Path.replace` and `flock` are called in core/storage alone."""
    wrong = []
    files = [*REPOSITORY.glob("starflow_jax/**/*.py"), *REPOSITORY.glob("kernels/**/*.py")]
    for path in files:
        if path.is_relative_to(REPOSITORY / "starflow_jax/core/storage"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of_os = isinstance(node.func.value, ast.Name) and node.func.value.id in ("os", "shutil")
            name = node.func.attr
            # str.replace has two arguments, and dataclasses.replace is of a module.
            moves = name in ("rename", "flock", "lockf") or (name in ("replace", "move") and of_os)
            moves |= name == "replace" and len(node.args) == 1 and not node.keywords
            if moves:
                wrong.append(f"{path.relative_to(REPOSITORY)}:{node.lineno}")
    assert not wrong, f"rename and lock through starflow_jax.core.storage: {', '.join(wrong)}"
