"""FLOPs of a flow, counted from its configuration, and FLOPs of a traced program.

Convention: a product of [m, k] and [k, n] is 2 m n k FLOPs; attention counts the visible pairs of query and key, so
n (n + 1) / 2 in causal attention; a training step counts as three forward passes (one forward, two backward).
Recomputation, norms, activations and the optimizer do not count. This is the number of FLOPs from which MFU is
computed. `traced` counts what a program actually computes, including masked pairs and recomputation, and
`kernel_flops` counts what runs in attention kernels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend.core import jaxprs_in_params

from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.config.transformer_config import TransformerConfig
from starflow_jax.kernels.attention import Causal, FrameWindow, Full, Visibility
from starflow_jax.kernels.attention.block_sizes import COSTS, DEFAULT_CHIP, packed_fits, tiles_for, visited


@dataclasses.dataclass(frozen=True)
class Work:
    """The sizes of the data of one step.

    Attributes:
      batch: number of images or videos; frames: of a video, None for images; rows, columns: of tokens in a frame.
      text: number of text tokens, 0 if the flow reads no text.
      chunk: tokens that an inverse solves together, None for the schedule of the paper.
    """

    batch: int
    frames: int | None
    rows: int
    columns: int
    text: int = 0
    chunk: int | None = None

    @property
    def frame(self) -> int:
        """Tokens per frame."""
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        """Tokens per image or video."""
        return (self.frames or 1) * self.frame


@dataclasses.dataclass(frozen=True)
class Part:
    """Forward FLOPs of one network of a flow, in dense layers and in attention."""

    name: str
    dense: int
    attention: int

    @property
    def total(self) -> int:
        return self.dense + self.attention


def forward_parts(flow: FlowConfig, work: Work, *, masked: bool = False) -> list[Part]:
    """Forward FLOPs of every block, and of the denoiser if there is one.

    Args:
      flow, work: the model and the sizes of its data.
      masked: whether masked pairs of query and key are counted too.
    """
    parts = []
    for index, transformer in enumerate(flow.blocks):
        if not transformer.layers:
            continue
        local = flow.is_local(index) and work.frames is not None
        sequences = work.batch * (work.frames or 1) if local else work.batch
        tokens = work.frame if local else work.tokens
        text = work.text if flow.is_conditioned(index) else 0
        outputs = flow.token_channels * (1 if flow.scale == "unit" else 2)
        projects = text > 0 and flow.language_model is not transformer
        dense = _ends(flow, transformer, tokens, text if projects else 0, outputs)
        slots = tokens + text
        pairs = slots * slots if masked else slots * (slots + 1) // 2
        modulated = tokens if flow.token_classes else 1
        parts.append(_part(f"block {index}", transformer, sequences, slots, dense, pairs, modulated))
    if flow.denoiser is not None:
        transformer = flow.denoiser_transformer
        text = work.text if flow.denoiser.conditional else 0
        slots = work.tokens + text
        dense = _ends(flow, transformer, work.tokens, text, flow.token_channels)
        pairs = slots * slots if masked else denoiser_pairs(flow, work)
        parts.append(_part("denoiser", transformer, work.batch, slots, dense, pairs))
    return parts


def train_flops(flow: FlowConfig, work: Work) -> int:
    """FLOPs of one training step by the convention above: three forward passes."""
    return 3 * sum(part.total for part in forward_parts(flow, work))


def shape_work(flow: FlowConfig, shape: Sequence[int]) -> Work:
    """The sizes of a batch of shape [B, H, W, C] or [B, T, H, W, C], with the full text length of the flow."""
    *front, rows, columns, _ = shape
    frames = front[1] if len(front) > 1 else None
    text = flow.text_length if flow.text_dim else 0
    return Work(front[0], frames, rows // flow.patch_size, columns // flow.patch_size, text)


def _ends(flow: FlowConfig, transformer: TransformerConfig, tokens: int, text: int, outputs: int) -> int:
    """FLOPs of the input, text and output projections of a transformer for one sequence."""
    return 2 * transformer.width * (tokens * (flow.token_channels + outputs) + text * flow.text_dim)


def _part(
    name: str, c: TransformerConfig, sequences: int, slots: int, ends: int, pairs: int, modulated: int = 0
) -> Part:
    """The layers of a network; modulated: slots of a sequence whose conditions adaptive norms read."""
    weights = c.width * (c.heads + 2 * c.kv_heads) * c.head_dim + c.heads * c.head_dim * c.width
    weights += c.expansion * c.width * c.width * c.mlp_kernels
    dense = 2 * (slots * weights + modulated * c.modulation * c.width * c.width) * c.layers + ends
    attention = 2 * 2 * pairs * c.heads * c.head_dim * c.layers
    return Part(name, sequences * dense, sequences * attention)


def denoiser_pairs(flow: FlowConfig, work: Work) -> int:
    """Number of visible pairs of query and key in the denoiser's attention for one image or video."""
    assert flow.denoiser is not None  # checked by the caller
    options, text = flow.denoiser, work.text if flow.denoiser.conditional else 0
    slots = work.tokens + text
    if work.frames is None or options.look_ahead is None:
        return slots * slots
    total = 0
    for frame in range(work.frames):
        last = min(frame + options.look_ahead - 1, work.frames - 1)
        first = 0
        if options.window is not None:
            first = max(0, frame + options.look_ahead - 1 - options.window)
        total += work.frame * (text + (last - first + 1) * work.frame)
    return total + text * (text + min(options.look_ahead, work.frames) * work.frame)


