"""Rounds of drawing, reweighting and tuning, by which a flow learns a target of which no samples are known."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from starflow_jax.api.flow_distribution import Distribution
from starflow_jax.core.config.checks import check, check_integer, check_real
from starflow_jax.core.storage.addresses import refuse_address
from starflow_jax.targets.annealing import anneal
from starflow_jax.targets.fitted_rounds import Round, read_rounds, write_round
from starflow_jax.targets.importance import CLIPPED, draw
from starflow_jax.targets.proposals import Proposal, Target
from starflow_jax.targets.symmetries import Symmetrised, images_of_a_point, with_params
from starflow_jax.targets.tuning import check_tuning, tune


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """The result of `fit`.

    Attributes:
      distribution: the flow after the last round, symmetrised where the given one was.
      rounds: what was found in each round, before its tuning.
    """

    distribution: Distribution | Symmetrised
    rounds: tuple[Round, ...]


def fit(
    distribution: Distribution | Symmetrised,
    target: Target,
    key: PRNGKeyArray,
    *,
    rounds: int = 3,
    num: int = 8192,
    steps: int = 1000,
    batch_size: int = 256,
    lr: float = 1e-3,
    reverse: float = 0.0,
    start: Proposal | None = None,
    minimum: float = 0.1,
    clip: float = CLIPPED,
    annealing: Mapping[str, Any] | None = None,
    condition: Any = None,
    folder: Path | str | None = None,
) -> Fitted:
    """Teaches a flow a target, by samples that its rounds find themselves.

    The first round anneals points from `start` to the target. Each later one draws from the flow and resamples by
    clipped weights; where the effective sample size is below `minimum`, it anneals the points of the flow instead. Then
    the flow is tuned on the points. The learning rate halves from round to round.

    Args:
      distribution, target, condition: as in `draw`.
      key: of all noise; that of a round is a function of the key and of the number of the round.
      rounds: number of rounds; num: points in each.
      steps, batch_size, lr, reverse: as in `tune`; the reverse divergence takes part from the second round on.
      start: where the first round anneals from, such as a `Normal`; None for the flow.
      minimum: share of the effective sample size among the points.
      clip: share of the largest weights that are lowered.
      annealing: further arguments of `anneal`.
      folder: keeps the parameters after each round, and resumes after the last one that is complete there; None keeps
        nothing. The result is the same as without an interruption. The target is a function, which is not compared:
        each target needs a folder of its own.

    Raises:
      ValueError: an argument is out of range, or the folder holds rounds of other arguments.
    """
    check_integer("rounds", rounds, minimum=1)
    check_integer("num", num, minimum=2)
    for name, share in (("minimum", minimum), ("clip", clip)):
        check_real(name, share, minimum=0.0)
        check(share < 1, f"{name} must be below 1, got {share}")
    check_tuning(steps=steps, batch_size=batch_size, lr=lr, reverse=reverse)
    options = dict(annealing or {})
    settings = {
        "num": num,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "reverse": reverse,
        "minimum": minimum,
        "clip": clip,
        "annealing": options,
        "key": np.asarray(jax.random.key_data(key)).ravel().tolist(),
        "start": None if start is None else f"{type(start).__name__} {list(start.shape)} {_digest(start)}",
        "flow": _digest(distribution.params),
        "condition": None if condition is None else _digest(condition),
    }
    if isinstance(distribution, Symmetrised):
        settings["symmetries"] = images_of_a_point(distribution)
    done: list[Round] = []
    if folder is not None:
        refuse_address("folder", folder)
        folder = Path(folder)
        done, params = read_rounds(folder, settings, distribution.params, rounds)
        distribution = with_params(distribution, params)
    for number in range(len(done), rounds):
        draw_key, resample_key, tune_key = jax.random.split(jax.random.fold_in(key, number), 3)
        begun = time.perf_counter()
        found = None
        if number or start is None:
            drawn = draw(distribution, target, draw_key, num, condition=condition)
            share = float(drawn.effective_sample_size) / num
            found = Round("drawn", share, float(drawn.log_z), float(drawn.log_z_error))
            points = drawn.clipped(clip).resampled(resample_key)
        if found is None or found.effective < minimum:
            first = distribution if number or start is None else start
            annealed = anneal(
                first, target, draw_key, num, condition=condition if first is distribution else None, **options
            )
            share = float(jnp.nanmin(annealed.effective))
            found = Round("annealed", share, float(annealed.log_z), None, int(annealed.levels))
            points = annealed.samples.resampled(resample_key)
        distribution, losses = tune(
            distribution,
            points,
            tune_key,
            steps=steps,
            batch_size=batch_size,
            lr=lr / 2**number,
            target=target,
            reverse=reverse if number else 0.0,
            condition=condition,
        )
        loss = float(jnp.mean(losses[-max(1, steps // 10) :]))
        found = dataclasses.replace(found, loss=loss, seconds=time.perf_counter() - begun)
        done.append(found)
        if folder is not None:
            write_round(folder, settings, done, distribution.params)
    return Fitted(distribution, tuple(done))


def _digest(tree: Any) -> str:
    """Eight digits of the arrays of a pytree, by which a record tells them from others."""
    digest = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        digest.update(f"{leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
    return digest.hexdigest()[:8]
