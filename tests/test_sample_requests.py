"""Requests of sampling in Python: the samples of the command, and what they refuse."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from test_cli_sample_videos import home  # noqa: F401 (a fixture)

from starflow_jax.cli.dispatch import main
from starflow_jax.core.request_errors import RequestError
from starflow_jax.sampling import RunRequest, SampleRequest, SolverRequest, open_run, sample_run
from starflow_jax.sampling.sample_requests import VBenchRequest
from starflow_jax.solvers import Jacobi
from starflow_jax.training.calibrate_request import CalibrateRequest


def test_images_of_a_request_are_those_of_the_command(home, tmp_path):  # noqa: F811 (a fixture)
    run, out = home / "still", tmp_path / "x.npz"
    argv = ["--candidates", "2", "--class", "1", "--seed", "5", "--solver", "jacobi", "--block", "2"]
    assert main(["sample", "--workdir", str(run), *argv, "--out", str(out)]) == 0
    request = SampleRequest(candidates=2, label=1, seed=5, solver=SolverRequest("jacobi", {"block": 2}))
    loaded = open_run(RunRequest(workdir=run))
    result = sample_run(loaded, request)
    with np.load(out) as arrays:
        np.testing.assert_array_equal(result.images, arrays["image"])
    assert result.images.shape == (1, 4, 4, 1) and result.scores.shape == (1,)
    again = sample_run(loaded, dataclasses.replace(request, solver=Jacobi(block=2)))
    np.testing.assert_array_equal(again.images, result.images)


def test_videos_of_a_request_are_those_of_the_command(home, tmp_path):  # noqa: F811 (a fixture)
    run, out, first = home / "run", tmp_path / "x.npz", home / "first.png"
    argv = ["--caption", "a one", "--caption", "a zwei", "--image", str(first), "--frames", "3", "--guidance", "0"]
    assert main(["sample", "--workdir", str(run), *argv, "--out", str(out)]) == 0
    request = SampleRequest(captions=("a one", "a zwei"), image=first, frames=3, guidance=0.0)
    with pytest.warns(UserWarning, match="skipped caption 2 of 2"):
        result = sample_run(open_run(RunRequest(workdir=run)), request)
    with np.load(out) as arrays:
        np.testing.assert_array_equal(result.videos, arrays["video"])
    for label in (0, 3):
        with pytest.raises(RequestError, match=r"label cannot be used with the run in .*, which is on clips"):
            SampleRequest(label=label).check_kind(run, videos=True)
    with pytest.raises(RequestError, match=r"label cannot be used with the run in .*, which is on clips"):
        sample_run(open_run(RunRequest(workdir=run)), SampleRequest(label=3))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SampleRequest(keep=2), "keep requires candidates, got keep 2 alone"),
        (lambda: SampleRequest(candidates=2, keep=3), "keep must be at most candidates 2, got 3"),
        (lambda: SampleRequest(candidates=2, num=3), "num and candidates are mutually exclusive"),
        (lambda: SampleRequest(num=0), "num must be an integer >= 1, got 0"),
        (lambda: SampleRequest(captions="a one"), "captions must be a tuple of at least one caption, got 'a one'"),
        (lambda: SampleRequest(captions=("a",), label=1), "captions and label are mutually exclusive"),
        (lambda: SampleRequest(label=0.5), "label must be the index or the name of a class"),
        (lambda: SampleRequest(image=Path("x"), video=Path("y")), "image and video are mutually exclusive"),
        (lambda: SampleRequest(fps=241.0), "fps must be from 0.01 to 240, got 241"),
        (lambda: RunRequest(), "give either workdir, the folder of a run, or model"),
        (lambda: VBenchRequest(Path("p"), Path("o"), scale=0), "scale must be an integer >= 1, got 0"),
        (lambda: CalibrateRequest(target_error=1e-7), "target_error must be at least 1e-6, got 1e-07"),
    ],
)
def test_a_request_is_checked_when_it_is_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_requests_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SampleRequest().num = 3