def kernel_flops(flow: FlowConfig, work: Work, chip: str = DEFAULT_CHIP) -> int:
    """FLOPs of a TPU's attention kernels in one training step, including masked pairs in tiles and recomputation.

    A forward pass has two products per pair, and a backward pass five, because it recomputes the attention weights.
    Rematerialised layers add a forward pass.
    """
    passes = _kernel_passes(flow, work, chip)
    return 2 * sum(one.heads * one.dim * (5 if one.backward else 2) * one.pairs * one.size**2 for one in passes)


def kernel_cycles(flow: FlowConfig, work: Work, chip: str = DEFAULT_CHIP) -> float:
    """Cycles of one core in the same kernels: tiles and grid steps at the costs of `attention.block_sizes`."""
    costs = COSTS[chip if chip in COSTS else DEFAULT_CHIP]
    total = 0.0
    for one in _kernel_passes(flow, work, chip):
        tiles = (one.size / 128) ** 2 * costs.tile(one.dim, backward=one.backward)
        total += one.heads * one.pairs * (tiles + costs.step / one.together)
        total += one.heads * one.rotated / 128 * one.dim / 64 * costs.rotation[one.backward]
    return total


@dataclasses.dataclass(frozen=True)
class _KernelPass:
    """One kind of attention in a training step.

    Attributes:
      heads: of all samples, layers and repetitions; dim: channels of each.
      backward: whether it computes gradients.
      pairs: pairs of blocks that one head visits; size: slots of a block; together: heads of a grid step.
      rotated: slots whose queries and keys the kernel rotates; 0 where XLA does.
    """

    heads: int
    dim: int
    backward: bool
    pairs: int
    size: int
    together: int
    rotated: int


def _kernel_passes(flow: FlowConfig, work: Work, chip: str) -> Iterator[_KernelPass]:
    forward = 1 + (flow.remat in ("block", "attention"))
    word = 2 if flow.dtype == "bfloat16" else 4
    for c, sequences, text, local, rule in _attentions(flow, work):
        slots = (work.frame if local else work.tokens) + text
        if not c.layers:
            continue
        sizes = (c.heads, c.head_dim, word, chip if chip in COSTS else DEFAULT_CHIP)
        tiles = tiles_for(rule, slots, slots, *sizes)
        # As `nn.attention.Attention` decides.
        packed = c.rope != "none" and c.heads == c.kv_heads and not c.qk_norm and packed_fits(rule, slots, *sizes)
        rotated = slots if packed else 0
        heads = sequences * c.layers * c.heads
        pairs = visited(rule, slots, slots, tiles.block_q)
        yield _KernelPass(forward * heads, c.head_dim, False, pairs, tiles.block_q, tiles.heads, rotated)
        if tiles.block_q_backward:  # otherwise XLA computes the backward pass
            pairs = visited(rule, slots, slots, tiles.block_q_backward)
            size, together = tiles.block_q_backward, tiles.heads_backward
            yield _KernelPass(heads, c.head_dim, True, pairs, size, together, rotated)


def causal_flops(flow: FlowConfig, work: Work) -> int:
    """FLOPs of fused causal attention (cuDNN's) in one training step: visible pairs, with recomputation.

    Counted as in `kernel_flops`, without the masked pairs of tiles and without the denoiser, which is not causal.
    """
    forward = 1 + (flow.remat in ("block", "attention"))
    attention = sum(part.attention for part in forward_parts(flow, work) if part.name != "denoiser")
    return attention * (2 * forward + 5) // 2


def _attentions(flow: FlowConfig, work: Work) -> Iterator[tuple[TransformerConfig, int, int, bool, Visibility]]:
    """For every network: its transformer, sequences, text slots, whether it is local to frames, and its mask."""
    for index, transformer in enumerate(flow.blocks):
        local = flow.is_local(index) and work.frames is not None
        sequences = work.batch * (work.frames or 1) if local else work.batch
        yield transformer, sequences, work.text if flow.is_conditioned(index) else 0, local, Causal()
    if flow.denoiser is not None:
        options = flow.denoiser
        text = work.text if options.conditional else 0
        unrestricted = work.frames is None or options.look_ahead is None
        rule = Full() if unrestricted else FrameWindow(text, work.frame, options.look_ahead or 1, options.window)
        yield flow.denoiser_transformer, work.batch, text, False, rule


def model_flops(flow: FlowConfig, work: Work) -> int:
    """FLOPs of one training step by the convention above."""
    return 3 * sum(part.total for part in forward_parts(flow, work))


def traced(jaxpr: Any) -> int:
    """FLOPs of all dense products of a traced program.

    The body of a scan is counted once per iteration, and that of any other loop once. Pallas kernels are not counted.

    Args:
      jaxpr: from `jax.make_jaxpr` or from a traced `jit` function, closed or open.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
        if equation.primitive.name == "pallas_call":
            continue
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = [traced(part) for part in jaxprs_in_params(equation.params)]
        total += max(inner, default=0) if equation.primitive.name == "cond" else turns * sum(inner)
    return total
