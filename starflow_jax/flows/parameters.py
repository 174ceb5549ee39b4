"""A flow as a plain nested dict of arrays: what optimizers, checkpoints and jit boundaries handle.

A module passed whole through `jit` costs milliseconds a call in pytree callbacks; a dict does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from starflow_jax.config.flow import FlowConfig
from starflow_jax.flows.flow import Flow
from starflow_jax.parallel.layout import Layout

Params = dict[str, Any]


def _with_keys(tree: Any, convert) -> Any:
    if isinstance(tree, Mapping):
        return {convert(k): _with_keys(v, convert) for k, v in tree.items()}
    return tree


def split(flow: Flow) -> tuple[nnx.GraphDef, Params]:
    """A flow as its hashable definition and its parameters, a nested dict with string keys."""
    definition, state = nnx.split(flow)
    return definition, _with_keys(nnx.to_pure_dict(state), str)


def merge(definition: nnx.GraphDef, params: Params) -> Flow:
    """The inverse of `split`."""
    return nnx.merge(definition, _with_keys(params, lambda k: int(k) if k.isdecimal() else k))


def overlaid(leaves: Params, params: Params) -> Params:
    """`leaves` with what `params`, a part of the same nested dict, has instead."""
    if not isinstance(leaves, Mapping):
        return params
    return {name: overlaid(leaf, params[name]) if name in params else leaf for name, leaf in leaves.items()}


def abstract(config: FlowConfig, layout: Layout | None = None) -> tuple[nnx.GraphDef, Params]:
    """Like `split(Flow(config, key, layout))`, with ShapeDtypeStructs: allocates nothing."""
    definitions = []

    def build(key):
        definition, params = split(Flow(config, key, layout))
        definitions.append(definition)
        return params

    params = jax.eval_shape(build, jax.random.key(0))
    return definitions[0], params


def initialise(config: FlowConfig, key: jax.Array) -> tuple[nnx.GraphDef, Params]:
    """A new flow, built in one compiled program."""
    definition, _ = abstract(config)
    params = jax.jit(lambda k: split(Flow(config, k))[1])(key)
    return definition, params


def count(params: Params) -> int:
    """Number of trained parameters (TARFlow's prior variance is a statistic and does not count)."""
    trained = {k: v for k, v in params.items() if k != "prior_variance"}
    return sum(math.prod(a.shape) for a in jax.tree.leaves(trained))
