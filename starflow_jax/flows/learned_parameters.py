"""The parameters of a learned inverse with the sizes of its network, as one value that crosses `jit` boundaries."""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
from flax import nnx

from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.config.learned_inverse_config import LearnedInverseConfig
from starflow_jax.flows.learned_inverse import LearnedInverse
from starflow_jax.nn.module_parameters import Params, merge, split
from starflow_jax.sharding.layout import Layout


@flax.struct.dataclass
class LearnedParams:
    """A learned inverse as a pytree of arrays.

    Attributes:
      params: nested dictionary of its parameters.
      network: the sizes of the network, static.
      max_guidance: largest guidance weight that the network was trained for, static.
    """

    params: Params
    network: LearnedInverseConfig = flax.struct.field(pytree_node=False)
    max_guidance: float = flax.struct.field(pytree_node=False, default=0.0)

    def module(self, flow: FlowConfig, layout: Layout | None = None) -> LearnedInverse:
        """The learned inverse of a flow of this configuration."""
        learned: LearnedInverse = merge(abstract_learned(flow, self.network, layout)[0], self.params)
        return learned


def abstract_learned(
    flow: FlowConfig, network: LearnedInverseConfig, layout: Layout | None = None
) -> tuple[nnx.GraphDef[Any], Params]:
    """`split(LearnedInverse(flow, network, key, layout))` with ShapeDtypeStructs, without allocating arrays."""
    structs: tuple[nnx.GraphDef[Any], Params] = _new.eval_shape(flow, network, layout)
    return structs


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _new(flow: FlowConfig, network: LearnedInverseConfig, layout: Layout | None) -> tuple[nnx.GraphDef[Any], Params]:
    """A new network, split; jitted because JAX then traces each configuration once."""
    return split(LearnedInverse(flow, network, jax.random.key(0), layout))
