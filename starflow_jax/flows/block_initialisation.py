"""The initial parameters of a flow's blocks, from one program for all blocks of a kind."""

from __future__ import annotations

import os

import jax
from jaxtyping import Array, Key, PRNGKeyArray

from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.config.transformer_config import TransformerConfig
from starflow_jax.flows.block import AutoregressiveBlock
from starflow_jax.sharding.layout import Layout


def _initial_block(config: FlowConfig, index: int, key: PRNGKeyArray, layout: Layout | None) -> AutoregressiveBlock:
    return AutoregressiveBlock(config, index, key, layout)


_as_part_of_a_program = jax.jit(_initial_block, static_argnums=(0, 1, 3))
# A program that runs once: the compiler of CPUs takes 2.4 s instead of 6 s for the same values.
_as_a_program = jax.jit(
    _initial_block, static_argnums=(0, 1, 3), compiler_options={"xla_backend_optimization_level": 1}
)


def initial_blocks(config: FlowConfig, keys: Key[Array, "blocks"], layout: Layout | None) -> list[AutoregressiveBlock]:
    """The blocks of a flow, block i initialised by key i.

    Blocks with the same parameters are initialised by the same program, which is traced and compiled once.
    """
    alone = not isinstance(keys, jax.core.Tracer) and jax.default_backend() == "cpu"
    # A level in the user's XLA_FLAGS is for all programs; the option of this one would replace it.
    chosen_by_user = "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", "")
    initial_block = _as_a_program if alone and not chosen_by_user else _as_part_of_a_program
    first: dict[tuple[TransformerConfig, bool, bool], int] = {}
    blocks = []
    for index, transformer in enumerate(config.blocks):
        kind = (transformer, config.is_conditioned(index), transformer is config.language_model)
        block = initial_block(config, first.setdefault(kind, index), keys[index], layout)
        block.index = index
        blocks.append(block)
    return blocks
