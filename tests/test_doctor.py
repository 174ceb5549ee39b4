"""`starflow doctor`: what is wrong with an installation or a machine is found and said."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from starflow_jax.cli.dispatch import main
from starflow_jax.diagnosis import checks, probe
from starflow_jax.diagnosis.checks import Check, check_devices, check_folder, check_packages


def test_packages_are_compared_with_what_is_required():
    assert check_packages().status == "ok"
    wrong = check_packages(["numpy>=99", "no-such-package>=1", "also-missing; extra == 'x'", "jax>=0.1"])
    assert wrong.status == "failed"
    assert "numpy must be >=99, got " in wrong.detail and "no-such-package is not installed" in wrong.detail
    assert "also-missing" not in wrong.detail and "jax" not in wrong.detail


def test_folders_are_written_to_and_measured(tmp_path, monkeypatch):
    new = tmp_path / "a" / "b"
    assert check_folder("run folder", new).status == "ok" and not new.exists()
    (tmp_path / "file").touch()
    assert check_folder("run folder", tmp_path / "file" / "below").detail == f"{tmp_path / 'file'} is a file"
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 2**40, 2**20))
    assert check_folder("run folder", tmp_path).status == "warning"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_folders_without_permission_are_failures(tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot be written: Permission denied" in check_folder("run folder", tmp_path).detail


def stand_in(tmp_path, monkeypatch, program):
    """Runs a Python program in the place of the probe."""
    (tmp_path / "program.py").write_text(program)
    run = subprocess.run
    monkeypatch.setattr(
        checks.subprocess,
        "run",
        lambda command, **options: run([sys.executable, str(tmp_path / "program.py")], **options),
    )


def test_a_driver_that_hangs_is_a_failure_after_what_it_said(tmp_path, monkeypatch):
    said = json.dumps({"name": "devices", "status": "ok", "detail": "one"})
    stand_in(tmp_path, monkeypatch, f"import time\nprint({said!r}, flush=True)\nprint('noise')\ntime.sleep(60)")
    found = list(check_devices(2))
    assert found[0] == Check("devices", "ok", "one")
    assert found[1].status == "failed" and "no answer after 2 s" in found[1].detail


def test_a_probe_that_crashes_is_a_failure(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "raise RuntimeError('no driver')")
    (found,) = check_devices(60)
    assert found.detail == "the process ended with code 1: RuntimeError: no driver"


def test_kernels_are_compared_with_the_reference(monkeypatch, capsys):
    assert probe.main() == 0
    found = {one["name"]: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    assert [one["status"] for one in found.values()] == ["ok"] * 4
    assert "interpreted" in found["attention kernel"]["detail"]

    def refused(*arrays, implementation, **options):
        raise ValueError("not lowered")

    with monkeypatch.context() as patch:  # what a kernel raises is a failure, unless it says that it is not supported
        patch.setattr(probe, "attention", refused)
        probe.main()
    found = {one["name"]: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    assert found["attention kernel"]["status"] == "failed" and "not lowered" in found["attention kernel"]["detail"]
    monkeypatch.setattr(probe, "KERNELS", {"wrong kernel": lambda *_: 0.5, "broken kernel": lambda *_: 1 // 0})
    probe.main()
    found = {one["name"]: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    assert found["wrong kernel"]["status"] == found["broken kernel"]["status"] == "failed"
    assert "ZeroDivisionError" in found["broken kernel"]["detail"]


def test_the_command_ends_with_3_where_a_check_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checks, "check_devices", lambda seconds: iter([Check("devices", "failed", "none")]))
    out = tmp_path / "doctor.json"
    assert main(["doctor", "--workdir", str(tmp_path), "--json", str(out)]) == 3
    printed = capsys.readouterr().out
    assert "failed   devices: none" in printed and "6 checks, 1 failed, 0 with a warning" in printed
    assert json.loads(out.read_text())["failed"] == 1
