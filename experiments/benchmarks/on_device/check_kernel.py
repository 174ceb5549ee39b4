"""Runs one kernel on one entry of the grid and compares it with the reference; a process of its own for each.

    python experiments/benchmarks/on_device/check_kernel.py --platform gpu --check "5 slots"
    python experiments/benchmarks/on_device/check_kernel.py --platform tpu --list        # the names
    python experiments/benchmarks/on_device/check_kernel.py --platform tpu --interpret ...   # tiny sizes, on a CPU

The kernel runs several times, and every result is compared. The reference computes in float32 on the same device. Keys
and values of other layers are NaN, as are the slots of a TPU's cache that have not been written, but for parts.

The JSON says "ok", "wrong", "unsupported" (the kernel refuses the call, with its reason), "lowered" (--interpret: the
GPU's attention kernels were lowered for CUDA and did not run, because no interpreter of JAX covers them) or "error".
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from starflow_jax.core.figures import write_json
from starflow_jax.experiments.benchmarks.on_device.kernel_grid import AttentionCheck, UpdateCheck, checks, named
from starflow_jax.flows.affine_head import AffineHead
from starflow_jax.kernels.attention import attention, masks
from starflow_jax.kernels.attention.api import chosen, partial_attention
from starflow_jax.kernels.attention.packed import packed_attention
from starflow_jax.kernels.attention.reference import UNSEEN
from starflow_jax.kernels.attention.rotary import Rotary
from starflow_jax.kernels.jacobi_update import api as jacobi_update
from starflow_jax.kernels.jacobi_update.reference import Operands, UpdateCall, reference_update
from starflow_jax.kernels.kernel_choice import Target, device_target

# Largest error relative to the largest value (at least 1). bfloat16 results are rounded to 2^-9, and so are the
# weights that they are summed from; float32 results of an update differ by roundings of exponentials and sums.
TOLERANCE = {"float32": 1e-4, "bfloat16": 1.5e-2}
_RUNS = 4
INTERPRETED = {"tpu": Target("tpu", "TPU v5e"), "gpu": Target("gpu", "NVIDIA H200", "9.0")}


def judge(runs: Sequence[Sequence[Any]], expected: Sequence[Any], tolerance: float) -> dict[str, Any]:
    """Compares the results of every run with the expected ones.

    Args:
      runs: for every run its arrays.
      expected: arrays of the same shapes.
      tolerance: the largest error that is "ok", relative to the largest expected value (at least 1).

    Returns:
      "status", "largest_error" (relative, of all runs), "between_runs" (the largest difference of two runs) and
      "reason" where the status is not "ok".
    """
    first, wrong, largest, between = None, "", 0.0, 0.0
    for run in runs:
        run = [np.asarray(array, np.float64) for array in run]
        first = run if first is None else first
        for ours, once, theirs in zip(run, first, expected, strict=True):
            theirs = np.asarray(theirs, np.float64)
            if ours.shape != theirs.shape:
                wrong = wrong or f"a result has shape {ours.shape} in the place of {theirs.shape}"
            elif not np.isfinite(theirs).all():
                wrong = wrong or "the reference is not finite"
            elif not np.isfinite(ours).all():
                wrong = wrong or f"{np.count_nonzero(~np.isfinite(ours)):,} of {ours.size:,} values are not finite"
            elif ours.size:
                scale = max(1.0, float(np.max(np.abs(theirs))))
                largest = max(largest, float(np.max(np.abs(ours - theirs))) / scale)
                if once.shape == ours.shape and np.isfinite(once).all():
                    between = max(between, float(np.max(np.abs(ours - once))) / scale)
    if not wrong and not largest <= tolerance:
        wrong = f"the largest error is {largest:.1e}, and {tolerance:.1e} is allowed"
    result: dict[str, Any] = {"status": "wrong" if wrong else "ok", "largest_error": largest, "between_runs": between}
    return {**result, "tolerance": tolerance, **({"reason": wrong} if wrong else {})}


def attention_arrays(check: AttentionCheck, platform: str) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Query (scaled), key and value with the garbage of a cache, and a gradient of the output."""
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = ((check.heads, check.queries), *2 * ((check.kv_heads, check.slots),), (check.heads, check.queries))
    query, key, value, do = (
        jax.random.normal(k, (check.batch, *size, check.dim), check.dtype) for k, size in zip(keys, sizes, strict=True)
    )
    if check.cached:
        # What is behind the last written slot may be anything; the GPU's kernels, and the TPU's of longer chunks, need
        # it to be finite.
        unwritten = jnp.nan if platform == "tpu" and not check.part else 100.0
        written = jnp.arange(check.slots)[:, None] < (check.length or check.slots)
        key, value = (jnp.where(written, array, unwritten).astype(check.dtype) for array in (key, value))
        key, value = (jnp.stack([jnp.full_like(array, jnp.nan), array]) for array in (key, value))
    return ((query * check.dim**-0.5).astype(check.dtype), key, value), do


