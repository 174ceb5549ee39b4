"""`starflow config`: every field with its value, its origin and its description."""

import dataclasses
import json
from pathlib import Path

import pytest

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config.field_descriptions import field_descriptions
from starflow_jax.reports.resolved_configuration import resolved_fields

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
DIGITS = str(EXPERIMENTS / "digits.py")


@dataclasses.dataclass
class Documented:
    """An example.

    Attributes:
      first, second: of both, with
        a second line; third: of one.
      fourth: of a kind: not a field. fifth: after a full stop.
    """

    first: int = 0
    second: int = 0
    third: int = 0
    fourth: int = 0
    fifth: int = 0


def test_descriptions_are_those_of_the_docstring():
    assert field_descriptions(Documented) == {
        "first": "of both, with a second line",
        "second": "of both, with a second line",
        "third": "of one.",
        "fourth": "of a kind: not a field.",
        "fifth": "after a full stop.",
    }


def test_values_have_an_origin(tmp_path):
    found = {field.name: field for field in resolved_fields(DIGITS, ["--config.train.lr=0.5"])}
    assert found["train.lr"].value == "0.5" and found["train.lr"].origin == "override"
    assert found["flow.width"].origin == "file" and found["flow.width"].default == "(none: must be set)"
    assert found["mesh.fsdp"].origin == "default" and found["mesh.fsdp"].value == found["mesh.fsdp"].default
    assert found["train.lr"].description.startswith("peak learning rate")


def test_what_the_file_computes_is_said_to_be_computed(tmp_path):
    path = tmp_path / "experiment.py"
    text = Path(DIGITS).read_text() + "\n\ndef complete(values):\n    return values | {'seed': values['seed'] + 1}\n"
    path.write_text(text)
    found = {field.name: field for field in resolved_fields(str(path), ["seed=4"])}
    assert (found["seed"].value, found["seed"].origin) == ("5", "complete")
    assert found["flow.width"].origin == "file" and found["train.keep"].origin == "default"


@pytest.mark.parametrize("name", ["tiny_vae.py", "sweeps/digits.py"])
def test_files_of_every_kind_are_explained(name):
    assert any(field.origin == "file" for field in resolved_fields(str(EXPERIMENTS / name)))


def test_the_command(tmp_path, capsys):
    out = tmp_path / "config.json"
    assert main(["config", DIGITS, "--set-only", "--config.seed=3", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "seed = 3    # from the command line; default 0" in printed and "mesh.fsdp" not in printed
    fields = json.loads(out.read_text())["fields"]
    assert {"name": "seed", "value": "3", "default": "0", "origin": "override"}.items() <= next(
        field for field in fields if field["name"] == "seed"
    ).items()


def test_unknown_names_are_refused(capsys):
    assert main(["config", DIGITS, "--config.train.lrr=1"]) == 2
    assert "did you mean lr" in capsys.readouterr().err
