"""The parameters of a float32 flow as those of a quantised one, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from starflow_jax.core.choices import Quantisation
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.parameters import Params, abstract
from starflow_jax.nn.stored_kernels import quantised_kernel, require_qwix
from starflow_jax.porting.tensor_names import flatten, unflatten
from starflow_jax.training.checkpoints.streamed import Streamed


def quantised_streams(flow: FlowConfig, streams: Mapping[str, Streamed]) -> dict[str, Streamed]:
    """The parameters of a quantised flow, each made when it is read.

    Args:
      flow: the configuration, whose `quantise` is not None.
      streams: all parameters of the float32 flow by dotted path, stacked layers piece by piece.

    Returns:
      The parameters by dotted path: kernels of layers as stored numbers and scales, each of which reads the float32
      kernels, and everything else as it is.

    Raises:
      ValueError: Qwix is not installed.
    """
    assert flow.quantise is not None
    require_qwix()
    result = {}
    for path, leaf in flatten(abstract(flow)[1]).items():
        stream, part = streams.get(path), 0
        if stream is None:  # a scale
            stream, part = streams[f"{path.rpartition('.')[0]}.kernel"], 1
        elif stream.dtype == leaf.dtype:
            result[path] = stream
            continue
        shape = tuple(leaf.shape)
        pieces = _quantised(stream.pieces, flow.quantise, part)
        result[path] = Streamed(shape, np.dtype(leaf.dtype), (1, *shape[1:]), pieces)
    return result


def _quantised(
    kernels: Callable[[], Iterator[tuple[int | None, np.ndarray]]], scheme: Quantisation, part: int
) -> Callable[[], Iterator[tuple[int | None, np.ndarray]]]:
    """The stored numbers (part 0) or the scales (part 1) of stacked kernels, layer by layer."""

    def pieces() -> Iterator[tuple[int | None, np.ndarray]]:
        for layer, kernel in kernels():
            assert layer is not None  # only layers are quantised, and they are stacked
            yield layer, quantised_kernel(kernel, scheme)[part]

    return pieces


def quantised_params(flow: FlowConfig, params: Params) -> Params:
    """The parameters of a quantised flow, on the host, from those of the float32 flow in memory.

    Args:
      flow: the configuration, whose `quantise` is not None.
      params: of the float32 flow, as `flows.parameters.split` gives them.

    Raises:
      ValueError: Qwix is not installed.
    """

    def streamed(path: str, leaf: Any) -> Streamed:
        value = np.asarray(leaf)
        parts: list[tuple[int | None, np.ndarray]] = [(None, value)]
        if is_stacked(path):
            parts = list(enumerate(value))
        return Streamed(value.shape, value.dtype, value.shape, lambda: iter(parts))

    streams = {path: streamed(path, leaf) for path, leaf in flatten(params).items()}
    return unflatten({path: collected(stream) for path, stream in quantised_streams(flow, streams).items()})


def is_stacked(path: str) -> bool:
    """Whether the parameter at a dotted path holds all layers of a transformer, along its first axis."""
    return "layers" in path.split(".")


def collected(stream: Streamed) -> np.ndarray:
    """A parameter that is read to its end."""
    value = np.empty(stream.shape, stream.dtype)
    for index, piece in stream.pieces():
        value[... if index is None else index] = piece
    return value
