"""Analytical model of a step's memory, memory traffic and collectives.

It is used for GPUs where their compiler is not installed, and to start a batch-size search.

The memory model counts the training state, gradients, residuals of the backward pass and the layer being computed.
docs/plan.md compares it with what the compilers allocate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.config.transformer_config import TransformerConfig
from starflow_jax.costs.chips import Topology
from starflow_jax.costs.flops import Work, forward_parts
from starflow_jax.flows.parameters import abstract, count, num_bytes
from starflow_jax.nn.divided_cache import is_by_slots
from starflow_jax.nn.stored_kernels import bytes_each
from starflow_jax.planning.ahead_of_time import Memory
from starflow_jax.planning.roofline import Region, estimates
from starflow_jax.planning.transfers import Transfer
from starflow_jax.sharding.layout import BATCH
from starflow_jax.solvers import Jacobi
from starflow_jax.solvers.base import Stage
from starflow_jax.training.step.optimizer import init_optimizer

# Number of activations of the hidden width that a layer saves for its backward pass, not counting the MLP's hidden
# layer: two norms, query, key, value, the concatenated heads, both branch outputs.
_SAVED_BRANCHES = 8
# Bytes per attention weight of a chunk of queries: logits and their gradient in float32, weights in bfloat16.
_BYTES_A_WEIGHT = 10
_CHUNKS = 16
# Bytes that XLA's attention to a cache writes and reads per weight: logits, maximum, sum, rounded weights.
_BYTES_A_CHUNK_WEIGHT = 24
# How often one pass over a layer writes or reads each saved activation.
_ACCESSES = 2
# Values of `FlowConfig.remat` that compute the products of a layer again.
_LAYERS_AGAIN = ("block", "dense")


@dataclasses.dataclass(frozen=True)
class Layers:
    """Sizes of the layers of one network on one device, for one microbatch.

    Attributes:
      transformer: their shape; kernels: number of kernel parameters of one layer.
      tokens: token positions of all sequences on the device, after sequence sharding.
      sequences, slots: number of sequences and their full length, as the attention heads of the device see them.
      causal: whether its attention is causal; that of a denoiser is not.
      by_token: whether adaptive norms read a condition of every token, and not one of a whole sequence.
    """

    transformer: TransformerConfig
    kernels: int
    tokens: float
    sequences: float
    slots: int
    causal: bool = True
    by_token: bool = False


def networks(flow: FlowConfig, work: Work, sizes: dict[str, int], accumulate: int = 1) -> Iterator[Layers]:
    """Yields the networks of a flow on a mesh, the denoiser last."""
    rows = work.batch / accumulate / math.prod(sizes[name] for name in BATCH)
    transformers = [(flow.is_local(i), flow.is_conditioned(i), t, True) for i, t in enumerate(flow.blocks)]
    if flow.denoiser is not None:
        transformers.append((False, flow.denoiser.conditional, flow.denoiser_transformer, False))
    for local, reads_text, c, causal in transformers:
        per_frame = local and work.frames is not None
        slots = (work.frame if per_frame else work.tokens) + (work.text if reads_text else 0)
        sequences = rows * (work.frames or 1) if per_frame else rows
        hidden = c.expansion * c.width * c.width * c.mlp_kernels
        kernels = c.width * ((2 * c.heads + 2 * c.kv_heads) * c.head_dim + c.modulation * c.width) + hidden
        yield Layers(
            c, kernels, sequences * slots / sizes["sequence"], sequences, slots, causal, flow.token_classes > 0
        )


def budget(
    config: ExperimentConfig, topology: Topology, sizes: dict[str, int], work: Work, program: str, useful: float
) -> dict[str, Any]:
    """Computes the fields of an `estimate.Plan` analytically: memory, FLOPs, transfers, estimates."""
    training = program == "train"
    accumulate = config.train.accumulate if training else 1
    memory = train_memory(config, topology, sizes, work) if training else inverse_memory(config, topology, sizes, work)
    hardware = useful * _recomputed(config, topology, sizes, work) if training else useful
    moves = list(_moves(config.flow, sizes, work, accumulate) if training else _inverse_moves(config, sizes, work))
    hideable = needed = 0.0
    rows: dict[tuple[str, tuple[str, ...]], list[float]] = {}
    for kind, axes, group, sent, times in moves:
        bandwidth = topology.between_slices if axes == ("slices",) else topology.group_bandwidth(group)
        seconds = sent * times / bandwidth
        row = rows.setdefault((kind, axes), [0.0, 0.0])
        row[0] += times
        row[1] += sent * times
        if set(axes) <= set(BATCH):
            hideable += seconds
        else:
            needed += seconds
    traffic = _traffic(config, topology, sizes, work) if training else inverse_traffic(config, topology, sizes, work)
    parts = [Region("step", 0.0, 0.0, traffic, 0.0, 0.0, hideable, needed)]
    return {
        "memory": memory,
        "hardware_flops": hardware,
        "kernel_flops": 0.0,
        "transfers": tuple(Transfer(*key, int(n), sent, 0.0) for key, (n, sent) in rows.items() if sent),
        "estimates": tuple(estimates(parts, topology, model_flops=useful, hardware_flops=hardware)),
    }


def train_memory(config: ExperimentConfig, topology: Topology, sizes: dict[str, int], work: Work) -> Memory:
    """Memory of a training step on one device: the state as arguments, everything else as temporaries."""
    shards = sizes["fsdp"] * sizes["tensor"]
    params = abstract(config.flow)[1]
    parameters = count(params) / shards
    moments = jax.tree.leaves(jax.eval_shape(lambda: init_optimizer(config.train, params)))
    state = parameters * 4 * (1 + bool(config.train.ema))
    state += sum(leaf.size * leaf.dtype.itemsize for leaf in moments) / shards
    # Gradients of all layers, a second set if gradients are accumulated, and kernels cast to the compute dtype.
    gradients = parameters * (4 + 4 * (config.train.accumulate > 1) + 2 * (config.flow.dtype == "bfloat16"))
    word = 2 if config.flow.dtype == "bfloat16" else 4
    nets = list(networks(config.flow, work, sizes, config.train.accumulate))
    flow = nets[:-1] if config.flow.denoiser is not None else nets
    residuals = [
        sum(net.tokens * _saved_values(net, config.flow.remat, sizes) * word * net.transformer.layers for net in group)
        for group in (flow, nets[len(flow) :])
    ]
    at_work = max(
        2 * net.tokens * _saved_values(net, "none", sizes) * word
        + (0.0 if _is_fused(config, topology, net) else _weights(net, sizes))
        for net in nets
    )
    gathered = max(2 * net.kernels * word / sizes["tensor"] for net in nets)
    return Memory(state, gradients + max(residuals) + at_work + gathered, topology.chip.usable)


def inverse_memory(config: ExperimentConfig, topology: Topology, sizes: dict[str, int], work: Work) -> Memory:
    """Memory of a Jacobi iteration in the deep block: parameters as stored and as made ready, and the cache."""
    stored, ready = _inverse_parameters(config, sizes)
    cache = _cache(config, sizes, work)
    # Parameters that are not ready are cast in front of the loop. Of logits, a float32 and a rounded copy are alive.
    cast = _float_layer(config, sizes, work) if config.flow.quantise is not None or ready else stored / 2
    temporaries = cast + cache / config.flow.blocks[-1].layers
    temporaries += 6 * _chunk_weights(config, topology, sizes, work)
    return Memory(stored + ready + cache, temporaries, topology.chip.usable)


def inverse_traffic(config: ExperimentConfig, topology: Topology, sizes: dict[str, int], work: Work) -> float:
    """Main-memory traffic of such an iteration on one device in bytes: parameters that it reads, cache, logits."""
    stored, ready = _inverse_parameters(config, sizes)
    weights = _chunk_weights(config, topology, sizes, work) * config.flow.blocks[-1].layers
    read = ready or stored
    if config.flow.quantise is not None:  # each kernel is read, written in the compute dtype and read again
        deep = config.flow.blocks[-1]
        read = stored + 2 * _float_layer(config, sizes, work) * deep.layers
    return read + _cache(config, sizes, work) + _BYTES_A_CHUNK_WEIGHT * weights


def inverse_parts(config: ExperimentConfig, sizes: dict[str, int], work: Work) -> tuple[tuple[str, float], ...]:
    """What an inverse keeps on one device, in bytes by name: parameters as stored and as made ready, and the cache."""
    stored, ready = _inverse_parameters(config, sizes)
    return ("parameters", stored), ("of them made ready", ready), ("keys and values", _cache(config, sizes, work))


def _chunk_weights(config: ExperimentConfig, topology: Topology, sizes: dict[str, int], work: Work) -> float:
    """Number of attention weights of a layer, on one device, of a chunk of a guided batch that reads the cache.

    0 on TPUs, whose kernel stores none.
    """
    if topology.chip.kind == "tpu":
        return 0.0
    slots = work.tokens + work.text
    deep = config.flow.blocks[-1]
    heads = deep.heads / (_head_parts(deep.kv_heads, sizes["tensor"]) * sizes["sequence"])
    return 2 * work.batch * heads * _chunk(work) * slots


def _head_parts(kv_heads: int, tensor: int) -> int:
    """The number of parts that the tensor axis divides a cache into: 1 where it does not divide the heads."""
    return tensor if kv_heads % tensor == 0 else 1


def schedule(work: Work) -> Jacobi:
    """The solver of which `programs.inverse_program` compiles an iteration of the last chunk."""
    return Jacobi.paper() if work.chunk is None else Jacobi(block=work.chunk, growth=1)


def chunks(work: Work) -> tuple[Stage, ...]:
    """The chunks of that solver."""
    return schedule(work).plan(work.tokens, 0, work.frame)


def _chunk(work: Work) -> int:
    return chunks(work)[-1].kind.size


def _inverse_parameters(config: ExperimentConfig, sizes: dict[str, int]) -> tuple[float, float]:
    """Bytes of the parameters on one device: those stored, and those that an inverse makes ready; 0 for none."""
    params = abstract(config.flow)[1]
    casts = config.flow.dtype == "bfloat16"
    makes = config.sample.parameters == "ready" and (casts or sizes["fsdp"] > 1)
    # Quantised kernels and their scales are read as they are stored.
    leaves = jax.tree_util.tree_leaves_with_path(params)
    read = [leaf for path, leaf in leaves if leaf.dtype == "float32" and path[-1].key != "scale"]
    floats = sum(leaf.size for leaf in read) / sizes["tensor"]
    stored = num_bytes(params) / (sizes["tensor"] * sizes["fsdp"])
    return stored, (2 if casts else 4) * floats if makes else 0.0


def _float_layer(config: ExperimentConfig, sizes: dict[str, int], work: Work) -> float:
    """Bytes of the kernels of a quantised layer in the compute dtype, which its products read; 0 where none is."""
    if config.flow.quantise is None:
        return 0.0
    kernels = max(net.kernels for net in networks(config.flow, work, sizes))
    return (2 if config.flow.dtype == "bfloat16" else 4) * kernels / sizes["tensor"]


def _cache(config: ExperimentConfig, sizes: dict[str, int], work: Work) -> float:
    """Bytes of a guided batch's key/value cache on one device, sharded over heads or slots."""
    deep, word = config.flow.blocks[-1], 2 if config.flow.dtype == "bfloat16" else 4
    slots = work.tokens + work.text
    heads = _head_parts(deep.kv_heads, sizes["tensor"]) * sizes["sequence"]
    return 2 * 2 * work.batch * slots * deep.kv_heads * deep.head_dim * deep.layers * word / heads


