"""What two processes must share so that one decodes what the other encoded: parameters, versions, device, arithmetic.

The sums of a network round differently in another version of JAX, on another device, or with vector instructions of
another width, and one differing bit makes all later pixels wrong. Names and versions are compared first. `probe` then
runs the programs of the decoder on fixed inputs and compares a digest of their bits, which covers what has no name:
the processor's instructions, threads, flags of the compiler.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json

import jax
import numpy as np

import starflow_jax
from starflow_jax.compression.flow_coder import FlowCoder
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.parameters import Params

PROBED_TOKENS = 8


@dataclasses.dataclass(frozen=True)
class Environment:
    """Versions of this package, of JAX and of jaxlib, which contains XLA; and the kind of the device."""

    package: str
    jax: str
    jaxlib: str
    device: str

    @classmethod
    def here(cls) -> Environment:
        """That of this process and of its first device."""
        device = jax.devices()[0]
        kind = device.platform if device.device_kind == device.platform else f"{device.platform} {device.device_kind}"
        return cls(starflow_jax.__version__, jax.__version__, importlib.metadata.version("jaxlib"), kind)

    def difference(self, other: Environment) -> str | None:
        """The first field in which the environments differ, in words; None where they agree."""
        for name, words in (("package", "starflow_jax"), ("jax", "JAX"), ("jaxlib", "jaxlib"), ("device", "device")):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{words} {mine}, and here it is {theirs}"
        return None


def fingerprint(config: FlowConfig, params: Params) -> bytes:
    """Eight bytes of the configuration of a flow and of all its parameters."""
    digest = hashlib.sha256(json.dumps(config.identity(), sort_keys=True, default=str).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()[:8]


def probe(coder: FlowCoder, cond: np.ndarray | None) -> bytes:
    """Four bytes of what the programs of a coder compute here for fixed tokens.

    Args:
      cond: conditions of the kind and the shape that the coder reads, one row or more; only these matter.
    """
    digest = hashlib.sha256(coder.pixels.digest_input() + repr(coder.noise.starts).encode())
    digest.update(repr([(grid.spacing, grid.origin.tolist()) for grid in coder.grids]).encode())
    if coder.basis is not None:
        digest.update(repr((coder.basis.rotations, coder.basis.signs.tolist())).encode())
    blank = None if cond is None else np.zeros((1, *cond.shape[1:]), cond.dtype)
    for index, block in enumerate(coder.blocks(blank)):
        shape = (*block.shape, PROBED_TOKENS)
        # Values of the size of tokens, without a random number generator.
        tokens = np.sin(np.arange(1.0, 1.0 + np.prod(shape)) * (index + 1)).astype(np.float32).reshape(shape)
        for token in range(min(PROBED_TOKENS, block.grid.tokens)):
            for array in block.step(tokens[..., token - 1] if token else None, token):
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()[:4]
