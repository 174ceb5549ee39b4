"""The loops of an inverse neither cast nor gather parameters, and its samples are those of the parameters as stored."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from inverse_on_eight_devices import FLOW, MESHES, loops_of, program, structs
from random_flows import VIDEO, random_flow

from starflow_jax.core.config import SampleConfig
from starflow_jax.evaluation.samples import guidance_sweep
from starflow_jax.evaluation.samples.sample_quality_request import SampleQualityRequest
from starflow_jax.flows.parameters import split
from starflow_jax.nn.ready_parameters import ready_for_inference
from starflow_jax.sampling import SampleRequest, vbench_export
from starflow_jax.sampling.sample_requests import VBenchRequest
from starflow_jax.solvers.streaming.pipeline import FrameStream

NOTHING: dict[str, list[list[int]]] = {"casts": [], "gathers": []}
# Excess precision lets a compiler skip a cast to bfloat16 and back, which differs between two programs.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_allow_excess_precision=false"
BFLOAT16 = dataclasses.replace(FLOW, dtype="bfloat16")


def measured(*names):
    script = Path(__file__).parent / "inverse_on_eight_devices.py"
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"}
    run = subprocess.run(
        [sys.executable, str(script), *names], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@pytest.mark.slow
def test_loops_over_a_mesh_read_parameters_that_are_ready():
    assert measured("compile") == NOTHING


@pytest.mark.slow
def test_samples_over_meshes_are_those_of_parameters_as_stored_and_of_one_device():
    for found in measured(*MESHES).values():
        assert found["stored"]["casts"] and found["stored"]["gathers"]  # so that both would be found
        assert found["ready"] == NOTHING and found["ready in float32"] == NOTHING
        assert found["equal"]
        assert found["error"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x4", "v5p:2x2x2"])
def test_loops_on_tpus_read_parameters_that_are_ready(name):
    pytest.importorskip("libtpu")
    from starflow_jax.costs.chips import topology
    from starflow_jax.planning.ahead_of_time import tpu_layout

    layout = tpu_layout(topology(name), MESHES["fsdp 4, tensor 2"])
    arguments = structs(BFLOAT16, layout)
    texts = [program(BFLOAT16, layout, ready).lower(*arguments).compile().as_text() for ready in (False, True)]
    stored, ready = (loops_of(text, BFLOAT16, layout) for text in texts)
    assert stored["gathers"]
    assert ready == NOTHING


def test_dense_layers_are_cast_and_nothing_else():
    flow = random_flow(dataclasses.replace(VIDEO, dtype="bfloat16"))
    params = jax.eval_shape(lambda flow: split(ready_for_inference(flow))[1], flow)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.dtype for path, leaf in leaves}
    cast = {name for name, dtype in names.items() if dtype == jnp.bfloat16}
    dense = ("qkv", "proj", "up", "down", "proj_in", "proj_txt")
    assert cast == {name for name in names if name.split("/")[-2] in dense}
    assert "blocks/0/transformer/layers/mlp/up/bias" in cast and "denoiser/proj_txt/kernel" in cast
    assert "blocks/0/proj_out/kernel" in names


def test_float32_on_one_device_is_left_as_it_is():
    flow = random_flow(VIDEO)
    for ours, theirs in zip(jax.tree.leaves(ready_for_inference(flow)), jax.tree.leaves(flow), strict=True):
        assert ours is theirs


def test_a_stream_makes_them_ready_once():
    config = dataclasses.replace(VIDEO, dtype="bfloat16")
    params, text = split(random_flow(config))[1], jnp.zeros((1, config.text_length, config.text_dim))
    for ready, dtype in ((True, jnp.bfloat16), (False, jnp.float32)):
        stream = FrameStream(params, config, (1, 2, 4, 4, 2), text, ready=ready)
        assert stream._deep_params["blocks"]["2"]["proj_in"]["kernel"].dtype == dtype
        assert stream.shallow_params["blocks"]["0"]["transformer"]["layers"]["mlp"]["up"]["kernel"].dtype == dtype


def test_images_to_measure_and_videos_to_judge_take_the_form_of_a_request(monkeypatch, shapes_unchecked):
    given = []
    monkeypatch.setattr(guidance_sweep, "sample", lambda *_, parameters, **__: given.append(parameters))
    config = SimpleNamespace(flow=SimpleNamespace(num_classes=0))
    captions = guidance_sweep.Captions(("a",), lambda texts: jnp.zeros((len(texts), 1, 1)), jnp.zeros((1, 1, 1)))
    generator = guidance_sweep.ImageGenerator({}, config, 0, 1, None, captions=captions, parameters="stored")
    generator.generate(1.0, 0, 0, 1)
    monkeypatch.setattr(vbench_export, "plan_videos", lambda *_, parameters, **__: given.append(parameters))
    request = VBenchRequest(Path("p"), Path("o"), parameters="stored")
    run = SimpleNamespace(config=config, learned_for=lambda solver: None)
    export = vbench_export.VBenchExport(run, request, (), None, None, None, 8.0, {})
    export.plan(())
    assert given == ["stored", "stored"]


@pytest.mark.parametrize(
    "build",
    [
        SampleConfig,
        SampleRequest,
        functools.partial(VBenchRequest, Path("p"), Path("o")),
        functools.partial(SampleQualityRequest, Path("w"), metrics=("fid",)),
    ],
)
def test_other_forms_are_refused(build):
    with pytest.raises(ValueError, match=r"parameters must be one of .*'ready', 'stored', got 'kept'"):
        build(parameters="kept")
