"""Plans of quantised flows: what they store and gather, and which are refused."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import load_config
from starflow_jax.planning.plan_report import report
from starflow_jax.planning.plan_request import PlanRequest, plans

EXPERIMENT = "experiments/tarflow_afhq256.py:tiny"


def test_quantised_weights_take_what_they_are_stored_in(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    def planned(quantise=None, **options):
        config = load_config("experiments/starflow_3b_t2i.py", ["mesh.fsdp=1", "mesh.data=1"])
        request = PlanRequest(config, "rtx4080:1", program="inverse", quantise=quantise, **options)
        (plan,) = plans(request)
        return plan

    whole, stored, half, few = planned(), planned("int8"), planned("int4"), planned("int8", chunk=16)
    assert whole.parameters == stored.parameters and not whole.memory.fits and stored.memory.fits
    weights = [dict(plan.parts)["parameters"] for plan in (whole, stored, half)]
    assert weights[0] == pytest.approx(4 * whole.parameters, rel=1e-6)
    assert weights[0] / weights[1] > 3.9 and weights[0] / weights[2] > 6
    assert "stored as int8" in report(stored) and "keys and values, per device" in report(stored)
    assert few.memory.temporaries < stored.memory.temporaries and few.chunks == 64
    for options in ({"quantise": "int8"}, {"chunk": 16}):
        with pytest.raises(ValueError, match="requires program inverse, got program train"):
            PlanRequest(load_config(EXPERIMENT), "rtx4080:1", **options)


def test_plans_of_quantised_flows_gather_the_stored_bytes_over_fsdp(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    def gathered(*overrides, **options):
        config = load_config("experiments/starflow_3b_t2i.py", ["mesh.fsdp=8", "mesh.data=1", *overrides])
        (plan,) = plans(PlanRequest(config, "h100:8", program="inverse", **options))
        return sum(move.sent for move in plan.transfers if move.axes == ("fsdp",))

    stored = gathered("sample.parameters=stored")  # in bfloat16
    assert stored > 0 and gathered() == 0
    assert gathered(quantise="int8") == stored / 2 and gathered(quantise="int4") == stored / 4


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def test_plans_that_do_not_suit_quantised_weights_are_refused(capsys, monkeypatch):
    plan = ["plan", "--config", EXPERIMENT, "--topology"]
    said = refused(capsys, *plan, "rtx4080:1", "--config.flow.quantise=int8")
    assert "--program must be inverse for a flow with flow.quantise 'int8', which is not trained, got train" in said
    rounded = ["--program", "inverse", "--quantise", "int8-activations"]
    said = refused(capsys, *plan, "h100:8", *rounded)
    assert "int8-activations runs on one device, got a mesh of 8 devices: use --quantise int8, where" in said
    monkeypatch.setitem(sys.modules, "qwix", None)
    assert "pip install 'starflow-jax[quantise]'" in refused(capsys, *plan, "v5e:1x1", *rounded)
