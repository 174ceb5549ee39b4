"""The gradient transformations of Optax that `train.optimizer` names, without the learning rate.

A transformation turns the gradients of a group of parameters into the direction of descent, weight decay included. The
learning rate is applied afterwards (`training.step.optimizer`), because it depends on the number of updates, which
advances even if an update is skipped. Schedule-free AdamW is the exception: its averages need the learning rate.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from optax import contrib

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.optimizer_config import OptimizerConfig
from starflow_jax.core.config.train_config import TrainConfig

Params = dict[str, Any]

# Kernels of the layers of transformers, which map one vector space to another: [..., inputs, outputs], and those of
# `qkv` [..., inputs, heads, group + 2, head_dim]. First and last projections are left to AdamW, as Muon's author does.
_MATRICES = re.compile(r"(^|/)layers/.*(qkv|proj|up|gate|down)/kernel$")
_QKV = re.compile(r"(^|/)qkv/kernel$")


class MuonAndAdam(NamedTuple):
    """The state of "muon": momenta of matrices, and the moments of AdamW of all other parameters."""

    matrices: optax.OptState
    others: optax.OptState


def descent(config: TrainConfig, betas: tuple[float, float], optimizer: OptimizerConfig) -> Any:
    """The transformation of gradients into directions of descent, with decoupled weight decay.

    Args:
      config: weight_decay; betas: of AdamW.
      optimizer: any but "schedule-free".
    """
    decay = optax.add_decayed_weights(config.weight_decay)
    dtype = jnp.dtype(optimizer.moment_dtype)
    adam = optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=1e-8, mu_dtype=dtype)
    if optimizer.name == "lion":
        b1, b2 = optimizer.lion.betas
        return optax.chain(optax.scale_by_lion(b1=b1, b2=b2, mu_dtype=dtype), decay)
    if optimizer.name == "adafactor":
        return optax.chain(_adafactor(optimizer, dtype), decay)
    if optimizer.name == "muon":
        return optax.chain(_muon(optimizer, dtype, adam), decay)
    return optax.chain(adam, decay)


def schedule_free(config: TrainConfig, rate: jax.Array | float) -> Any:
    """Schedule-free AdamW for updates with the learning rate `rate`; its updates are added to the point y."""
    base = optax.chain(
        # AdamW without a first moment, whose place the average takes.
        optax.scale_by_rms(decay=config.betas[1], eps=1e-8, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(config.weight_decay),
        optax.stateless(lambda updates, _: scaled(config.optimizer, updates, -rate)),
    )
    return contrib.schedule_free(base, learning_rate=lambda _: rate, b1=config.optimizer.schedule_free.beta)


def scaled(optimizer: OptimizerConfig, updates: Params, rate: jax.Array | float) -> Params:
    """Updates of parameters times the learning rate, and times the factor of the first matching pattern."""
    if not optimizer.lr_factors:
        return jax.tree.map(lambda update: rate * update, updates)

    def factor(path: str) -> float:
        matching = (factor for pattern, factor in optimizer.lr_factors if fnmatch.fnmatchcase(path, pattern))
        return next(matching, 1.0)

    return _map_with_path(lambda path, update: (rate * factor(path)) * update, updates)


def check_lr_factors(optimizer: OptimizerConfig, params: Params) -> None:
    """Checks that every pattern of `lr_factors` matches a parameter.

    Raises:
      ValueError: one does not.
    """
    paths = ["/".join(path) for path in traverse_util.flatten_dict(params)]
    for pattern, _ in optimizer.lr_factors:
        check(
            bool(fnmatch.filter(paths, pattern)),
            "train.optimizer.lr_factors must have patterns that match paths of parameters, such as "
            f"{paths[0]!r} and {paths[-1]!r}, got {pattern!r}",
        )


def _adafactor(optimizer: OptimizerConfig, dtype: jnp.dtype) -> Any:
    options = optimizer.adafactor
    parts = [
        optax.scale_by_factored_rms(decay_rate=options.decay, min_dim_size_to_factor=options.factor_from),
        optax.clip_by_block_rms(options.clip),
    ]
    if options.relative:
        parts.append(optax.scale_by_param_block_rms())
    if options.momentum:
        parts.append(optax.ema(options.momentum, debias=False, accumulator_dtype=dtype))
    return optax.chain(*parts)


def _muon(optimizer: OptimizerConfig, dtype: jnp.dtype, adam: optax.GradientTransformation) -> Any:
    """Muon for the matrices of transformers, `adam` for everything else."""
    options = optimizer.muon

    def resized(path: str, update: jax.Array) -> jax.Array:
        inputs, outputs = _axes(path, update.ndim)
        rows, columns = (math.prod(update.shape[axis] for axis in axes) for axes in (inputs, outputs))
        if options.update_rms is None:
            return math.sqrt(max(1.0, columns / rows)) * update
        # The root mean square of an orthogonal matrix is 1 / sqrt(max(rows, columns)).
        return options.update_rms * math.sqrt(max(rows, columns)) * update

    matrices = optax.chain(
        contrib.scale_by_muon(
            ns_steps=options.iterations,
            beta=options.momentum,
            nesterov=options.nesterov,
            mu_dtype=dtype,
            weight_dimension_numbers=_matrix_axes,
        ),
        optax.stateless(lambda updates, _: _map_with_path(resized, updates)),
    )

    def init(params: Params) -> MuonAndAdam:
        parts = _split(params)
        return MuonAndAdam(matrices.init(parts["matrices"]), adam.init(parts["others"]))

    def update(updates: Params, state: MuonAndAdam, params: Params | None = None) -> tuple[Params, MuonAndAdam]:
        parts = _split(updates)
        first, matrix_state = matrices.update(parts["matrices"], state.matrices)
        second, other_state = adam.update(parts["others"], state.others)
        flat = traverse_util.flatten_dict(first) | traverse_util.flatten_dict(second)
        return traverse_util.unflatten_dict(flat), MuonAndAdam(matrix_state, other_state)

    return optax.GradientTransformation(init, cast(Any, update))


def _split(params: Params) -> dict[str, Params]:
    """The parameters of kinds "matrices" and "others", in nested dictionaries like `params`."""
    flat = traverse_util.flatten_dict(params)
    is_matrix = {path: bool(_MATRICES.search("/".join(path))) for path in flat}
    return {
        name: traverse_util.unflatten_dict({path: leaf for path, leaf in flat.items() if is_matrix[path] == kind})
        for name, kind in (("matrices", True), ("others", False))
    }


def _matrix_axes(params: Params) -> Params:
    """Inputs and outputs among the axes of each kernel, for Optax; all other axes are of separate matrices."""

    def numbers(path: str, kernel: Any) -> contrib.MuonDimensionNumbers:
        inputs, outputs = _axes(path, kernel.ndim)
        return contrib.MuonDimensionNumbers(reduction_axis=inputs, output_axis=outputs)

    return _map_with_path(numbers, params)


def _axes(path: str, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of the inputs and of the outputs of a kernel; q, k, v and layers are separate matrices."""
    last = ndim - 1
    return ((last - 3,), (last - 2, last)) if _QKV.search(path) else ((last - 1,), (last,))


def _map_with_path(function: Callable[[str, Any], Any], tree: Mapping[str, Any]) -> Params:
    flat = traverse_util.flatten_dict(tree)
    return traverse_util.unflatten_dict({path: function("/".join(path), leaf) for path, leaf in flat.items()})
