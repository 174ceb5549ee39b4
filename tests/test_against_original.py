"""The comparison with the original: two processes take turns, wrong outputs are refused, and the floors are counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "experiments" / "benchmarks"
SCRIPT = BENCHMARKS / "against_original.py"
sys.path.append(str(BENCHMARKS))

from against_original import Refused, compare, main, relative_errors, table  # noqa: E402
from bare_inverse import Chunk, evaluations_of, inverse_operands, inverse_products, work  # noqa: E402
from bare_products import block_shapes, denoiser_shape, forward_products, parallel_operands, random_weights  # noqa: E402
from counting import dense_products  # noqa: E402
from flow_operations import TINY  # noqa: E402
from original_adapter import Names, find_class  # noqa: E402
from turns import SideError, SideProcess, take_turns  # noqa: E402

from starflow_jax.porting import flow_config  # noqa: E402

# A side without a framework, whose results are `scale` times those of the other one.
SIDE = """
import os
import numpy as np
from side_process import Side


def prepare(request):
    print("what a side prints is no answer")
    os.write(1, b"nor is this")
    scale = request["scale"]
    operations = {"double": lambda: 2 * scale * np.arange(3.0), "fail": lambda: 1 / 0, "leave": lambda: os._exit(3)}
    arrays = lambda name, result: {"x": result, "parts/a": result[:1], "parts/b": result}
    return Side(operations, arrays, versions={"side": "1"})
"""

# An original without PyTorch: the module `torch` beside it stands in for what the adapter reads of it, and the model
# computes with this project. It scales its data by `off`.
MODEL = """
import functools
import jax
import numpy as np
import torch
from starflow_jax.flows import Guidance, objective
from starflow_jax.flows.parameters import abstract, merge
from starflow_jax.porting import flow_config, from_torch, to_torch
from starflow_jax.solvers import Jacobi, Sequential, inverse


class Loss(np.ndarray):
    pass


class Parameter:
    grad = None


class StandIn:
    def __init__(self, in_channels, img_size, patch_size, channels, num_blocks, layers_per_block, **options):
        self.config = flow_config(dict(locals()["options"], in_channels=in_channels, img_size=img_size,
            patch_size=patch_size, channels=channels, num_blocks=num_blocks, layers_per_block=layers_per_block))
        self.definition, self.expected = abstract(self.config)

    def eval(self):
        pass

    def load_state_dict(self, tensors, strict):
        self.params = jax.tree.map(jax.numpy.asarray, from_torch(tensors, self.expected))
        self.names = {name: Parameter() for name in tensors}
        return ["attn_mask"], []

    def named_parameters(self):
        return self.names.items()

    def zero_grad(self):
        pass

    def __call__(self, x, text):
        def run(params):
            return merge(self.definition, params).forward(last(x), np.asarray(text))

        out = jax.jit(run)(self.params)
        z = torch.Tensor(first(out.z))

        def backward():
            gradients = jax.jit(jax.grad(lambda p: objective(run(p)).loss))(self.params)
            for name, value in to_torch(gradients).items():
                self.names[name].grad = torch.Tensor(value)

        torch.Tensor.backward = lambda loss: backward()
        return z, [], [torch.Tensor(np.asarray(d)) for d in out.logdets]

    def learnable_self_denoiser(self, x, text):
        run = jax.jit(lambda p: merge(self.definition, p).denoiser(last(x), np.asarray(text)))
        return torch.Tensor(first(run(self.params)))

    def reverse(self, z, text, guidance=0, jacobi=0, jacobi_th=0, jacobi_block_size=0, jacobi_max_iter=0):
        solver = Sequential()
        if jacobi:
            solver = Jacobi(block=jacobi_block_size, tolerance=jacobi_th, max_iterations=jacobi_max_iter)
        text, rows = np.asarray(text), len(z)
        guide = Guidance(guidance, text[rows:], deep_only=True) if guidance else None
        run = jax.jit(lambda p: inverse(merge(self.definition, p), last(z), text[:rows], solver=solver, guidance=guide))
        return torch.Tensor(OFF * first(run(self.params).x))


def last(x):
    return np.moveaxis(np.asarray(x), -3, -1)


def first(x):
    return np.moveaxis(np.asarray(x), -1, -3)
"""
TORCH = """
import contextlib
import numpy as np

__version__ = "a stand-in"
no_grad = contextlib.nullcontext


class Tensor(np.ndarray):
    def __new__(cls, value):
        return np.asarray(value).view(cls)

    def detach(self):
        return np.asarray(self)


def from_numpy(array):
    return Tensor(array)


def cat(parts):
    return Tensor(np.concatenate(parts))


def set_num_threads(threads):
    pass
