"""A run on a file system that is really full loses nothing."""

import subprocess
import sys

import pytest
from test_run_care import (  # noqa: F401 (fixtures)
    CONFIG,
    assert_same_end,
    config_file,
    finished,
    names,
    stopped,
)

from starflow_jax.training import train


@pytest.mark.slow  # test_run_care.py raises the error itself
def test_a_disk_that_is_really_full(stopped, finished, tmp_path):  # noqa: F811 (fixtures)
    """A separate file system, just large enough for the existing files."""
    room = tmp_path / "small"
    room.mkdir()
    size = sum(path.stat().st_size for path in stopped.rglob("*")) // 1024 + 500
    config = config_file(tmp_path, CONFIG)
    script = (
        f"mount -t tmpfs -o size={size}k tmpfs {room} && cp -r {stopped} {room}/run && "
        f"head -c 1G /dev/zero > {room}/ballast; truncate -s -100K {room}/ballast; "
        f"{sys.executable} -m starflow_jax train --config {config} --workdir {room}/run --quiet; "
        f"echo code $?; ls {room}/run/checkpoints; rm {room}/ballast; "
        f"cp -r {room}/run {tmp_path}/saved"
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=120)
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip("no file system can be mounted here")
    assert "code 2" in done.stdout, done.stderr
    assert done.stderr.splitlines()[-1].startswith("starflow: ") and " space " in done.stderr.splitlines()[-1]
    assert names(tmp_path / "saved") == ["2", "4", "6", "8"]
    train(CONFIG, tmp_path / "saved", progress=False)
    assert_same_end(tmp_path / "saved", finished)
