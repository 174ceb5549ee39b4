"""Prints what JAX sees of this machine and tries every kernel once, one JSON object a line: a process of its own.

    python -m starflow_jax.diagnosis.probe

A kernel is compared with the reference on small arrays. On CPUs the kernels of TPUs run in Pallas's interpreter, which
shows that they can be called, and says nothing of an accelerator. `experiments/on_device.py` checks a grid of shapes.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.flows.affine_head import AffineHead
from starflow_jax.kernels.attention import Causal
from starflow_jax.kernels.attention.api import attention, chosen
from starflow_jax.kernels.jacobi_update import api as jacobi_update
from starflow_jax.kernels.jacobi_update.reference import Operands, UpdateCall, reference_update
from starflow_jax.kernels.kernel_choice import Target, device_target

# Largest error relative to the largest value. bfloat16 results are rounded to 2^-9, and so are the attention weights.
TOLERANCE = 2e-2
_INTERPRETED = Target("tpu", "TPU v5e")


class Unsupported(Exception):
    """The kernels do not support the call on this device; the message is the reason."""


def attention_error(target: Target, interpret: bool) -> float:
    """The error of causal attention and of its gradients, in bfloat16, relative to the largest value."""
    keys = jax.random.split(jax.random.key(0), 4)
    *arrays, weights = (jax.random.normal(key, (1, 2, 256, 64), jnp.bfloat16) / 4 for key in keys)
    try:
        chosen(*arrays, visibility=Causal(), implementation="pallas", target=target)
    except ValueError as error:  # it asks the kernels alone; what they raise when they run is a failure
        raise Unsupported(str(error)) from error

    @functools.partial(jax.jit, static_argnums=0)
    def run(implementation: Any, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        options: dict[str, Any] = {"interpret": interpret} if implementation == "pallas" else {}

        def output(*arrays: jax.Array) -> jax.Array:
            return attention(*arrays, visibility=Causal(), implementation=implementation, target=target, **options)

        out, pullback = jax.vjp(output, *arrays)
        return out, *pullback(weights.astype(out.dtype))

    return _error(run("pallas", *arrays), run("xla", *arrays))


def update_error(target: Target, interpret: bool) -> float:
    """The error of one parallel Jacobi update, in float32, relative to the largest value."""
    head = AffineHead("softplus", 4.0)
    keys = jax.random.split(jax.random.key(0), 3)
    out = 0.5 * jax.random.normal(keys[0], (2, 256, 16))
    z, x = (jax.random.normal(key, (2, 256, 8)) for key in keys[1:])
    operands = Operands(out, z, x, jnp.asarray([[0, 256], [3, 250]], jnp.int32), jnp.float32(0.0), jnp.int32(1))
    call = UpdateCall.from_arrays(out, x, head, target, interpret)
    kernel = jacobi_update.kernel_for(target)
    assert kernel is not None  # of a TPU or a GPU
    support = kernel.supports(call)
    if not support:
        raise Unsupported(f"it {support.reason}")
    found = jax.jit(functools.partial(kernel.update, call))(operands)
    return _error(found, jax.jit(functools.partial(reference_update, head))(operands))


def _error(found: Any, expected: Any) -> float:
    errors = []
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = (np.asarray(array, np.float64) for array in (ours, theirs))
        errors.append(float(np.max(np.abs(ours - theirs)) / max(np.max(np.abs(theirs)), 1e-30)))
    return max(errors)


KERNELS: dict[str, Callable[[Target, bool], float]] = {
    "attention kernel": attention_error,
    "Jacobi update kernel": update_error,
}


def say(name: str, status: str, detail: str) -> None:
    """Prints one check."""
    print(json.dumps({"name": name, "status": status, "detail": detail}), flush=True)


def main() -> int:
    """Prints every check; returns the exit code."""
    devices = jax.devices()
    memory = (devices[0].memory_stats() or {}).get("bytes_limit") if devices[0].platform != "cpu" else None
    room = f", {memory / 2**30:.1f} GiB each" if memory else ""
    say("devices", "ok", f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}){room}")
    total = float(jax.jit(lambda a: jnp.sum(a @ a, dtype=jnp.float32))(jnp.ones((512, 512), jnp.bfloat16)))
    right = abs(total / 512**3 - 1) < 1e-2
    say("matrix product", "ok" if right else "failed", f"512 x 512 in bfloat16: {total / 512**3:.4f} of what is right")
    target = device_target()
    interpret = target.platform not in ("tpu", "gpu")
    if interpret:
        target = _INTERPRETED
    for name, error_of in KERNELS.items():
        where = "of TPUs, interpreted: this machine has no accelerator; " if interpret else ""
        try:
            error = error_of(target, interpret)
        except Unsupported as reason:
            say(name, "warning", f"{where}not used here: {reason}")
            continue
        except Exception as problem:  # a kernel that does not compile or run is a result
            say(name, "failed", f"{where}{type(problem).__name__}: {str(problem).strip().partition(chr(10))[0][:300]}")
            continue
        status = "ok" if error <= TOLERANCE else "failed"
        say(name, status, f"{where}largest error {error:.1e} of the largest value; {TOLERANCE:g} is allowed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
