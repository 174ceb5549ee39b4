"""Requests: checked when they are built, by a notebook or by a command, which names its options."""

import dataclasses
from pathlib import Path

import pytest

from starflow_jax.cli import dispatch
from starflow_jax.cli.errors import CommandError
from starflow_jax.cli.options.arguments import Parser, integer
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.core.config import DataConfig, ExperimentConfig, FlowConfig, TrainConfig
from starflow_jax.core.request_errors import RequestError, require
from starflow_jax.data.experiment_file import InitRequest
from starflow_jax.demos.demo_request import DemoRequest
from starflow_jax.evaluation.likelihood.recordings import VerifyRequest
from starflow_jax.planning.plan_request import PlanRequest
from starflow_jax.sampling.model_folder import AssembleRequest
from starflow_jax.training.calibrate_request import CalibrateRequest
from starflow_jax.training.checkpoints.port_requests import ExportRequest, PortRequest
from starflow_jax.training.data_summary import DataRequest
from starflow_jax.training.encode_request import EncodeRequest
from starflow_jax.training.run_info import InfoRequest

OUT = Path("out")


@dataclasses.dataclass(frozen=True)
class Batches:
    batch_size: int = 8
    num: int = 16
    name: str = "{x}"

    def __post_init__(self):
        require(
            self.num >= self.batch_size, "{num} must be at least {batch_size} {0}, got {1}", self.batch_size, self.num
        )


def test_a_message_names_fields_in_python_and_options_on_the_command_line():
    error = RequestError("{a} must be below {b} {0:g}, got {1}", 2.0, "{c}")
    assert str(error) == "a must be below b 2, got {c}"
    assert error.text(lambda name: f"--{name}") == "--a must be below --b 2, got {c}"


def test_a_request_is_built_from_options_of_the_same_dest():
    parser = Parser()
    parser.add_argument("--batch", dest="batch_size", type=integer(1))
    parser.add_argument("--num", type=integer(1))
    assert build_request(Batches, parser.parse_args(["--num", "9"]), name="x") == Batches(8, 9, "x")
    with pytest.raises(RequestError, match=r"num must be at least batch_size 8, got 3") as caught:
        build_request(Batches, parser.parse_args(["--num", "3"]))
    assert caught.value.text(parser.flag) == "--num must be at least --batch 8, got 3"


def test_a_value_error_of_a_request_is_no_traceback():
    arguments = Parser().parse_args([])
    with pytest.raises(CommandError, match="seconds must be a number of magnitude <= 1e"):
        build_request(DataRequest, arguments, config=None, seconds=1e30)


def test_a_command_answers_a_request_that_is_not_valid_with_exit_code_2(monkeypatch, capsys):
    def run(arguments):
        return Batches(num=1)

    monkeypatch.setattr(dispatch.COMMANDS["version"], "run", run)
    assert dispatch.main(["version"]) == 2
    assert capsys.readouterr().err == "starflow: num must be at least batch_size 8, got 1\n"


FLOW = FlowConfig(channels=1, image_size=8, patch_size=2, width=16, num_blocks=2, layers_per_block=1, head_dim=8)
CONFIG = ExperimentConfig("tiny", FLOW, DataConfig(), TrainConfig(steps=1, batch_size=1, lr=1e-3))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: EncodeRequest(CONFIG, OUT, split="all"), "split must be one of 'train', 'test', got 'all'"),
        (lambda: EncodeRequest(CONFIG, OUT, tile=4), "tile must be an integer >= 8, got 4"),
        (lambda: EncodeRequest(CONFIG, OUT, fit_patch_pca=(0, 4)), "fit_patch_pca must be an integer >= 1, got 0"),
        (
            lambda: EncodeRequest(CONFIG, OUT, autoencoder=OUT, fit_patch_pca=(4, 4)),
            "autoencoder and fit_patch_pca are mutually exclusive",
        ),
        (lambda: DataRequest(CONFIG, seconds=-1.0), "seconds must be a finite number >= 0, got -1"),
        (lambda: PlanRequest(CONFIG, "v9:4"), "topology must begin with a known chip"),
        (lambda: PlanRequest(CONFIG, "h100:8", size=(9, 8)), "size must be multiples of flow.patch_size=2, got 9x8"),
        (lambda: PlanRequest(CONFIG, "h100:8", text=3), "text must be 0 for a flow that reads no text, got 3"),
        (lambda: PlanRequest(CONFIG, "h100:8", frames=3), "frames must be 0 for a flow of still images, got 3"),
        (lambda: ExportRequest(OUT, Path("x.npz")), r"to_torch must end in .*, got 'x.npz'"),
        (lambda: VerifyRequest(OUT, OUT, OUT), "verify takes the weights of source or of workdir, got both"),
        (lambda: AssembleRequest(OUT, OUT, OUT, OUT, place="move"), "place must be one of 'link', 'copy', got 'move'"),
        (lambda: InitRequest(OUT, Path("x.txt")), "out must end in .py, got x.txt"),
        (lambda: DemoRequest(seed=-1), "seed must be an integer >= 0, got -1"),
        (lambda: CalibrateRequest(samples=0), "samples must be an integer >= 1, got 0"),
    ],
)
def test_a_request_names_the_field_that_is_not_valid(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


@pytest.mark.parametrize(
    "request_of_a_command",
    [EncodeRequest(CONFIG, OUT), DataRequest(CONFIG), PortRequest(OUT, CONFIG, OUT), InfoRequest(OUT), DemoRequest()],
)
def test_a_request_is_never_changed(request_of_a_command):
    for field in dataclasses.fields(request_of_a_command):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(request_of_a_command, field.name, None)


def test_the_data_sizes_of_a_plan_are_those_of_the_request():
    request = PlanRequest(CONFIG, "h100:8", program="all", samples=5)
    assert [(name, work.batch, work.rows, work.columns, work.frames) for name, work in request.programs] == [
        ("train", 1, 4, 4, None),
        ("inverse", 5, 4, 4, None),
    ]


def test_commands_are_found_and_in_order():
    assert (
        list(dispatch.COMMANDS)[:4] == ["train", "init", "info", "sample"] and list(dispatch.COMMANDS)[-1] == "version"
    )