"""


def stand_in(folder, off=1.0):
    folder.mkdir()
    (folder / "torch.py").write_text(TORCH)
    (folder / "model_file.py").write_text(f"OFF = {off}\n{MODEL}")
    (folder / "train.py").write_text("raise SystemExit('this is not imported')")
    return folder


def run(*options):
    command = [sys.executable, str(SCRIPT), "--quick", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture
def sides(tmp_path, monkeypatch):
    (tmp_path / "fake_side.py").write_text(SIDE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with SideProcess("ours", "fake_side", 1) as ours, SideProcess("theirs", "fake_side", 1) as theirs:
        yield ours, theirs


def test_processes_take_turns_and_answer_in_sentences(sides):
    ours, theirs = sides
    with pytest.raises(SideError, match="ours: ValueError: the side is not prepared"):
        ours.ask("time", operation="double")
    assert all(one.ask("prepare", scale=1.0)["versions"] == {"side": "1"} for one in sides)
    with pytest.raises(SideError, match="operation must be one of double, fail, leave, got 'triple'"):
        ours.ask("time", operation="triple")
    programs = {"x": [("a", ours, "double"), ("b", theirs, "double")]}
    done = []
    times = take_turns(programs, rounds=3, pause=0, cores=[0], report=done.append)
    assert done == [0, 1, 2, 3]
    for one in times["x"].values():
        summary = one.summary()
        assert len(summary["seconds"]) == 3 and 0 < summary["minimum"] <= summary["median"]
    with pytest.raises(SideError, match="theirs: ZeroDivisionError"):
        take_turns({"x": [("b", theirs, "fail")]}, rounds=1, pause=0, cores=[])
    with pytest.raises(SideError, match="the process ended with status 3"):
        theirs.ask("time", operation="leave")


def test_outputs_that_differ_are_refused_by_name(sides, tmp_path):
    ours, theirs = sides
    ours.ask("prepare", scale=1.0)

    def compared(scale, *names):
        theirs.ask("prepare", scale=scale)
        ours.ask("output", operation="double", file=str(tmp_path / "ours.npz"))
        return compare(theirs, {name: tmp_path / "ours.npz" for name in names}, 1e-4)

    assert 0 < compared(1 + 1e-5, "double")["double"] < 2e-5
    assert not list(tmp_path.glob("*.npz"))
    with pytest.raises(Refused, match=r"x of double differs by 9.9e-03; relative errors may be at most 0.0001"):
        compared(1.01, "double")
    with pytest.raises(Refused, match="parts of double differs"):
        compared(float("nan"), "double")
    assert "ZeroDivisionError" in compared(1.0, "fail")["fail"]  # left out of the comparison, not refused


def test_arrays_of_one_side_alone_or_of_other_shapes_differ(tmp_path):
    a, b = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez(a, x=np.ones(2), y=np.ones(3), **{"g/1": np.zeros(2), "g/2": np.ones(2)})
    np.savez(b, x=np.ones(3), z=np.ones(3), **{"g/1": np.zeros(2) + 1e-3, "g/2": np.ones(2)})
    errors = relative_errors(a, b)
    assert errors["x"] == errors["y"] == errors["z"] == float("inf") and errors["g"] == pytest.approx(1e-3, rel=1e-3)


def test_the_class_is_found_by_its_constructor_and_nothing_is_executed(tmp_path):
    folder = stand_in(tmp_path / "one")
    (folder / "broken.py").write_text("def (")
    (folder / "folder.py").mkdir()
    assert find_class(folder, Names()) == ("model_file", "StandIn")
    (folder / "inner").mkdir()
    (folder / "inner" / "copy.py").write_text(MODEL)
    with pytest.raises(ValueError, match=r"module inner.copy, class StandIn; module model_file, class StandIn"):
        find_class(folder, Names())
    assert find_class(folder, Names.parse({"module": "inner.copy", "z": "2"}))[0] == "inner.copy"
    for given, sentence in (
        ({"magic": "1"}, "must be one of module, cls"),
        ({"logdets": "last"}, "logdets must be an integer, got 'last'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Names.parse(given)


def test_bad_options_are_sentences(tmp_path, capsys):
    for options, sentence in (
        (("--original", tmp_path / "absent"), "--original must be a folder"),
        (("--original", tmp_path), "name the model with --original-module and --original-class"),
        (("--original-class", "Model"), "need --original"),
        (("--threads", "0"), "--threads must be from 1 to 10000, got 0"),
        (("--only", "backwards"), "--only must be a part of forward, "),
        (("--torch-python", tmp_path / "absent"), "--torch-python must be a Python that can be run"),
        (("--json", tmp_path), "--json must be a file, got the folder"),
        (("--config", tmp_path), "config.json cannot be read as JSON"),
        (("--bar", "nan"), "--bar must be above 0, got nan"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([str(option) for option in options])
        assert sentence in capsys.readouterr().err


def test_causal_attention_is_counted_once():
    """Multiply-adds of the floor: dense layers for each row, and one visible pair of slots at a time."""
    config = flow_config(TINY)
    rng = np.random.default_rng(0)
    shapes = block_shapes(config, 2, None, 16, 3)
    for shape, slots in zip(shapes, (16, 19), strict=True):
        weights, operands = random_weights(shape, rng), parallel_operands(shape, rng)
        c = shape.transformer
        dense = 2 * slots * c.layers * (3 + 1 + 4 + 4) * c.width**2 + 2 * 16 * c.width * 6  # channels 2 in, 4 out
        dense += 2 * shape.text * shape.text_channels * c.width
        pairs = slots * ((slots + 1) // 2)
        attention = 2 * c.layers * c.heads * 2 * pairs * c.head_dim
        assert dense_products(lambda w, o, s=shape: forward_products(s, w, o), weights, operands) == dense + attention
    assert denoiser_shape(config, 2, None, 16, 3).visible == 19  # a still image is not masked


def test_an_inverse_is_counted_by_its_chunks():
    """The filled part of the cache alone; the same multiply-adds in one loop as chunk by chunk."""
    config = flow_config(TINY)
    shapes = block_shapes(config, 2, None, 16, 0)[:1]
    weights = [random_weights(shapes[0], np.random.default_rng(0))]
    dense = sum(kernel.size for kernel in weights[0])
    per_slot = 2 * shapes[0].transformer.layers * 40
    chunks = [Chunk(0, 2, 0, 8, 3, 0), Chunk(0, 2, 8, 8, 5, 0)]
    evaluations = evaluations_of(chunks)
    expected = sum(2 * 8 * one.evaluations * (dense + per_slot * (one.start + 4.5)) for one in chunks)
    arithmetic, values = work(shapes, evaluations, weights)
    assert arithmetic == pytest.approx(expected, rel=0.02)
    operands = inverse_operands(shapes, evaluations, np.random.default_rng(0))
    counted = dense_products(lambda w, o: inverse_products(shapes, evaluations, w, o), weights, operands)
    assert counted == arithmetic and len(values) == 1
    sequential = evaluations_of([Chunk(0, 2, 0, 1, 16, 0)])
    assert [(one.tokens, one.visible, one.count) for one in sequential] == [
        (1, 8, 16)
    ]  # 1 .. 16 slots, 8.5 in the mean


@pytest.mark.slow  # the parity tests hold the flow to recordings
def test_a_flow_agrees_with_a_stand_in_for_the_original(tmp_path):
    out = tmp_path / "figures.json"
    result = run("--original", stand_in(tmp_path / "original"), "--only", "forward", "--json", out, "--threads", "1")
    assert result.returncode == 0, result.stderr
    figures = json.loads(out.read_text())
    line = figures["configs"]["tiny"]["operations"][0]
    assert figures["baseline"] == line["baseline"] == "original" and line["relative_error"] < 1e-5
    assert line["ratio"] == pytest.approx(line["theirs"]["minimum"] / line["ours"]["minimum"])
    assert "original / ours" in result.stdout and "a stand-in" in json.dumps(figures)


@pytest.mark.slow
def test_every_operation_agrees_with_a_stand_in(tmp_path):
    out = tmp_path / "figures.json"
    result = run("--original", stand_in(tmp_path / "original"), "--json", out, "--threads", "1")
    assert result.returncode == 0, result.stderr
    lines = json.loads(out.read_text())["configs"]["tiny"]["operations"]
    assert len(lines) == 9 and all(line["relative_error"] < 1e-4 for line in lines)


@pytest.mark.slow
def test_a_stand_in_with_other_outputs_is_refused(tmp_path):
    original = stand_in(tmp_path / "original", off=1.01)
    result = run("--original", original, "--only", "sequential", "--threads", "1", "--json", tmp_path / "a.json")
    assert result.returncode == 1 and "x of sequential differs by" in result.stderr
    assert "| ours" not in result.stdout and not (tmp_path / "a.json").exists()


@pytest.mark.slow
def test_without_an_original_the_floor_is_reported(tmp_path):
    result = run("--json", tmp_path / "a.json", "--threads", "1")
    assert result.returncode == 0, result.stderr
    assert "ours / floor" in result.stdout
    lines = json.loads((tmp_path / "a.json").read_text())["configs"]["tiny"]["operations"]
    assert len(lines) == 9 and {line["bound"] for line in lines} <= {"arithmetic", "bandwidth"}
    assert ("plain transformer" in result.stdout) != ("has no PyTorch" in result.stderr)


def test_the_table_names_what_is_left_out():
    time = {"minimum": 0.5, "median": 0.6, "seconds": [0.5], "others": None}
    line = {"operation": "forward", "ours": time, "floor": 0.4, "bound": "arithmetic", "of_floor": 1.25, "others": None}
    whole = line | {"theirs": time, "ratio": 1.0, "relative_error": 1e-7}
    printed = table([whole, line | {"operation": "denoiser", "left_out": "original: AttributeError: x"}], "original")
    assert "denoiser is left out: original: AttributeError: x" in printed and "0.500 (0.600)" in printed
