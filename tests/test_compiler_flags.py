"""Recommended compiler flags: added to what is set, never over it; the chip of a host is known before its devices."""

from __future__ import annotations

import importlib.util
import os

import pytest

from starflow_jax.cli.commands import train as train_command
from starflow_jax.cli.dispatch import main
from starflow_jax.cli.errors import CommandError
from starflow_jax.costs.chips import CHIPS
from starflow_jax.costs.compiler_flags import (
    GPU_VARIABLE,
    VARIABLE,
    completed,
    host_chip,
    missing,
    recommended,
    sentence,
)
from starflow_jax.costs.local_chip import chip_name
from starflow_jax.planning import plan_request

ONE = "--xla_tpu_enable_sparse_core_collective_offload_all_gather"


def test_flags_are_added_to_those_that_are_set():
    assert set(completed("v6e", {}).split()) == set(recommended("v6e"))
    own = {VARIABLE: f"--xla_other=3 {ONE}=false"}
    value = completed("v6e", own)
    assert value.startswith(own[VARIABLE]) and value.count(ONE) == 1
    assert len(missing("v6e", own)) == len(recommended("v6e")) - 1
    assert missing("v6e", {VARIABLE: value}) == ()
    assert completed("v5p", own) == own[VARIABLE]


def test_sentences_say_what_is_missing():
    assert ONE in sentence("v6e", {}) and "--recommended-flags" in sentence("v6e", {})
    assert "are set" in sentence("v6e", {VARIABLE: completed("v6e", {})})
    assert sentence("v4", {}) == "compiler flags: none is recommended for v4"
    assert "pipelined_all_reduce" in sentence("h100", {VARIABLE: "--xla_other=3"})
    assert "are set" in sentence("h100", {GPU_VARIABLE: completed("h100", {GPU_VARIABLE: "--xla_other=3"})})


@pytest.mark.parametrize(("kind", "chip"), [("v6e-64", "v6e"), ("v5litepod-16", "v5e"), ("v5p-128", "v5p")])
def test_hosts_name_their_chip(kind, chip):
    assert host_chip({"TPU_ACCELERATOR_TYPE": kind}) == chip and chip in CHIPS


@pytest.mark.parametrize("environment", [{}, {"TPU_ACCELERATOR_TYPE": "v9x-8"}])
def test_other_hosts_are_refused(environment):
    with pytest.raises(ValueError, match="must begin with one of v4, v5litepod"):
        host_chip(environment)


def test_devices_name_their_chip():
    kinds = {"TPU v6 lite": "v6e", "TPU v5 lite": "v5e", "TPU v5": "v5p", "NVIDIA H100 80GB HBM3": "h100", "cpu": None}
    assert {kind: chip_name(kind) for kind in kinds} == kinds


def test_commands_print_and_refuse(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # by formulas, with or without the compiler
    plan = ["plan", "--config", "experiments/starflow_3b_t2i.py", "--topology", "h200:8", "--config.mesh.fsdp=8"]
    assert main(plan) == 0
    assert capsys.readouterr().out.rstrip().endswith("compiler flags: none is recommended for h200")
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
    train = ["train", "--config", "experiments/digits.py:tiny", "--workdir", str(tmp_path / "run")]
    assert main([*train, "--recommended-flags"]) == 2
    error = capsys.readouterr().err
    assert "--recommended-flags needs the chip" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_plans_and_trainings_set_flags_on_request(capsys, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setenv(VARIABLE, "--xla_other=3")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v6e-64")
    monkeypatch.setattr(plan_request, "plans", lambda request: [seen.append(os.environ[VARIABLE])][:0])
    plan = ["plan", "--config", "experiments/starflow_3b_t2i.py", "--topology", "v6e:2x2"]
    assert main(plan) == 0 and seen == ["--xla_other=3"]
    assert f"{ONE}=true" in capsys.readouterr().out
    with_flags = completed("v6e", os.environ)
    assert main([*plan, "--recommended-flags"]) == 0 and seen[1:] == [with_flags]
    assert capsys.readouterr().out.rstrip().endswith("compiler flags: those recommended for v6e are set")

    def stop(arguments):
        seen.append(os.environ[VARIABLE])
        raise CommandError("stopped here")

    monkeypatch.setenv(VARIABLE, "--xla_other=3")
    monkeypatch.setattr(train_command, "join", stop)
    train = ["train", "--config", "experiments/digits.py:tiny", "--workdir", str(tmp_path / "run")]
    assert main([*train, "--recommended-flags"]) == 2 and seen[2:] == [with_flags]
