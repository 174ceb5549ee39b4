"""What the backward pass computes again, counted in the traced program of a flow that is compiled for TPUs."""

from __future__ import annotations

import jax

from starflow_jax.core.config import FlowConfig
from starflow_jax.flows import Flow
from starflow_jax.flows.likelihood import objective
from starflow_jax.kernels.kernel_choice import Target
from starflow_jax.nn import attention, transformer


def operations(monkeypatch, remat):
    """The number of forward kernels, of backward kernels and of products in the gradient of a block of two layers."""
    for module in (attention, transformer):
        monkeypatch.setattr(module, "layout_target", lambda layout: Target("tpu", "TPU v6e"))
    config = FlowConfig(
        channels=2, image_size=4, width=128, num_blocks=1, layers_per_block=2, rope=True, dtype="bfloat16", remat=remat
    )
    flow = jax.eval_shape(lambda key: Flow(config, key), jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, 4, 4, 2), "float32")
    gradient = jax.grad(lambda flow, x: objective(flow.forward(x)).loss, allow_int=True)
    text = str(jax.make_jaxpr(gradient)(flow, x))
    return tuple(text.count(name) for name in ("name=attention_forward", "name=attention_backward", " dot_general["))


def test_what_is_saved_is_not_computed_again(monkeypatch):
    block, dense, pointwise, nothing = (
        operations(monkeypatch, remat) for remat in ("block", "dense", "pointwise", "none")
    )
    assert block[:2] == (2, 1) and dense[:2] == pointwise[:2] == nothing[:2] == (1, 1)
    # Of the four products of a layer the last is never computed again.
    assert block[2] == dense[2] == pointwise[2] + 3 and pointwise[2] == nothing[2]
