"""Flows with random weights that are far from the identity, and the configurations that tests share."""

import jax
import numpy as np

from starflow_jax.core.config import DenoiserConfig, FlowConfig
from starflow_jax.flows import Flow, FlowOutput
from starflow_jax.flows.parameters import abstract, merge

IMAGE = FlowConfig(
    channels=2, image_size=4, width=40, num_blocks=2, layers_per_block=(1, 2), head_dim=20, rope=True, sos=True,
    text_dim=6, text_length=3, cond_top_only=True, scale="softplus", final_norm=True, soft_clip=4.0, order="L2R",
)  # fmt: skip
VIDEO = FlowConfig(
    channels=2, image_size=4, width=20, deep_width=40, num_blocks=3, layers_per_block=1, head_dim=20, rope=True,
    sos=True, text_dim=6, text_length=3, cond_top_only=True, scale="softplus", final_norm=True, soft_clip=4.0,
    order="L2R", temporal_causal=True, shallow_local=True, denoiser=DenoiserConfig(2, True, 2, 2),
)  # fmt: skip
CLASSES = FlowConfig(
    family="tarflow", channels=1, image_size=4, patch_size=2, width=16, num_blocks=2, layers_per_block=1, head_dim=8,
    num_classes=3,
)  # fmt: skip


def random_flow(config: FlowConfig, seed: int = 0) -> Flow:
    """A flow with random weights, far from the identity but gentle enough for float32 to invert."""
    definition, expected = abstract(config)
    rng = np.random.default_rng(seed)

    def fill(tree, name=""):
        if isinstance(tree, dict):
            return {key: fill(value, f"{name}.{key}") for key, value in tree.items()}
        value = rng.normal(size=tree.shape)
        if name.endswith("kernel"):
            inputs = -4 if "qkv" in name else -3 if "modulation" in name else -2
            value *= (0.15 if "proj_out" in name else 0.7) * tree.shape[inputs] ** -0.5
        else:
            value *= 0.1
        # Layer norms start at gain 1; RMS norms have gain 1 + weight.
        is_gain = name.endswith((".attention.norm.weight", ".mlp.norm.weight")) and config.norm == "layer"
        is_gain = is_gain or (name.endswith(("query_norm.weight", "key_norm.weight")) and config.qk_norm == "layer")
        return on_device(value + is_gain)

    params = fill(expected)
    if "prior_variance" in params:
        params["prior_variance"] = on_device(np.ones(params["prior_variance"].shape))
    return merge(definition, params)


# Compiled once for each configuration and shape: operation by operation, every primitive would be a program of its own.
@jax.jit
def forward(flow: Flow, x, cond=None, guidance=None) -> FlowOutput:
    return flow.forward(x, cond, guidance=guidance)


@jax.jit
def log_prob(flow: Flow, x, cond=None) -> jax.Array:
    return flow.log_prob(x, cond)


def normal(shape: tuple[int, ...], seed: int = 7) -> jax.Array:
    return on_device(np.random.default_rng(seed).normal(size=shape))


def on_device(values: np.ndarray) -> jax.Array:
    """In float32, to which the host rounds: `jnp.asarray` would compile a program for every shape."""
    return jax.device_put(values.astype(np.float32))
