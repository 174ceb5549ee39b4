"""Writes the folder of a quantised run from that of a float32 run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from starflow_jax.core.choices import Quantisation, choices
from starflow_jax.core.config.checks import check_choice, check_integer
from starflow_jax.core.config.experiment_config import with_quantise
from starflow_jax.core.request_errors import require
from starflow_jax.flows.parameters import abstract, num_bytes
from starflow_jax.training.checkpoints.finished_run import check_new, read_origin, run_config
from starflow_jax.training.checkpoints.ported import write_streams
from starflow_jax.training.checkpoints.quantised_streams import quantised_streams
from starflow_jax.training.checkpoints.stored_run import stored_run


@dataclasses.dataclass(frozen=True)
class QuantiseRequest:
    """A request to write a run whose kernels are stored in 8 or 4 bits.

    Attributes:
      flow: folder of a float32 run.
      workdir: folder of the quantised run, new or empty.
      quantise: how its kernels are stored, `FlowConfig.quantise`.
      step: of the checkpoint; None for the newest.
      ema: whether to use the exponential moving average of the parameters, where the checkpoint has one.

    Raises:
      ValueError: an unknown `quantise`, or a negative step.
    """

    flow: Path
    workdir: Path
    quantise: Quantisation
    step: int | None = None
    ema: bool = True

    def __post_init__(self) -> None:
        check_choice("quantise", self.quantise, choices(Quantisation))
        if self.step is not None:
            check_integer("step", self.step, minimum=0)


@dataclasses.dataclass(frozen=True)
class Quantised:
    """What was written.

    Attributes:
      name: of the experiment; step: of the checkpoint.
      bytes_before, bytes: of the parameters, before and after.
      origin: where the parameters come from, which both runs record; None without a record.
    """

    name: str
    step: int
    bytes_before: int
    bytes: int
    origin: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self) | {"share": self.bytes / self.bytes_before}


def quantise_run(request: QuantiseRequest) -> Quantised:
    """Writes the folder of a quantised run with one checkpoint, piece by piece; it appears complete or not at all.

    A float32 parameter of a block, of all its layers, is in memory at a time; of a ported run, a layer of it.

    The parameters are those that sampling would read: the checkpoint has no moving average beside them, and nothing
    that training needs. Where they come from is recorded as in the float32 run. The calibration and the learned inverse
    of that run were made for its flow, and stay with it.

    Raises:
      RequestError: the run is quantised already.
      ValueError: there is no such run or checkpoint, it is damaged, the folder is not empty, or Qwix is not installed.
      OSError: the folder cannot be written.
    """
    check_new(request.workdir)
    config = run_config(request.flow)
    held = config.flow.quantise
    require(held is None, "{flow} must be a float32 run, got {0} with {1} weights", str(request.flow), held)
    quantised = with_quantise(config, request.quantise)
    run = stored_run(request.flow, config, request.step, ema=request.ema and config.train.ema > 0)
    streams = quantised_streams(quantised.flow, run.streams)
    origin = read_origin(request.flow)
    with run.named():
        write_streams(request.workdir, quantised, streams, run.step, origin, run.check)
    before, after = (num_bytes(abstract(one.flow)[1]) for one in (config, quantised))
    return Quantised(config.name, run.step, before, after, origin)
