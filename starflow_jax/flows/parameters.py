"""Flows as plain nested dicts of arrays (`nn.module_parameters`): initialisation, abstract values, counts."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.flow import Flow
from starflow_jax.nn.module_parameters import Params, split
from starflow_jax.nn.module_parameters import merge as _merge
from starflow_jax.nn.ready_parameters import ready_for_inference
from starflow_jax.sharding.layout import Layout

__all__ = [
    "Params",
    "abstract",
    "count",
    "initialise",
    "merge",
    "num_bytes",
    "overlaid",
    "ready",
    "split",
    "unquantised",
]


def merge(definition: nnx.GraphDef[Any], params: Mapping[str, Any]) -> Flow:
    """The inverse of `split`, for a flow."""
    flow: Flow = _merge(definition, params)
    return flow


def ready(definition: nnx.GraphDef[Any], params: Mapping[str, Any]) -> Params:
    """The parameters of a flow made ready for inference (`nn.ready_parameters`)."""
    return split(ready_for_inference(merge(definition, params)))[1]


def overlaid(leaves: Any, params: Any) -> Any:
    """`leaves` with the entries of `params`, which has a subset of its keys, replaced."""
    if not isinstance(leaves, Mapping):
        return params
    return {name: overlaid(leaf, params[name]) if name in params else leaf for name, leaf in leaves.items()}


def abstract(config: FlowConfig, layout: Layout | None = None) -> tuple[nnx.GraphDef[Any], Params]:
    """`split(Flow(config, key, layout))` with ShapeDtypeStructs, without allocating arrays."""
    structs: tuple[nnx.GraphDef[Any], Params] = _new.eval_shape(config, layout)
    return structs


@functools.partial(jax.jit, static_argnums=(0, 1))
def _new(config: FlowConfig, layout: Layout | None) -> tuple[nnx.GraphDef[Any], Params]:
    """A new flow, split; jitted because JAX then traces each configuration once for all calls of `abstract`."""
    return split(Flow(config, jax.random.key(0), layout))


def initialise(config: FlowConfig, key: PRNGKeyArray) -> tuple[nnx.GraphDef[Any], Params]:
    """A new flow, initialised by one compiled program."""
    definition, _ = abstract(config)
    params = jax.jit(lambda k: split(Flow(config, k))[1])(key)
    return definition, params


def count(params: Params) -> int:
    """Number of trained parameters; TARFlow's prior variance is a statistic and not counted."""
    trained = {k: v for k, v in params.items() if k != "prior_variance"}
    return sum(math.prod(a.shape) for a in jax.tree.leaves(trained))


def num_bytes(params: Params) -> int:
    """Bytes of the arrays of a tree, or of its ShapeDtypeStructs."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def unquantised(config: FlowConfig) -> FlowConfig:
    """The configuration of the float32 flow that a quantised one was made from."""
    return dataclasses.replace(config, quantise=None)
