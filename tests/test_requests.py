"""Requests: checked when they are built, by a notebook or by a command, which names its options."""

import dataclasses

import pytest

from starflow_jax.cli import dispatch
from starflow_jax.cli.options.arguments import Parser, integer
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.core.request_errors import RequestError, require


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


def test_a_command_answers_a_request_that_is_not_valid_with_exit_code_2(monkeypatch, capsys):
    def run(arguments):
        return Batches(num=1)

    monkeypatch.setattr(dispatch.COMMANDS["version"], "run", run)
    assert dispatch.main(["version"]) == 2
    assert capsys.readouterr().err == "starflow: num must be at least batch_size 8, got 1\n"


def test_commands_are_found_and_in_order():
    assert (
        list(dispatch.COMMANDS)[:4] == ["train", "init", "info", "sample"] and list(dispatch.COMMANDS)[-1] == "version"
    )
