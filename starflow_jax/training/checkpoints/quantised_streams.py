"""The parameters of a float32 flow as those of a quantised one, made piece by piece as they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from starflow_jax.core.choices import Quantisation
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.parameters import Params, abstract
from starflow_jax.nn.stored_kernels import quantised_kernel, require_qwix
from starflow_jax.porting.tensor_names import flatten, is_stacked, unflatten
from starflow_jax.training.checkpoints.streamed import Streamed


def quantised_streams(flow: FlowConfig, streams: Mapping[str, Streamed]) -> dict[str, Streamed]:
    """The parameters of a quantised flow, each made when it is read.

    Args:
      flow: the configuration, whose `quantise` is not None.
      streams: all parameters of the float32 flow by dotted path, stacked layers piece by piece.

    Returns:
      The parameters by dotted path: kernels of layers as stored numbers and scales, and everything else as it is. The
      float32 kernels are read for the numbers, and not again for the scales if those are read after them.

    Raises:
      ValueError: Qwix is not installed.
    """
    assert flow.quantise is not None
    require_qwix()
    result, expected = {}, flatten(abstract(flow)[1])
    for path, stream in streams.items():
        if stream.dtype == expected[path].dtype:
            result[path] = stream
            continue
        kernels = _Kernels(stream.pieces, flow.quantise)
        owner = path.rpartition(".")[0]
        for name, pieces in ((path, kernels.numbers), (f"{owner}.scale", kernels.scales)):
            leaf = expected[name]
            result[name] = Streamed(tuple(leaf.shape), np.dtype(leaf.dtype), (1, *leaf.shape[1:]), pieces)
    return {path: result[path] for path in expected}


class _Kernels:
    """The kernels of a stack of layers, quantised layer by layer.

    Args:
      kernels: yields the layers with their float32 kernels; scheme: how they are stored.
    """

    def __init__(self, kernels: Callable[[], Iterator[tuple[int | None, np.ndarray]]], scheme: Quantisation):
        self._kernels, self._scheme = kernels, scheme
        self._kept: list[np.ndarray] = []  # the scales of numbers that were read, until they are read themselves

    def numbers(self) -> Iterator[tuple[int | None, np.ndarray]]:
        """The stored numbers of each layer."""
        scales = []
        for layer, kernel in self._kernels():
            assert layer is not None  # only layers are quantised, and they are stacked
            numbers, scale = quantised_kernel(kernel, self._scheme)
            scales.append(scale)
            yield layer, numbers
        self._kept = scales

    def scales(self) -> Iterator[tuple[int | None, np.ndarray]]:
        """The scales of each layer."""
        if not self._kept:
            for _ in self.numbers():
                pass
        kept, self._kept = self._kept, []
        yield from enumerate(kept)


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


def collected(stream: Streamed) -> np.ndarray:
    """A parameter that is read to its end."""
    value = np.empty(stream.shape, stream.dtype)
    for index, piece in stream.pieces():
        value[... if index is None else index] = piece
    return value
