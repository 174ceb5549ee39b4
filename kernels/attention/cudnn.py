"""Causal attention of whole sequences by cuDNN, as an `AttentionKernel`: JAX's own attention on NVIDIA GPUs."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from starflow_jax.kernels.attention.call import AttentionCall, Bounds, Gradients, Residuals
from starflow_jax.kernels.attention.masks import Causal
from starflow_jax.kernels.kernel_choice import Support

_DTYPES = (jnp.bfloat16, jnp.float16)
# cuDNN takes up to 256 channels on Hopper; JAX asks the devices of the process whether they are of that kind, which
# says nothing about those of another target.
_CHANNELS, _MAX_CHANNELS = 8, 128
_MIN_CAPABILITY = (8, 0)
# JAX requires a later cuDNN for this capability.
_LATE_CAPABILITY, _LATE_CUDNN = (10, 3), 91100


@dataclasses.dataclass(frozen=True)
class CudnnAttention:
    """cuDNN's forward pass, and its backward pass."""

    def supports(self, call: AttentionCall) -> Support:
        """See `AttentionKernel`."""
        device = _device_support(call)
        return _arrays_support(call) if device else device

    def prepare(self, call: AttentionCall) -> AttentionCall:
        """See `AttentionKernel`."""
        return call

    def forward(
        self,
        call: AttentionCall,
        query: Float[Array, "B h n d"],
        key: Float[Array, "B k S d"],
        value: Float[Array, "B k S d"],
        bounds: Bounds,
    ) -> tuple[Float[Array, "B h n d"], Float[Array, "B h n"] | None]:
        """See `AttentionKernel`."""
        out, pullback = _differentiated(call, query, key, value)
        lse = [leaf for leaf in jax.tree.leaves(pullback) if _is_lse(leaf, query)]
        return jnp.swapaxes(out, 1, 2), lse[0] if lse else None

    def backward(
        self, call: AttentionCall, residuals: Residuals, do: Float[Array, "B h n d"], bounds: Bounds
    ) -> Gradients:
        """See `AttentionKernel`."""
        query, key, value, saved_out, lse = residuals
        out, pullback = _differentiated(call, query, key, value)
        # The results of the forward pass are those that were saved. Nothing then needs the pass that has been traced
        # here again, and the compiler removes it.
        leaves, structure = jax.tree.flatten(pullback)
        for index, leaf in enumerate(leaves):
            if leaf is out:
                leaves[index] = jnp.swapaxes(saved_out, 1, 2)
            elif lse is not None and _is_lse(leaf, query):
                leaves[index], lse = lse, None
        dq, dk, dv = jax.tree.unflatten(structure, leaves)(jnp.swapaxes(do, 1, 2).astype(out.dtype))
        return jnp.swapaxes(dq, 1, 2), jnp.swapaxes(dk, 1, 2), jnp.swapaxes(dv, 1, 2)


def _differentiated(
    call: AttentionCall, query: Float[Array, "B h n d"], key: Float[Array, "B k S d"], value: Float[Array, "B k S d"]
) -> tuple[Float[Array, "B n h d"], Any]:
    """The output and its pullback, whose leaves are the residuals, both in JAX's order of axes."""
    attend = functools.partial(
        jax.nn.dot_product_attention,
        scale=1.0,  # the query is already scaled
        is_causal=True,
        implementation="xla" if call.interpret else "cudnn",
    )
    return jax.vjp(attend, *(jnp.swapaxes(array, 1, 2) for array in (query, key, value)))


def _is_lse(leaf: Any, query: Float[Array, "B h n d"]) -> bool:
    """Whether a residual is the log of the sum of exp(logits): the only one of its shape and dtype."""
    return leaf.shape == query.shape[:-1] and leaf.dtype == jnp.float32


def _device_support(call: AttentionCall) -> Support:
    capability = _capability(call.target.capability)
    if capability is None or capability < _MIN_CAPABILITY:
        seen = call.target.capability or "unknown"
        return Support(f"needs an NVIDIA GPU of compute capability 8.0 or later, and this is {seen}")
    version = call.target.libraries.cudnn
    if not version and not call.interpret:
        return Support("needs cuDNN and JAX's CUDA plugin, which are not installed")
    if capability == _LATE_CAPABILITY and version < _LATE_CUDNN:
        return Support(f"needs cuDNN 9.11 or later on this GPU, and this is {version // 10000}.{version // 100 % 100}")
    return Support()


def _arrays_support(call: AttentionCall) -> Support:
    if call.dtypes[0] not in _DTYPES or any(dtype != call.dtypes[0] for dtype in call.dtypes):
        dtypes = ", ".join(map(str, call.dtypes))
        return Support(f"needs inputs of one dtype, bfloat16 or float16, and these are {dtypes}")
    if call.head_dim % _CHANNELS or call.head_dim > _MAX_CHANNELS:
        return Support(
            f"needs heads of a multiple of {_CHANNELS} channels, at most {_MAX_CHANNELS}, "
            f"and these have {call.head_dim}"
        )
    if not isinstance(call.rule, Causal) or call.rule.prefix:
        return Support(f"needs a causal mask without a prefix, and this is {call.rule}")
    whole = call.offset == 0 and call.num_queries == call.num_slots == call.length
    if call.stacked or not whole:
        return Support("needs whole sequences without a cache: as many queries as keys, from slot 0")
    if call.num_slots % 2:  # left to XLA until a GPU has run it
        return Support(f"needs an even number of slots, and there are {call.num_slots}")
    if call.tiles is not None:
        return Support(f"takes no block sizes, and these are {call.tiles}")
    return Support()


def _capability(text: str) -> tuple[int, int] | None:
    """A compute capability as numbers; None for what is none, such as the name of an AMD GPU."""
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", text)
    return (int(found[1]), int(found[2])) if found else None