def _saved_values(net: Layers, remat: str, sizes: dict[str, int]) -> float:
    """Number of values that a layer saves per token for its backward pass."""
    c = net.transformer
    hidden = c.mlp_kernels * c.expansion * c.width / sizes["tensor"]
    branches = _SAVED_BRANCHES * c.width
    modulated = c.modulation * c.width / (1 if net.by_token else net.slots)
    results, operands = c.heads * c.head_dim, (c.heads + 2 * c.kv_heads) * c.head_dim
    return {
        "block": c.width,
        "dense": c.width + results,
        "pointwise": 2 * c.width + results + operands + hidden * (c.mlp_kernels - 1) / c.mlp_kernels,
        "attention": 3 * c.width + hidden + modulated / 2,
        "mlp": branches + modulated / 2,
        "none": branches + hidden + modulated,
    }[remat]


def _is_fused(config: ExperimentConfig, topology: Topology, net: Layers) -> bool:
    """Whether attention without a cache stores no weights in main memory: by kernels on TPUs, by cuDNN on GPUs."""
    flow, c = config.flow, net.transformer
    if flow.dtype != "bfloat16" or flow.kernels == "xla":
        return False
    by_cudnn = net.causal and c.head_dim % 8 == 0 and c.head_dim <= 128 and net.slots % 2 == 0
    return topology.chip.kind == "tpu" or flow.kernels == "pallas" or by_cudnn


