"""Models of the solvers' benchmark: trained runs, and scaled-down released architectures with random weights."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config import FlowConfig
from starflow_jax.flows.guidance import AnyGuidance, make_guidance
from starflow_jax.flows.parameters import Params, initialise
from starflow_jax.solvers.automatic.calibration import Calibration
from starflow_jax.solvers.automatic.solver_measurement import calibrate
from starflow_jax.training import load_run
from starflow_jax.training.calibrate_request import CalibrateRequest
from starflow_jax.training.run_calibration import CALIBRATION_FILE, calibrate_run, load_conditions, read_calibration

_SHALLOW = (2, 2, 2, 2, 2)
_COMMON = {
    "rope": True, "sos": True, "order": "L2R", "scale": "softplus", "soft_clip": 4.0, "final_norm": True,
    "text_dim": 8, "text_length": 8, "cond_top_only": True, "num_blocks": 6, "head_dim": 32, "channels": 4,
}  # fmt: skip

# Six blocks of 2 2 2 2 2 N layers, as in the released models (N = 24); the deep block is wider; guidance is 3.5.
_RANDOM = {
    "starflow_v_7b, scaled": FlowConfig(
        image_size=8, width=32, deep_width=64, layers_per_block=(*_SHALLOW, 6), temporal_causal=True,
        shallow_local=True, **_COMMON,
    ),
    "starflow_3b_t2i, scaled": FlowConfig(
        image_size=24, width=32, deep_width=64, layers_per_block=(*_SHALLOW, 6), **_COMMON
    ),
}  # fmt: skip
_TINY = {
    "tiny video": FlowConfig(
        image_size=4, width=32, deep_width=32, layers_per_block=(1, 1), temporal_causal=True, shallow_local=True,
        **{**_COMMON, "num_blocks": 2},
    ),
}  # fmt: skip
_WEIGHT = 3.5
_SAMPLES = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A flow and its options of sampling.

    Attributes:
      name: its name in tables. config, params: the flow. shape: of a sample. weight: of guidance.
      calibration: of the flow. known: conditions [n, ...], used in turn; None for an unconditional flow.
    """

    name: str
    config: FlowConfig
    params: Params
    shape: tuple[int, ...]
    weight: float
    calibration: Calibration
    known: np.ndarray | None

    @property
    def frames(self) -> int:
        """Number of frames T; 0 for still images."""
        return self.shape[0] if len(self.shape) == 4 else 0

    @property
    def tokens(self) -> int:
        """Number of tokens N of the deep block."""
        rows, columns = self.config.grid
        return rows * columns * max(self.frames, 1)

    def conditions(self, batch: int) -> jax.Array | None:
        """Conditions of a batch."""
        return None if self.known is None else jnp.asarray(np.resize(self.known, (batch, *self.known.shape[1:])))

    @staticmethod
    def guidance(config: FlowConfig, weight: float, cond: jax.Array | None) -> AnyGuidance | None:
        """The guidance that the commands use for this flow and weight."""
        return make_guidance(config.family, cond, weight) if weight and cond is not None else None


def models_of(options: argparse.Namespace) -> Iterator[Model]:
    """Yields the models that the options select; each is calibrated when it is requested."""
    for workdir in options.workdir:
        yield trained(workdir, options.guidance, options.target)
    if options.random or not options.workdir:
        for name, config in (_TINY if options.quick else _RANDOM).items():
            yield random(name, config, options.target)


def trained(workdir: Path, weight: float | None, target: float) -> Model:
    """A trained run, with its stored calibration if step, weight and target match, else with a new one."""
    config, _, params, step = load_run(workdir)
    weight = config.sample.guidance if weight is None else weight
    calibration = read_calibration(workdir, config) if (workdir / CALIBRATION_FILE).is_file() else None
    if calibration is None or (calibration.step, calibration.guidance, calibration.target_error) != (
        step,
        weight,
        target,
    ):
        request = CalibrateRequest(samples=_SAMPLES, guidance=weight, target_error=target)
        calibration = calibrate_run(config, params, request, step=step)
    cond = load_conditions(config, "test", 16)
    cond_array = None if cond is None else np.asarray(cond)
    return Model(config.name, config.flow, params, calibration.shape, weight, calibration, cond_array)


def random(name: str, config: FlowConfig, target: float) -> Model:
    """A flow with random weights, whose output projections are large enough for solvers to need several iterations."""
    _, params = initialise(config, jax.random.key(0))
    for index, block in enumerate(params["blocks"].values()):
        kernel = block["proj_out"]["kernel"]
        draws = jax.random.normal(jax.random.key(index), kernel.shape)
        block["proj_out"]["kernel"] = 0.3 * kernel.shape[0] ** -0.5 * draws
    frames = (2 if config.image_size == 4 else 8,) if config.temporal_causal else ()
    shape = (*frames, *config.image_shape, config.channels)
    cond_array = np.asarray(jax.random.normal(jax.random.key(1), (16, config.text_length, config.text_dim)))
    cond = jnp.asarray(cond_array[:_SAMPLES])
    calibration = calibrate(
        config,
        params,
        jax.random.normal(jax.random.key(2), (_SAMPLES, *shape)),
        cond,
        guidance=Model.guidance(config, _WEIGHT, cond),
        weight=_WEIGHT,
        target_error=target,
        rounds=1 if config.image_size == 4 else 3,
    )
    return Model(name, config, params, shape, _WEIGHT, calibration, cond_array)
