"""Checkpoints as training scripts write them: the weights are read, and what is beside them is listed."""

import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import training_checkpoints
from safetensors.numpy import save_file
from test_port import IMAGE, assert_holds, port, save, tensors_of

from starflow_jax.core.config import load_config
from starflow_jax.flows.parameters import abstract
from starflow_jax.models.pretrained_folder import open_pretrained
from starflow_jax.porting import from_torch, open_tensors
from starflow_jax.tensor_formats.model_states import choose, states_of, unread_of
from starflow_jax.tensor_formats.tensor_writing import write_tensors
from starflow_jax.tensor_formats.tensors import TensorFileError, counted

FILES = Path(__file__).parent / "goldens" / "torch_files"
LISTED = {
    "args": "argparse.Namespace",
    "extra": "types.SimpleNamespace",
    "phase": "training_checkpoints.Phase",
    "history.loss.1": "numpy._core.multiarray.scalar",
    "best": "numpy._core.multiarray.scalar",
    "step": "numpy._core.multiarray.scalar",
    "dtype": "numpy.dtype",
    "when": "datetime.datetime",
    "schedule": "functools.partial",
}


@pytest.fixture(params=[False, True], ids=["kept", "written now"])
def file_of(request, tmp_path):
    """The path of a checkpoint: as it is in the repository, and as the installed PyTorch writes it."""

    def path(name, library="torch"):
        if not request.param:
            return FILES / name
        torch = pytest.importorskip("torch")
        pytest.importorskip(library)
        write, options = training_checkpoints.WRITERS[name]
        write(tmp_path / name, torch, **options)
        return tmp_path / name

    return path