def _weights(net: Layers, sizes: dict[str, int]) -> float:
    """Bytes of attention weights allocated at once if no fused kernel avoids materializing them."""
    heads = max(net.transformer.heads / (sizes["tensor"] * sizes["sequence"]), 1)
    rows = max(net.slots / _CHUNKS, min(net.slots, 128))
    return net.sequences * heads * rows * net.slots * _BYTES_A_WEIGHT


def _recomputed(config: ExperimentConfig, topology: Topology, sizes: dict[str, int], work: Work) -> float:
    """Ratio of computed to model FLOPs: rematerialized layers, and attention weights, which are always recomputed."""
    parts = forward_parts(config.flow, work)
    dense, attention = sum(p.dense for p in parts), sum(p.attention for p in parts)
    nets = list(networks(config.flow, work, sizes))
    # The last product of a layer is not recomputed: the backward pass does not need its result.
    kernels = sum(net.kernels * net.transformer.layers for net in nets)
    last = sum(net.transformer.expansion * net.transformer.width**2 * net.transformer.layers for net in nets) / kernels
    # Of the two products of attention, a fused backward pass recomputes the first.
    fused = all(_is_fused(config, topology, net) for net in nets)
    again = 0.5 if fused else 1
    fractions = {
        "block": (1 - last, 1),
        "dense": (1 - last, 0 if fused else 1),
        "attention": (0.25, 1),
        "mlp": (0.7, 0),
        "pointwise": (0, 0 if fused else 1),
        "none": (0, 0),
    }[config.flow.remat]
    extra = dense * fractions[0] + attention * (fractions[1] + again)
    return 1 + extra / (3 * (dense + attention))


