"""Parameters that are made ready for inference once, before the loops that read them."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
from flax import nnx

from starflow_jax.nn.linear import Linear

M = TypeVar("M", bound=nnx.Module)


def ready_for_inference(module: M) -> M:
    """The module with the kernel and bias of every dense layer as its product reads them (`Linear.ready`).

    A stored parameter is float32 and sharded over the fsdp axis of a mesh, so that every evaluation of a network casts
    each kernel to the compute dtype and gathers it. An inverse evaluates a network hundreds of times; this does both
    once, in front of its loops. Outputs are the same bit by bit, and gradients by the input can be taken. Norms, output
    heads and whatever else is computed in float32 stay float32, and the tensor axis stays sharded.

    The result takes memory beside the stored parameters: all dense layers in the compute dtype, whole along fsdp. A
    module of float32 layers without an fsdp axis is returned as it is.

    Args:
      module: a network or a flow; under `jit`, where it is over a mesh.
    """

    def is_dense(node: Any) -> bool:
        return isinstance(node, Linear)

    prepared: M = jax.tree.map(lambda node: node.ready() if is_dense(node) else node, module, is_leaf=is_dense)
    return prepared