def packed_arrays(check: AttentionCheck) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """A packed projection and its bias, and a gradient of the output."""
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (check.batch, check.slots, check.heads, 3, check.dim)
    packed, bias = jax.random.normal(keys[0], shape, check.dtype), jax.random.normal(keys[1], shape[2:])
    do = jax.random.normal(keys[2], (check.batch, check.heads, check.slots, check.dim), check.dtype)
    return (packed, bias), do


def attend_to_packed(check: AttentionCheck, implementation: str, target: Target, interpret: Any) -> Any:
    """As `attend`, of the arrays of `packed_arrays`."""
    rule = getattr(masks, check.rule[0])(*check.rule[1])
    angles = jnp.outer(jnp.arange(check.slots), 0.7 ** jnp.arange(check.dim // 2))
    tables, rotary = (jnp.cos(angles), jnp.sin(angles)), Rotary(adjacent=True, scale=check.dim**-0.5)

    def output(packed: jax.Array, bias: jax.Array) -> jax.Array:
        options: dict[str, Any] = {"visibility": rule, "target": target, "precision": "highest"}
        if implementation == "pallas":
            options |= dataclasses.asdict(rotary) | {"interpret": interpret}
            return packed_attention(packed, bias, *tables, **options)
        operands = rotary.unpack((packed + bias).transpose(3, 0, 2, 4, 1), rotary.tables(*tables))
        return attention(*operands, implementation=implementation, **options)

    def run(arrays: tuple[jax.Array, ...], do: jax.Array, bounds: jax.Array) -> tuple[jax.Array, ...]:
        if not check.gradients:
            return (output(*arrays),)
        out, pullback = jax.vjp(output, *arrays)
        gradient, total = pullback(do.astype(out.dtype))
        return gradient, total / check.slots**0.5  # a sum over slots, whose roundings add up

    return run


def attend(check: AttentionCheck, implementation: str, target: Target, interpret: Any) -> Any:
    """The call as a function of (query, key, value), the gradient of the output, and the traced [offset, length]."""
    rule = getattr(masks, check.rule[0])(*check.rule[1])
    options = {"implementation": implementation, "precision": "highest", "target": target, "interpret": interpret}

    def output(bounds: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        where = {"offset": bounds[0], "length": bounds[1], "layer": 1}
        if not check.cached:
            where = {"offset": check.offset, "length": check.length}
        return attention(query, key, value, visibility=rule, **where, **options)

    def part(bounds: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, ...]:
        out, lse = partial_attention(query, key, value, visibility=rule, offset=bounds[0], layer=1, **options)
        unseen = lse == UNSEEN
        return out, jnp.where(unseen, 0, lse), unseen.astype(jnp.float32)

    def run(arrays: tuple[jax.Array, ...], do: jax.Array, bounds: jax.Array) -> tuple[jax.Array, ...]:
        if check.part:
            return part(bounds, *arrays)
        if not check.gradients:
            return (output(bounds, *arrays),)
        out, pullback = jax.vjp(functools.partial(output, bounds), *arrays)
        return pullback(do.astype(out.dtype))

    return run


def check_attention(check: AttentionCheck, target: Target, interpret: bool) -> dict[str, Any]:
    """The result of one call of attention, as the JSON states it."""
    if check.packed:
        arrays, do = packed_arrays(check)
        none = jnp.zeros(2, jnp.int32)
        kernel, expected = (
            jax.jit(attend_to_packed(check, name, target, interpret and name == "pallas")) for name in ("pallas", "xla")
        )
        runs = [[np.asarray(a, np.float32) for a in kernel(arrays, do, none)] for _ in range(1 if interpret else _RUNS)]
        arrays, do = jax.tree.map(lambda a: a.astype(jnp.float32), (arrays, do))
        return judge(runs, expected(arrays, do, none), TOLERANCE[check.dtype])
    arrays, do = attention_arrays(check, target.platform)
    rule, layer = getattr(masks, check.rule[0])(*check.rule[1]), 1 if check.cached else None
    try:
        chosen(*arrays, visibility=rule, layer=layer, implementation="pallas", target=target)
    except ValueError as error:
        return {"status": "unsupported", "reason": str(error)}
    bounds = jnp.asarray([check.offset, check.slots if check.length is None else check.length], jnp.int32)
    if interpret and target.platform == "gpu":
        lower = jax.jit(attend(check, "pallas", target, False))
        export.export(lower, platforms=["cuda"])(arrays, do, bounds)
        return {"status": "lowered", "reason": "lowered for CUDA, not run: no interpreter of JAX covers it"}
    kernel = jax.jit(attend(check, "pallas", target, interpret))
    runs = [[np.asarray(a, np.float32) for a in kernel(arrays, do, bounds)] for _ in range(1 if interpret else _RUNS)]
    if check.cached:  # the reference multiplies what it masks by 0, which NaN survives
        query, *caches = arrays
        arrays = (query, *(jnp.nan_to_num(cache) for cache in caches))
    arrays, do = jax.tree.map(lambda a: a.astype(jnp.float32), (arrays, do))
    expected = jax.jit(attend(check, "xla", target, False))(arrays, do, bounds)
    return judge(runs, expected, TOLERANCE[check.dtype])


def check_update(check: UpdateCheck, target: Target, interpret: bool) -> dict[str, Any]:
    """The result of one Jacobi update, as the JSON states it: the estimate, the sums, and tokens that must not move."""
    head = AffineHead(*check.head)
    keys = jax.random.split(jax.random.key(0), 3)
    outputs = check.channels * (1 if head.scale == "unit" else 2)
    rows = (head.num_passes * check.samples, check.tokens, outputs)
    out = (0.5 * jax.random.normal(keys[0], rows)).astype(check.dtype)
    z, x = (jax.random.normal(key, (check.samples, check.tokens, check.channels)) for key in keys[1:])
    # Every second sample has a committed prefix and ends early.
    spans = [[3, check.tokens - 2] if sample % 2 else [0, check.tokens] for sample in range(check.samples)]
    operands = Operands(out, z, x, jnp.asarray(spans, jnp.int32), jnp.float32(1.5), jnp.int32(1))
    params: Any = interpret
    if interpret and target.platform == "gpu":
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

        params = InterpretGPUParams()
    call = UpdateCall.from_arrays(out, x, head, target, params)
    kernel = jacobi_update.kernel_for(target)
    assert kernel is not None
    support = kernel.supports(call)
    if not support:
        return {"status": "unsupported", "reason": f"it {support.reason}"}
    run = jax.jit(functools.partial(kernel.update, call))
    # The sums of many tokens are compared relative to their size.
    expected, sums = (np.asarray(a, np.float64) for a in jax.jit(functools.partial(reference_update, head))(operands))
    runs = []
    for _ in range(1 if interpret else _RUNS):
        new, changed = (np.asarray(a, np.float64) for a in run(operands))
        for sample, (start, end) in enumerate(spans):
            kept = np.r_[0:start, end : check.tokens]
            if not np.array_equal(new[sample, kept], np.asarray(x, np.float64)[sample, kept]):
                return {"status": "wrong", "reason": f"tokens outside of the span of sample {sample} have moved"}
        runs.append([new, changed / sums])
    return judge(runs, [expected, np.ones_like(sums)], TOLERANCE["float32"])


def main(arguments: list[str] | None = None) -> int:
    """Runs one check and returns 0, whatever its result; 2 for unknown names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform", choices=("tpu", "gpu"), required=True, help="whose kernels")
    parser.add_argument("--check", metavar="NAME", help="of the grid")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the result there")
    parser.add_argument("--interpret", action="store_true", help="the tiny grid, on a CPU")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(check.name for check in checks(options.platform, interpreted=options.interpret)))
        return 0
    try:
        check = named(options.platform, str(options.check), interpreted=options.interpret)
    except ValueError as error:
        parser.error(str(error))
    target = INTERPRETED[options.platform] if options.interpret else device_target()
    if target.platform != options.platform:
        sentence = f"--platform must be {target.platform}, the platform of the device, got {options.platform}"
        parser.error(f"{sentence}; --interpret runs on a CPU")
    start = time.perf_counter()
    try:
        run = check_attention if isinstance(check, AttentionCheck) else check_update
        result = run(check, target, options.interpret)
    except Exception as error:  # a kernel that does not compile or run is a result
        message = next((line for line in str(error).splitlines() if line.strip()), "no message")
        result = {"status": "error", "reason": f"{type(error).__name__}: {message[:200]}"}
    result = {**result, "seconds": time.perf_counter() - start, "check": dataclasses.asdict(check)}
    print(result["status"], result.get("reason", f"largest error {result.get('largest_error', 0):.1e}"))
    if options.json is not None:
        write_json(options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
