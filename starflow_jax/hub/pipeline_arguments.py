"""Arguments of pipelines that have no meaning for a flow, and what diffusers calls seeds and sizes."""

from __future__ import annotations

import difflib
import numbers
from typing import Any

from starflow_jax.core.config.checks import check

_STEPS = (
    "a flow is inverted by a solver that is exact or iterates until it has converged, and has no number of steps: "
    "solver chooses it"
)
_DENOISER = "it changes the steps of a diffusion sampler, which a flow does not have"
_EMBEDDINGS = "the flow reads the states of its own text encoder: give prompt"
_LATENTS = "the noise follows from seed, and is that of starflow sample: give seed or generator"
# Arguments of the pipelines of diffusers, and why a flow refuses them.
REFUSED = {
    "num_inference_steps": _STEPS,
    "timesteps": _STEPS,
    "sigmas": _STEPS,
    "eta": _DENOISER,
    "strength": _DENOISER,
    "guidance_rescale": _DENOISER,
    "guidance_scale_2": _DENOISER,
    "true_cfg_scale": _DENOISER,
    "negative_prompt": "guidance is against the flow's own prediction without a caption, which it was trained for",
    "negative_prompt_embeds": "guidance is against the flow's own prediction without a caption",
    "prompt_embeds": _EMBEDDINGS,
    "prompt_attention_mask": _EMBEDDINGS,
    "max_sequence_length": "the number of text tokens is that of the training",
    "clip_skip": "the flow reads the states of the last layer of its text encoder, as in its training",
    "latents": _LATENTS,
    "cross_attention_kwargs": "the layers of a flow have no processors of attention",
    "attention_kwargs": "the layers of a flow have no processors of attention",
    "callback_on_step_end": "a flow has no steps to report",
    "callback": "a flow has no steps to report",
}


def refuse(arguments: dict[str, Any], known: tuple[str, ...]) -> None:
    """Refuses arguments that the call does not have; those that are None or "" are left out, as in diffusers.

    Raises:
      ValueError: an argument of other pipelines, with the reason.
      TypeError: an argument that no pipeline has.
    """
    for name, value in arguments.items():
        if name not in REFUSED:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(known)}"
            raise TypeError(f"{name} is not an argument of this pipeline{hint}")
        check(value is None or value == "", f"{name} has no meaning for this model: {REFUSED[name]}")


def seed_of(generator: Any, seed: int | None) -> int:
    """The seed of the noise, from 0 to 2**32 - 1.

    Args:
      generator: None, an integer, a JAX key, a NumPy generator (which draws the seed), or a generator of PyTorch, whose
        initial seed it is.
      seed: None, or the seed itself; both together are refused.

    Raises:
      ValueError: a generator of another kind, or both.
    """
    check(generator is None or seed is None, "give either generator or seed, got both")
    value = generator if seed is None else seed
    if value is None:
        return 0
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        check(0 <= int(value) < 2**32, f"seed must be from 0 to {2**32 - 1}, got {value}")
        return int(value)
    if hasattr(value, "initial_seed"):
        return int(value.initial_seed()) % 2**32
    if hasattr(value, "integers"):
        return int(value.integers(2**32))
    import jax

    if isinstance(value, jax.Array):
        key = value if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(value)
        return int(jax.random.bits(key))
    raise ValueError(
        f"generator must be an integer, a JAX key, or a generator of NumPy or PyTorch, got {type(value).__name__}"
    )
