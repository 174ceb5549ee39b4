"""`starflow sample --stream`: the same file, and the time at which the first frame was final."""

import json

import numpy as np
import pytest
from test_cli_sample_videos import home  # noqa: F401 (a fixture)

from starflow_jax.cli.dispatch import main


@pytest.mark.slow  # test_model_folder.py streams by the command
def test_stream_writes_what_is_written_without_it(home, capsys):  # noqa: F811 (a fixture)
    files = {}
    for name, flags in {"whole": [], "streamed": ["--stream"]}.items():
        out, figures = home / f"{name}.npz", home / f"{name}.json"
        arguments = ["--caption", "a one left", "--image", home / "first.png", "--seed", "3", "--solver", "sequential"]
        arguments += ["--out", out, "--json", figures, *flags]
        assert main(["sample", "--workdir", str(home / "run"), *map(str, arguments)]) == 0
        files[name] = np.load(out), json.loads(figures.read_text())
    (whole, batch), (streamed, report) = files["whole"], files["streamed"]
    assert sorted(whole) == sorted(streamed)
    np.testing.assert_allclose(streamed["x"], whole["x"], atol=1e-4)
    assert np.abs(streamed["video"].astype(int) - whole["video"]).max() <= 1
    assert batch["first_frame_seconds"] is None
    assert 0 < report["first_frame_seconds"][0] <= report["seconds"]
    assert "streamed: the first new frame was final after" in capsys.readouterr().out


def test_stream_belongs_to_videos(home, capsys):  # noqa: F811 (a fixture)
    arguments = ["--workdir", str(home / "still"), "--out", str(home / "still.png"), "--stream"]
    assert main(["sample", *arguments]) == 2
    assert "--stream cannot be used with the run" in capsys.readouterr().err
