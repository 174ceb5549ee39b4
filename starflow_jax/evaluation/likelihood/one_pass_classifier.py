"""A class-conditional density as a classifier in one forward and one backward pass, in place of one pass per class.

The condition is a mixture of the classes, softmax(l) at the logits l = 0, which weighs all classes equally: the mean of
their embeddings in a TARFlow, of their one-hot states in a flow that reads text. The class is the argmax over k of
d log p(x | softmax(l)) / d l_k (the training-free classifier of R-REPA, for the same kind of flow). It agrees with the
Bayes rule to first order in the differences of the embeddings.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.data import Source, eval_batches
from starflow_jax.evaluation.likelihood.image_likelihood import dequantised
from starflow_jax.flows import Flow
from starflow_jax.flows.parameters import Params, abstract, merge


def class_gradients(
    flow: Flow, x: jax.Array, *, noise_level: jax.Array | float | None = None
) -> tuple[jax.Array, jax.Array]:
    """log p(x | softmax(l)) of data at l = 0, and its gradient with respect to the logits l.

    Args:
      flow: with classes, or one that reads a label as one text token (`training.step.inputs.condition`). All classes of
        the flow take part, also those that the data do not have.
      x: [B, H, W, C]; noise_level: as for `Flow.forward`.

    Returns:
      float32 [B] in nats, and [B, K]. The gradients of an example sum to 0.

    Raises:
      ValueError: a flow that reads no class.
    """
    config = flow.config
    classes = config.num_classes or config.text_dim
    check(classes > 0, "flow must read a class, got one without a condition")

    def total(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        weights = jax.nn.softmax(logits)
        log_p = flow.log_prob(x, weights if config.num_classes else weights[:, None], noise_level=noise_level)
        return jnp.sum(log_p), log_p

    (_, log_p), gradients = jax.value_and_grad(total, has_aux=True)(jnp.zeros((x.shape[0], classes)))
    return log_p, gradients


def one_pass_scores(
    params: Params,
    config: FlowConfig,
    source: Source,
    key: jax.Array,
    *,
    draws: int,
    batch_size: int = 256,
    noise_level: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`class_gradients` of every image and draw; arguments as of `image_likelihood.log_probs`.

    Returns:
      float64 [draws, n] and [draws, n, K].

    Raises:
      ValueError: draws or batch_size below 1, or a flow that reads no class.
    """
    check_integer("draws", draws, minimum=1)
    check_integer("batch_size", batch_size, minimum=1)
    batch_size, first = min(batch_size, len(source)), 0
    log_p = np.empty((draws, len(source)))
    gradients = np.empty((draws, len(source), config.num_classes or config.text_dim))
    level = None if noise_level is None else np.float32(noise_level)
    for batch in eval_batches(source, batch_size):
        count = int(batch["valid"].sum())
        index = np.arange(first, first + batch_size, dtype=np.int32)
        for draw in range(draws):
            found = _scores(config, source.levels, params, key, draw, level, batch["image"], index)
            values, slopes = (np.asarray(array, np.float64)[:count] for array in found)
            log_p[draw, first : first + count], gradients[draw, first : first + count] = values, slopes
        first += count
    return log_p, gradients


def classify_by_gradient(log_p: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """The class of every image, int64 [n]: the argmax of the gradient of the log of the mean density over draws.

    That gradient is the mean of the draws' gradients, weighted by their densities.

    Args:
      log_p: [draws, n]; gradients: [draws, n, K]; as of `one_pass_scores`.

    Raises:
      ValueError: values that are NaN, whose rank would be arbitrary.
    """
    bad = int(np.isnan(log_p).sum() + np.isnan(gradients).sum())
    if bad:
        raise ValueError(f"gradients and log_p must not be NaN, got {bad} values that are")
    weights = np.exp(log_p - log_p.max(axis=0))
    weights /= weights.sum(axis=0)
    classes: np.ndarray = np.einsum("dn,dnk->nk", weights, gradients).argmax(axis=1)
    return classes


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scores(
    config: FlowConfig,
    levels: int,
    params: Params,
    key: jax.Array,
    draw: jax.Array | int,
    noise_level: jax.Array | None,
    images: jax.Array,
    index: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    flow = merge(abstract(config)[0], params)
    return class_gradients(flow, dequantised(key, images, index, draw, levels), noise_level=noise_level)