def _moves(
    flow: FlowConfig, sizes: dict[str, int], work: Work, accumulate: int
) -> Iterator[tuple[str, tuple[str, ...], int, float, int]]:
    """Yields the collectives of a step: kind, axes, group size, bytes that one device sends each time, count."""
    slices, data, fsdp, tensor, sequence = sizes.values()
    word = 2 if flow.dtype == "bfloat16" else 4
    passes = 2 + (flow.remat in _LAYERS_AGAIN)

    def ring(group: int, amount: float) -> float:
        return amount * (group - 1) / group

    for net in networks(flow, work, sizes, accumulate):
        c, times = net.transformer, net.transformer.layers * accumulate
        kernels = net.kernels / tensor
        # XLA:GPU gathers what a layer is recomputed from, all but its last kernel, in float32, and casts it then.
        recomputed = (net.kernels - c.expansion * c.width**2) / tensor if flow.remat in _LAYERS_AGAIN else 0
        yield "all-gather", ("fsdp",), fsdp, ring(fsdp, kernels * word), times
        yield "all-gather", ("fsdp",), fsdp, ring(fsdp, kernels * word + recomputed * (4 - word)), times
        yield "reduce-scatter", ("fsdp",), fsdp, ring(fsdp, kernels * 4), times
        yield "all-reduce", ("data",), data, 2 * ring(data, kernels * 4 / fsdp), times
        # Of sums inside a slice, whose parts its devices exchange with other slices.
        yield "all-reduce", ("slices",), slices, 2 * ring(slices, kernels * 4 / (fsdp * data)), times
        hidden = net.tokens * c.width * word
        yield "all-reduce", ("tensor",), tensor, 2 * ring(tensor, hidden), 2 * passes * times
        num_values = net.tokens * (2 * c.heads + 2 * c.kv_heads) * c.head_dim * word / tensor
        yield "all-to-all", ("sequence",), sequence, ring(sequence, num_values), passes * times


