"""`distribution`: a trained model, or a flow, as a `Distribution`."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

from starflow_jax.api.flow_distribution import Distribution
from starflow_jax.api.model_likelihood import check_level
from starflow_jax.api.model_loading import from_pretrained
from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.flow import Flow
from starflow_jax.flows.parameters import split
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sampling.sample_requests import SolverRequest
from starflow_jax.sampling.solver_choice import choose_solver
from starflow_jax.sharding.layout import Layout, tree_layout
from starflow_jax.solvers import AnySolver, Sequential, is_approximate


def vector_shape(config: FlowConfig) -> tuple[int, ...]:
    """The shape of one vector of a flow on vectors: (n,), or (n, d) with more than one channel."""
    tokens = config.image_shape[0]
    return (tokens,) if config.channels == 1 else (tokens, config.channels)


def distribution(
    model: Run | Flow | Path | str,
    *,
    solver: AnySolver | SolverRequest | str | None = None,
    frames: int | None = None,
    noise_level: float | None = None,
    shape: tuple[int, ...] | None = None,
    layout: Layout | None = None,
) -> Distribution:
    """A trained model as a distribution that other libraries understand.

    Args:
      model: a trained model, its folder or address, or a flow.
      solver: draws samples; its name or a solver, None for that of the run's configuration (of a flow: sequential).
      frames: of videos, counted as the flow reads them; None for as many as the run was trained on, and for images.
      noise_level: of a noise-conditioned model; None for its highest one, at which it samples.
      shape: of one x, any with as many numbers as the flow reads, such as (784,); None for the flow's own, and
        for a run on vectors that of its file, (n,) or (n, d).
      layout: the devices to spread the parameters of a folder over; None for one device.

    Raises:
      ValueError: there is no such run, or an argument does not fit the model.
    """
    if isinstance(model, Path | str):
        model = from_pretrained(model, layout=layout)
    else:
        check(layout is None, "layout must be None for a model that is loaded; pass it to from_pretrained")
    learned = None
    if isinstance(model, Run):
        config, params = model.config.flow, model.params
        if shape is None and model.config.data.traits.vectors:
            shape = vector_shape(config)
        frames = (model.config.data.frames or None) if frames is None else frames
        solver = choose_solver(solver, model, batch=1, warn=lambda text: warnings.warn(text, stacklevel=3))
        learned = model.learned_for(solver)
    else:
        config, params = model.config, split(model)[1]
        solver = Sequential() if solver is None else solver
        check(not isinstance(solver, SolverRequest | str), f"solver must be a solver object for a flow, got {solver!r}")
        assert not isinstance(solver, SolverRequest | str)
    check(
        not is_approximate(solver),
        "solver must evaluate the flow, got OnePass, whose estimates have no density",
    )
    check_level(config, noise_level)
    if frames is not None:
        check_integer("frames", frames, minimum=1)
        check(config.axes == 3, f"frames must be None for a flow of still images, got {frames}")
    still = (*config.image_shape, config.channels)
    data_shape = still if frames is None else (frames, *still)
    shape = data_shape if shape is None else tuple(shape)
    check(
        math.prod(shape) == math.prod(data_shape),
        f"shape must have the {math.prod(data_shape)} numbers of {list(data_shape)}, got {list(shape)}",
    )
    return Distribution(
        params,
        noise_level,
        learned,
        config=config,
        shape=shape,
        data_shape=data_shape,
        solver=solver,
        layout=tree_layout(params),
    )
