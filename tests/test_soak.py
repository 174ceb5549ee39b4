"""The soak test: its checks find what is wrong, its proxy drops connections, and a disturbed run loses nothing."""

import importlib.util
import json
import socket
import threading

import pytest

from starflow_jax.experiments import soak, soak_store


def test_a_batch_that_differs_is_found(tmp_path):
    (tmp_path / "seen-0.txt").write_text("0 11\n1 12\n0 11\n1 13\n2 1")
    assert soak.batches(tmp_path / "seen-0.txt") == {0: {"11"}, 1: {"12", "13"}, 2: {"1"}}
    (tmp_path / "seen-1.txt").write_text("0 11\n\n7")
    assert soak.batches(tmp_path / "seen-1.txt") == {0: {"11"}}


def test_files_of_attempts_and_of_damaged_checkpoints_are_expected(tmp_path):
    for name in (
        "config.json",
        "events/a.b",
        "checkpoints/10/params/d/x",
        "checkpoints/10/digests/metadata",
        "checkpoints/20.damaged/params/x",
        "checkpoints/30.orbax-checkpoint-tmp/params/x",
        ".starflow-lease.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert soak.files_of(tmp_path) == {
        "config.json",
        "checkpoints/10/params",
        "checkpoints/10/digests",
        "checkpoints/30.orbax-checkpoint-tmp/params",
    }


def echo(listener):
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client:
            while data := client.recv(65536):
                client.sendall(data)


def exchanged(port, data):
    """What comes back for `data`, as far as it comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        received = b""
        try:
            client.sendall(data)
            while len(received) < len(data) and (part := client.recv(65536)):
                received += part
        except OSError:
            pass
        return received


def test_a_proxy_passes_on_and_drops():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=echo, args=(listener,), daemon=True).start()
        with soak_store.FlakyProxy(listener.getsockname()[1], 0.0, 0) as proxy:
            assert exchanged(proxy.port, b"x" * 50_000) == b"x" * 50_000
            proxy.refuse(0.3)
            assert exchanged(proxy.port, b"x") == b"" and proxy.dropped == 1
            proxy.calm()
            assert exchanged(proxy.port, b"y") == b"y"
        with soak_store.FlakyProxy(listener.getsockname()[1], 1.0, 0) as proxy:
            assert len(exchanged(proxy.port, b"x" * 500_000)) < 500_000


@pytest.mark.slow
@pytest.mark.parametrize("store", ["folder", "s3"])
def test_a_disturbed_training_loses_nothing(store, tmp_path, capsys):
    """Ten minutes of faults for each store."""
    if store == "s3" and any(importlib.util.find_spec(name) is None for name in soak_store.NEEDED):
        pytest.skip("moto, flask and s3fs are not installed: pip install -e '.[test,test-stores]' installs them")
    out = tmp_path / "soak.json"
    assert soak.main(["--minutes", "10", "--store", store, "--json", str(out)]) == 0, capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert not figures["wrong"] and figures["attempts"] > 3
