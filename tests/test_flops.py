"""FLOPs counted from a configuration are those of the program that is traced from it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from starflow_jax.core.config import FlowConfig, load_config
from starflow_jax.core.config.flow_config import DenoiserConfig
from starflow_jax.costs.flops import Work, denoiser_pairs, forward_parts, model_flops, traced
from starflow_jax.flows.parameters import abstract, merge
from starflow_jax.kernels.attention import FrameWindow

FLOW = FlowConfig(
    channels=3, image_size=(4, 6), patch_size=2, width=40, deep_width=80, num_blocks=3, layers_per_block=(1, 2, 3),
    head_dim=20, rope=True, sos=True, text_dim=8, text_length=5, cond_top_only=True, temporal_causal=True,
    shallow_local=True, denoiser=DenoiserConfig(layers=2, conditional=True, look_ahead=2, window=2),
)  # fmt: skip
STILLS = Work(batch=2, frames=None, rows=2, columns=3, text=5)
VIDEOS = Work(batch=2, frames=4, rows=2, columns=3, text=5)


def products(function, flow: FlowConfig, work: Work) -> int:
    """FLOPs of the traced products of `function(flow module, x, cond)`."""
    definition, params = abstract(flow)
    height, width = work.rows * flow.patch_size, work.columns * flow.patch_size
    frames = () if work.frames is None else (work.frames,)
    x = jax.ShapeDtypeStruct((work.batch, *frames, height, width, flow.channels), jnp.float32)
    cond = jax.ShapeDtypeStruct((work.batch, work.text, flow.text_dim), jnp.float32) if work.text else None
    return traced(jax.make_jaxpr(lambda p, x, c: function(merge(definition, p), x, c))(params, x, cond))


def everything(flow, x, cond):
    out = flow.forward(x, cond).z
    return out if flow.denoiser is None else (out, flow.denoiser(x, cond))


@pytest.mark.parametrize("work", [STILLS, VIDEOS])
@pytest.mark.parametrize(
    "change", [{}, {"mlp": "gated", "kv_heads": 2}, {"shallow_local": False, "cond_top_only": False}]
)
def test_a_forward_pass(work, change):
    flow = dataclasses.replace(FLOW, **change)
    assert products(everything, flow, work) == sum(p.total for p in forward_parts(flow, work, masked=True))


def test_a_volume_preserving_flow_without_text():
    flow = FlowConfig(
        family="tarflow", channels=3, image_size=8, patch_size=2, width=16, head_dim=8, num_blocks=2,
        layers_per_block=2, scale="unit", num_classes=3,
    )  # fmt: skip
    work = Work(batch=3, frames=None, rows=4, columns=4)
    found = products(lambda f, x, c: f.forward(x, None).z, flow, work)
    assert found == sum(p.total for p in forward_parts(flow, work, masked=True))


def test_a_training_step_is_three_forward_passes():
    """All but the gradients of what no parameter stands before: text states, and the denoiser's input."""

    def loss(flow, x, cond):
        return sum(jnp.sum(part) for part in everything(flow, x, cond))

    found = products(lambda f, x, c: jax.grad(loss, argnums=(0, 1))(f, x, c), FLOW, VIDEOS)
    forward = sum(p.total for p in forward_parts(FLOW, VIDEOS, masked=True))
    text = 2 * VIDEOS.batch * VIDEOS.text * FLOW.text_dim * (FLOW.deep_width + FLOW.width)
    assert found == 3 * forward - text


def test_hidden_pairs_do_not_count():
    for part, all_pairs in zip(forward_parts(FLOW, VIDEOS), forward_parts(FLOW, VIDEOS, masked=True), strict=True):
        slots = {"block 2": 29, "denoiser": 29}.get(part.name, 6)
        if part.name != "denoiser":
            assert 2 * slots * part.attention == (slots + 1) * all_pairs.attention
        assert part.dense == all_pairs.dense
    rule = FrameWindow(text=5, frame=6, look_ahead=2, window=2)
    seen = rule.mask(jnp.arange(29)[:, None], jnp.arange(29)[None])
    assert denoiser_pairs(FLOW, VIDEOS) == int(seen.sum())
    assert denoiser_pairs(FLOW, STILLS) == 11 * 11


def test_flops_follow_the_batch_and_recomputation_is_no_work():
    doubled = dataclasses.replace(VIDEOS, batch=2 * VIDEOS.batch)
    assert model_flops(FLOW, doubled) == 2 * model_flops(FLOW, VIDEOS)
    assert model_flops(dataclasses.replace(FLOW, remat="block"), VIDEOS) == model_flops(FLOW, VIDEOS)


def test_released_models_are_near_six_flops_a_parameter_and_token():
    flow = load_config("experiments/starflow_3b_t2i.py").flow
    found = model_flops(flow, Work(1, None, 32, 32, 128))
    # The deep block also runs on the 128 text tokens, and attention comes on top.
    assert 1.0 < found / (6 * 3_858_281_544 * 1024) < 1.15