@pytest.mark.parametrize("name", ["training.pth", "training_protocol5.pth", "training_legacy.pt"])
def test_what_is_beside_the_weights_is_listed_and_the_weights_are_read(file_of, name):
    found = open_tensors(file_of(name))
    weight = "blocks.0.proj_in.weight"
    assert {f"{state}.{weight}" for state in ("model", "ema", "double")} <= set(found)
    np.testing.assert_array_equal(found[f"model.{weight}"].read(), np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(found[f"ema.{weight}"].read(), 2 * np.arange(6).reshape(2, 3))
    assert found[f"double.{weight}"].dtype == np.float64
    assert found["model.n_averaged"].read() == 7
    listed = {one.path: one.name for one in found.left_aside}
    assert LISTED.items() <= listed.items()
    plain = {"seen", "frozen", "queue", "counter", "generator", "python", "kinds", "bounds"}
    assert not plain & {path.split(".")[0] for path in listed}  # sets, numbers, long integers, bytes, tuples as keys


def test_tensors_of_other_kinds_are_left_aside_by_their_kind(file_of):
    found = open_tensors(file_of("kinds.pth"))
    assert {"plain", "complex", "complex128", "float8", "parameter"} <= set(found)
    np.testing.assert_array_equal(found["complex128"].read(), np.array([1 + 2j]))
    np.testing.assert_array_equal(found["float8"].read().astype(np.float32), [1, 2])
    kinds = {one.path: one.name.partition(",")[0] for one in found.left_aside}
    assert kinds == {
        "sparse": "a sparse tensor",
        "csr": "a sparse tensor",
        "quantised": "a quantised tensor",
        "meta": "a tensor without values",
        "nested": "a nested tensor",
        "conjugated": "a tensor that is conjugated or negated on access",
    }


def test_a_checkpoint_of_lightning_with_hyperparameters_of_omegaconf_is_read(file_of):
    found = open_tensors(file_of("lightning.ckpt", "omegaconf"))
    state, tensors = choose(states_of(found), None, found.left_aside)
    assert (state, set(tensors)) == ("state_dict.model", {"blocks.0.weight", "blocks.0.bias"})
    assert "hyper_parameters (omegaconf.dictconfig.DictConfig)" in counted(found.left_aside)


def test_of_several_states_the_choices_are_named_and_a_part_of_a_key_is_enough():
    found = open_tensors(FILES / "training.pth")
    states = states_of(found)
    assert set(states) == {"model", "ema", "double"}
    with pytest.raises(ValueError, match="several states, 'double', 'ema', 'model'; choose one with --weights"):
        choose(states, None)
    with pytest.raises(ValueError, match="--weights must be one of 'double', 'ema', 'model', got 'best'"):
        choose(states, "best")
    nested = {"state_dict.ema_model": states["ema"], "state_dict.model": states["model"]}
    assert choose(nested, "ema_model")[0] == "state_dict.ema_model"
    with pytest.raises(ValueError, match="must be one of"):
        choose(nested, "state_dict")  # which is a part of both


@pytest.fixture
def placed(tmp_path):
    """A function that puts an object of another class at names of a file of tensors."""

    class Spec:
        def __init__(self, name, value):
            self.name, self.torch_shape, self.dtype, self.value = name, value.shape, value.dtype, value

    def write(tensors, *names):
        """Writes tensors; the functions that rebuild those of `names` get another name."""
        specs = [Spec(name, value) for name, value in tensors.items()]
        write_tensors(tmp_path / "whole.pth", specs, [spec.value for spec in specs])
        with zipfile.ZipFile(tmp_path / "whole.pth") as old, zipfile.ZipFile(tmp_path / "a.pth", "w") as new:
            for entry in old.namelist():
                data = old.read(entry)
                if entry.endswith("data.pkl"):
                    for name in names:
                        before, after = data.split(name.encode() + b"ctorch._utils\n_rebuild_tensor_v2\n", 1)
                        data = before + name.encode() + b"cmy_trainer.layers\nLowRank\n" + after
                new.writestr(entry, data)
        return tmp_path / "a.pth"

    return write


def test_a_wanted_tensor_that_is_an_unknown_object_is_named_with_its_class(placed, tmp_path, capsys):
    tensors = tensors_of(IMAGE)
    name = "blocks.1.proj_in.weight"
    path = placed({f"model.{key}": value for key, value in tensors.items()}, f"model.{name}")
    opened = open_tensors(path)
    assert f"model.{name}" not in opened and len(opened) == len(tensors) - 1
    assert [str(one) for one in unread_of(opened.left_aside, "model")] == [f"{name} (my_trainer.layers.LowRank)"]
    assert port(path, IMAGE, tmp_path / "run") == 2
    printed = capsys.readouterr().err
    assert f"not read: {name} is an object of the file that is not a readable tensor" in printed
    assert "my_trainer.layers.LowRank" in printed and "1 not readable" in printed
    assert not (tmp_path / "run").exists()


def test_an_unknown_object_beside_the_weights_is_one_line(placed, tmp_path, capsys):
    tensors = tensors_of(IMAGE)
    path = placed({**tensors, "trainer": np.zeros(1, np.float32)}, "trainer")
    assert port(path, IMAGE, tmp_path / "run", "--json", tmp_path / "report.json") == 0
    assert "left out 1 object that is not a tensor: trainer (my_trainer.layers.LowRank)" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["objects_left_aside"] == [{"path": "trainer", "name": "my_trainer.layers.LowRank"}]
    assert_holds(tmp_path / "run", tensors)


def test_an_averaged_model_of_float64_is_narrowed_in_one_line(tmp_path, capsys):
    tensors = tensors_of(IMAGE)
    wide = {f"module.{name}": value.astype(np.float64) for name, value in tensors.items()}
    path = save(tmp_path / "a.safetensors", wide | {"n_averaged": np.array(5)})
    assert port(path, IMAGE, tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert f"narrowed {len(tensors)} tensors of float64 to float32, first blocks.0" in printed
    assert "ignored 1 buffers that nothing reads: n_averaged" in printed
    assert_holds(tmp_path / "run", tensors)
    wide["module.blocks.0.proj_in.bias"][0] = 1e300  # infinite in float32
    assert port(save(tmp_path / "a.safetensors", wide), IMAGE, tmp_path / "other") == 2
    assert "blocks.0.proj_in.bias contains 1 of" in capsys.readouterr().err


def test_tensors_of_a_file_become_parameters_without_being_read_first(tmp_path):
    tensors = tensors_of(IMAGE)
    expected = abstract(load_config(IMAGE).flow)[1]
    lazily = from_torch(open_tensors(save(tmp_path / "a.safetensors", tensors)), expected)
    jax.tree.map(np.testing.assert_array_equal, lazily, from_torch(tensors, expected))


def shards(folder, names, values):
    folder.mkdir()
    for name, tensors in zip(names, values, strict=True):
        save_file(tensors, folder / name)
    return folder


def test_shards_without_an_index_are_joined(tmp_path):
    one, two = {"a": np.arange(3.0)}, {"b": np.ones((2, 2), np.float32)}
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    folder = shards(tmp_path / "whole", names, [one, two])
    found = open_tensors(folder)
    assert {name: tensor.read().tolist() for name, tensor in found.items()} == {"a": [0, 1, 2], "b": [[1, 1], [1, 1]]}
    (folder / "config.json").write_text("{}")
    np.testing.assert_array_equal(open_pretrained(folder).tensor("b", (2, 2)), two["b"])
    for number, (files, tensors, sentence) in enumerate(
        [
            (names[:1], [one], "contains 1 of the 2 shards of model.safetensors; number 2 is missing"),
            (names, [one, one], "contains the tensor 'a' in two shards, again in model-00002"),
            ([names[0], "other-00002-of-00002.safetensors"], [one, two], "several files of tensors, name one"),
            ([names[0], "model.safetensors"], [one, two], "several files of tensors, name one"),
        ]
    ):
        with pytest.raises(TensorFileError, match=sentence):
            open_tensors(shards(tmp_path / str(number), files, tensors))