def _inverse_moves(
    config: ExperimentConfig, sizes: dict[str, int], work: Work
) -> Iterator[tuple[str, tuple[str, ...], int, float, int]]:
    """Yields the collectives of a Jacobi iteration in the deep block, as `_moves` does."""
    tensor, sequence, fsdp = sizes["tensor"], sizes["sequence"], sizes["fsdp"]
    deep, word = config.flow.blocks[-1], 2 if config.flow.dtype == "bfloat16" else 4
    # Both rows, guided and not, of the share of a chunk's tokens.
    tokens = 2 * work.batch * _chunk(work) / sequence
    # Sums over heads, and over channels of the MLP; partial sums are float32.
    hidden = tokens * deep.width * 4
    yield "all-reduce", ("tensor",), tensor, 2 * hidden * (tensor - 1) / tensor, 2 * deep.layers
    # Tokens for heads, or all tokens to all devices; and the outputs back.
    parts = _head_parts(deep.kv_heads, tensor)
    inputs = tokens * (deep.heads + 2 * deep.kv_heads) * deep.head_dim * word / parts
    outputs = tokens * deep.heads * deep.head_dim * word / parts
    if is_by_slots(deep.kv_heads, tensor, sequence, config.flow.cache):
        yield "all-gather", ("sequence",), sequence, inputs * (sequence - 1), deep.layers
        outputs *= sequence * (1 + 4 / (word * deep.head_dim))  # of every interval, with a float32 for each head
    else:
        outputs += inputs
    yield "all-to-all", ("sequence",), sequence, outputs * (sequence - 1) / sequence, deep.layers
    # Quantised kernels are never made ready, and are gathered in the bytes that they are stored in.
    if config.sample.parameters == "stored" or config.flow.quantise is not None:
        net = list(networks(config.flow, work, sizes))[config.flow.num_blocks - 1]
        each = word if config.flow.quantise is None else bytes_each(config.flow.quantise)
        yield "all-gather", ("fsdp",), fsdp, net.kernels * each / tensor * (fsdp - 1) / fsdp, deep.layers


def _traffic(config: ExperimentConfig, topology: Topology, sizes: dict[str, int], work: Work) -> float:
    """Main-memory traffic of one device in bytes: activations, kernels, attention weights, the optimizer."""
    flow, accumulate = config.flow, config.train.accumulate
    word = 2 if flow.dtype == "bfloat16" else 4
    passes = 3 + (flow.remat in _LAYERS_AGAIN)
    total = 32.0 * count(abstract(flow)[1]) / (sizes["fsdp"] * sizes["tensor"])
    for net in networks(flow, work, sizes, accumulate):
        c = net.transformer
        values = net.tokens * _saved_values(net, "none", sizes) * word * _ACCESSES
        heads = c.heads / (sizes["tensor"] * sizes["sequence"])
        fused = _is_fused(config, topology, net)
        pairs = 0.0 if fused else net.sequences * heads * net.slots * math.ceil(net.slots / 2)
        logits = pairs * _BYTES_A_WEIGHT
        kernels = 2 * net.kernels * word / sizes["tensor"]
        total += accumulate * c.layers * passes * (values + logits + kernels)
    return total
