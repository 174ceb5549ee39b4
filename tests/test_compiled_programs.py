"""Where commands keep compiled programs: by default, where the user decides otherwise, and where it is not possible."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from starflow_jax.cli import compiled_programs, dispatch
from starflow_jax.cli.compiled_programs import CacheSettings, cache_settings, keep_compiled_programs, tidy

COMPILING = [name for name, command in dispatch.COMMANDS.items() if getattr(command, "COMPILES", False)]
# A command in its own process, up to the moment when it has parsed its options; it then compiles one program.
PROGRAM = """
import sys
from starflow_jax.cli.commands import sample
def run(arguments):
    import jax
    print(float(jax.jit(lambda x: x * 2 + 1)(3.0)))
    return 0
sample.run = run
from starflow_jax.cli.dispatch import main
sys.argv = ["starflow", "sample", "--out", "x.png", *sys.argv[1:]]
sys.exit(main())
"""


def entry(root, name, data, age=3600.0):
    """A file among the kept programs that was written `age` seconds ago."""
    path = root / "x86" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (time.time() - age,) * 2)
    return path


def start(cache, *options):
    """A process of `PROGRAM` with this folder of caches."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM, *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_folder_is_one_of_the_user_for_this_processor(tmp_path):
    settings = cache_settings({"XDG_CACHE_HOME": str(tmp_path)}, keep=True)
    folder = tmp_path / "starflow_jax" / "compiled" / compiled_programs.processor_name()
    assert settings == CacheSettings(
        {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    )
    assert all(path.stat().st_mode & 0o077 == 0 for path in (folder, *folder.parents[:2]))


def test_a_relative_folder_of_caches_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = cache_settings({"XDG_CACHE_HOME": "caches"}, keep=True).variables["JAX_COMPILATION_CACHE_DIR"]
    assert folder.startswith(str(tmp_path / ".cache" / "starflow_jax"))


@pytest.mark.parametrize(
    ("environment", "keep", "expected"),
    [
        ({}, False, {"JAX_ENABLE_COMPILATION_CACHE": "false"}),
        ({"JAX_COMPILATION_CACHE_DIR": "mine"}, True, {}),
        ({"JAX_COMPILATION_CACHE_DIR": "mine"}, False, {"JAX_ENABLE_COMPILATION_CACHE": "false"}),
        ({"JAX_ENABLE_COMPILATION_CACHE": "False"}, True, {}),
    ],
)
def test_what_the_user_has_set_stays_in_effect(tmp_path, environment, keep, expected):
    assert cache_settings({"XDG_CACHE_HOME": str(tmp_path), **environment}, keep).variables == expected
    assert not any(tmp_path.iterdir())


def test_a_threshold_of_the_user_stays_in_effect(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "2"}
    assert list(cache_settings(environment, keep=True).variables) == ["JAX_COMPILATION_CACHE_DIR"]


@pytest.mark.parametrize("kind", ["file", "missing", "shared"])
def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path, kind):
    caches = tmp_path / "caches"
    if kind == "file":
        caches.write_text("")
    elif kind == "missing":
        caches = type(caches)("/proc/caches")  # nobody can create folders there
    else:
        (caches / "starflow_jax").mkdir(parents=True)
        (caches / "starflow_jax").chmod(0o777)
    settings = cache_settings({"XDG_CACHE_HOME": str(caches)}, keep=True)
    assert not settings.variables
    assert settings.problem is not None and str(caches) in settings.problem and "\n" not in settings.problem


def test_damaged_entries_are_removed(tmp_path):
    whole = zlib.compress(os.urandom(1000))
    intact, cut = entry(tmp_path, "a-cache", whole), entry(tmp_path, "b-cache", whole[:-5])
    empty, other = entry(tmp_path, "c-cache", b""), entry(tmp_path, "autotuning.textproto", b"text")
    being_written = entry(tmp_path, "d-cache", whole[:100], age=1.0)
    tidy(tmp_path)
    assert [path.exists() for path in (intact, cut, empty, other, being_written)] == [True, False, False, True, True]
    os.utime(being_written, (time.time() - 3600,) * 2)  # as if it had been checked before
    tidy(tmp_path)
    assert being_written.exists()


def test_entries_younger_than_the_last_check_are_checked_later(tmp_path, monkeypatch):
    cut = entry(tmp_path, "a-cache", zlib.compress(os.urandom(1000))[:-5], age=1.0)
    tidy(tmp_path)
    assert cut.exists()
    now = time.time()
    monkeypatch.setattr(compiled_programs.time, "time", lambda: now + 100)
    tidy(tmp_path)
    assert not cut.exists()


def test_the_programs_unused_for_the_longest_time_are_removed(tmp_path):
    paths = [
        entry(tmp_path, f"{hours}-cache", zlib.compress(os.urandom(1000)), 3600.0 * hours) for hours in range(1, 7)
    ]
    tidy(tmp_path, largest=5000)
    assert [path.exists() for path in paths] == [True] * 3 + [False] * 3


def test_commands_in_the_process_of_a_caller_change_nothing(monkeypatch):
    monkeypatch.setattr(dispatch, "keep_compiled_programs", lambda keep: pytest.fail("called"))
    assert dispatch.main(["info", "--workdir", "nowhere"]) == 2
    assert dispatch.main(["sample", "--workdir", "nowhere", "--out", "x.txt"]) == 2


def test_the_process_gets_the_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {"XDG_CACHE_HOME": str(tmp_path)})
    assert keep_compiled_programs(True) is None
    assert os.environ["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path))


def test_every_command_that_compiles_has_the_option():
    assert {"train", "sample", "evaluate", "score", "sweep", "demo"} <= set(COMPILING)
    parsers = dispatch.build_parser()[1]
    assert {name for name, parser in parsers.items() if "--no-compilation-cache" in parser.options()} == set(COMPILING)


@pytest.mark.slow
def test_processes_that_start_together_share_programs(tmp_path):
    processes = [start(tmp_path) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [(out, err) for out, err in results] == [("7.0\n", "")] * 2
    entries = list(tmp_path.rglob("*-cache"))
    assert entries
    for path in entries:
        zlib.decompress(path.read_bytes())


@pytest.mark.slow
def test_a_later_process_survives_a_damaged_entry_and_replaces_it(tmp_path):
    start(tmp_path).communicate(timeout=120)
    entries = list(tmp_path.rglob("*-cache"))
    for path in entries:
        path.write_bytes(path.read_bytes()[:-10])
    # Too young to be checked: read, found damaged by JAX, and compiled again.
    assert start(tmp_path).communicate(timeout=120) == ("7.0\n", "")
    for path in entries:
        os.utime(path, (time.time() - 120,) * 2)
    for stamp in tmp_path.rglob("tidied"):
        os.utime(stamp, (0, 0))
    assert start(tmp_path).communicate(timeout=120) == ("7.0\n", "")
    for path in entries:
        zlib.decompress(path.read_bytes())


@pytest.mark.slow
def test_the_option_writes_nothing(tmp_path):
    assert start(tmp_path, "--no-compilation-cache").communicate(timeout=120) == ("7.0\n", "")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_the_benchmark_of_starting_runs(tmp_path):
    script = Path(__file__).parents[1] / "experiments" / "benchmarks" / "start_up.py"
    out = tmp_path / "figures.json"
    run = subprocess.run(
        [sys.executable, str(script), "--quick", "--json", str(out)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    lines = json.loads(out.read_text())["lines"]
    assert {(line["command"], line["programs kept"]) for line in lines} == {
        (command, state) for command in ("train", "sample") for state in ("cold", "warm")
    }
