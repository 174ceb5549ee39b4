"""The benchmark of clips with quantised weights."""

import json

import pytest

from starflow_jax.cli.dispatch import main
from starflow_jax.experiments.benchmarks import quantised_clips


@pytest.mark.slow
def test_clips_are_compared_with_their_captions_and_from_the_same_noise(tmp_path, capsys):
    pytest.importorskip("qwix")
    run, out = str(tmp_path / "run"), tmp_path / "figures.json"
    config = ["train", "--config", "experiments/moving_digits.py:tiny", "--config.train.steps=20"]
    assert main([*config, "--workdir", run, "--quiet"]) == 0
    assert quantised_clips.main(["--workdir", run, "--quick", "--json", str(out)]) == 0
    assert "frames with the digit" in capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert [row["clips"] for row in figures["agreement"]] == [2] * 4
    errors = {row["weights"]: row["error"] for row in figures["moved"]}
    assert 1e-3 < errors["bfloat16"] < errors["int8"] < errors["int4"] < 0.2
    assert errors["noise of 0.001"] == pytest.approx(1e-3, rel=0.1)
