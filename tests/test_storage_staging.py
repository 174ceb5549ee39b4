"""Commands with addresses among their options: what is published, printed, and refused before anything is computed."""

import argparse
import json
import uuid

import fsspec
import pytest

from starflow_jax.cli import dispatch
from starflow_jax.cli.dispatch import main
from starflow_jax.cli.errors import CommandError
from starflow_jax.cli.options.stored import output_path
from starflow_jax.cli.staging import run_staged
from starflow_jax.core.figures import write_json
from starflow_jax.core.storage import lease, store
from starflow_jax.core.storage.manifest import LEASE, MANIFEST
from starflow_jax.core.storage.retries import Retries, StoreError
from starflow_jax.core.storage.working_folder import working_folder

TINY = ("--config", "experiments/digits.py:tiny")


@pytest.fixture
def at(tmp_path, monkeypatch):
    """An address in memory where nothing is."""
    monkeypatch.setenv("STARFLOW_STORAGE", str(tmp_path / "storage"))
    return f"memory://{uuid.uuid4().hex}/x"


def names(at):
    root = at.removeprefix("memory://").rpartition("/")[0]
    return {path.removeprefix(f"/{root}/x/") for path in fsspec.filesystem("memory").find(f"/{root}")}


def refused(capsys, *argv):
    assert main(list(argv)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_outputs_are_published_and_shown_by_their_addresses(at, capsys, tmp_path):
    def run(arguments):
        write_json(arguments.json, {"out": str(arguments.out)})
        arguments.out.mkdir()
        (arguments.out / "0.png").write_bytes(b"picture")
        print(f"written: {arguments.out}")
        return 0

    options = {"out": output_path(f"{at}/a"), "json": output_path(f"{at}/x.json"), "num": 4}
    assert run_staged(argparse.Namespace(command="sample", run=run, **options), lambda field: f"--{field}") == 0
    assert capsys.readouterr().out == f"written: {at}/a\n"
    assert json.loads(fsspec.filesystem("memory").cat_file(f"{at}/x.json")) == {"out": f"{at}/a"}
    assert names(at) == {"a/0.png", f"a/{MANIFEST}", "x.json"}
    assert not [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]


def test_a_refused_output_leaves_the_local_folder_of_a_run_below_it_or_at_it(at, capsys, tmp_path):
    for address, sentence in ((at, "must be a new file or"), (f"{at}/a", "is in use by another process of this")):
        with working_folder(f"{at}/a", "trains") as folder:
            folder.path.mkdir(exist_ok=True)
            (folder.path / "x").write_bytes(b"1")
            if address == at:
                folder.publish()
            arguments = argparse.Namespace(command="sample", run=lambda arguments: 0, out=output_path(address))
            with pytest.raises(CommandError, match=sentence):
                run_staged(arguments, lambda field: f"--{field}")
            assert (folder.path / "x").is_file()
        fsspec.filesystem("memory").rm(at, recursive=True)


def test_a_folder_below_another_is_not_published_or_removed_with_it(at):
    with working_folder(at, "trains") as run:
        run.path.mkdir()
        (run.path / "x").write_bytes(b"1")
        with working_folder(f"{at}/sweep", "sweeps") as sweep:
            sweep.path.mkdir()
            (sweep.path / "y").write_bytes(b"2")
            run.publish()
    assert names(at) == {"x", MANIFEST, "sweep/y", f"sweep/{MANIFEST}"}


def test_a_file_in_the_folder_of_the_same_command_is_published_with_it(at):
    def run(arguments):
        arguments.out.mkdir()
        (arguments.out / "0.png").write_bytes(b"picture")
        write_json(arguments.json, {})
        return 0

    options = {"json": output_path(f"{at}/x.json"), "out": output_path(at)}
    assert run_staged(argparse.Namespace(command="sample", run=run, **options), lambda field: f"--{field}") == 0
    assert names(at) == {"0.png", "x.json", MANIFEST}
    assert set(json.loads(fsspec.filesystem("memory").cat_file(f"{at}/{MANIFEST}"))["files"]) == {"0.png", "x.json"}


def test_a_command_that_fails_publishes_no_outputs(at):
    def run(arguments):
        arguments.out.write_bytes(b"half")
        raise CommandError("a reason")

    arguments = argparse.Namespace(command="sample", run=run, out=output_path(f"{at}/x.png"))
    with pytest.raises(CommandError, match="a reason"):
        run_staged(arguments, lambda field: f"--{field}")
    assert names(at) == set()


def test_a_refused_command_publishes_nothing(at, capsys):
    message = refused(capsys, "data", *TINY, "--workdir", f"{at}/none", "--out", f"{at}/sheet.jpg", "--json", f"{at}/j")
    assert f"--out must end in .png, got {at}/sheet.jpg" in message and names(at) == set()
    message = refused(capsys, "train", *TINY, "--workdir", f"{at}/w", "--config.train.steps=-1")
    assert "steps" in message and names(at) == set()


def test_a_folder_of_other_files_is_refused_and_left_as_it_is(at, capsys):
    fsspec.filesystem("memory").pipe_file(f"{at}/notes.txt", b"mine")
    message = refused(capsys, "sweep", "--report-only", "--out", at)
    assert f"{at} contains no sweep" in message and names(at) == {"notes.txt"}
    message = refused(capsys, "encode", *TINY, "--fit-patch-pca", "2:1", "--out", at)
    assert f"--out must be a new file or an empty or a new folder, got {at}, a folder" in message


def test_a_run_that_is_not_there_is_named_by_its_address(at, capsys):
    assert f"workdir {at} contains no training run" in refused(capsys, "info", "--workdir", at)
    assert f"workdir {at} contains no training run" in refused(capsys, "sample", "--workdir", at, "--out", f"{at}.png")
    assert names(at) == set()


def test_what_needs_a_shared_folder_or_another_option_says_so(at, capsys):
    message = refused(capsys, "sweep", "--config", "experiments/sweeps/digits.py:tiny", "--out", at, "--distributed")
    assert f"--out must be a folder that all processes share with --distributed, got the address {at}" in message
    message = refused(capsys, "evaluate", "--workdir", at, "--metrics", "fid")
    assert f"--metrics requires --out where --workdir is an address, got {at} alone" in message


@pytest.mark.parametrize("text", ["file://b/x", "nosuch://b/x", "s3://id:hunter2@b/x", "gs:/b/x"])
def test_addresses_of_no_store_are_refused(text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(capsys, "info", "--workdir", text)
    assert message.startswith("starflow: --workdir ") and "hunter2" not in message and not list(tmp_path.iterdir())


def test_a_lease_of_another_machine_is_respected(at, capsys, monkeypatch):
    content = {"token": "t", "doing": "trains", "host": "h7", "pid": 12, "machine": "m", "start": "1"}
    files = fsspec.filesystem("memory")
    files.pipe_file(f"{at}/{LEASE}", json.dumps(content).encode())
    beats = iter(range(99))

    def sleep(seconds):
        files.pipe_file(f"{at}/{LEASE}", json.dumps(content | {"beats": next(beats)}).encode())

    timing = lease.Timing(sleep=sleep)
    monkeypatch.setattr(lease, "Timing", lambda: timing)
    message = refused(capsys, "train", *TINY, "--workdir", at, "--quiet")
    assert f"{at} is in use by process 12 on h7, which trains in it" in message
    assert names(at) == {LEASE}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConnectionResetError("reset"), 75),
        (TimeoutError("no answer"), 75),
        (PermissionError("Access Denied"), 2),
        (FileNotFoundError("no such bucket"), 2),
        (type("HttpError", (Exception,), {"code": 403})("Forbidden"), 2),
        (type("HttpError", (Exception,), {"code": 503})("Unavailable"), 75),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"), 2),
    ],
)
def test_a_store_that_is_away_at_the_start_may_be_there_later(error, code, at, capsys, monkeypatch):
    def fail(*args, **options):
        raise error

    files = fsspec.filesystem("memory")
    for method in ("info", "find", "cat_file", "pipe_file"):
        monkeypatch.setattr(files, method, fail)
    monkeypatch.setattr(store, "Retries", lambda attempts: Retries(attempts=1))
    commands = [["train", *TINY]] + ([["info"]] if code == 75 else [])
    for command in commands:
        assert main([*command, "--workdir", at]) == code
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and message.startswith("starflow: ")


def test_a_store_that_is_away_while_a_command_runs_is_no_bug(at, capsys, monkeypatch):
    def run(argv, others, own_process):
        raise StoreError(f"{at}/x cannot be read: ConnectionResetError")

    monkeypatch.setattr(dispatch, "_run", run)
    assert main(["train"]) == 75
    assert capsys.readouterr().err == f"starflow: {at}/x cannot be read: ConnectionResetError\n"
