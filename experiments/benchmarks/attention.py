"""Times the attention kernels (forward, with gradients, decoding) in comparison with XLA, cuDNN, tokamax and PyTorch.

    python experiments/benchmarks/attention.py --json attention.json
    python experiments/benchmarks/attention.py --quick           # small shapes once, as a test of this script

Shapes are those of the 3B image model (1,152 slots, 48 heads of 64) and of the 7B video model (33,646 slots), with a
causal mask, and with a prefix that is visible to all queries, for which the other implementations need a mask array;
and decoding of chunks of 1, 64 and 512 with caches of 8k and 33k slots. The implementations are the kernel ("fused"),
the reference compiled by XLA, cuDNN through `jax.nn.dot_product_attention`, the kernels of tokamax, and PyTorch's
`scaled_dot_product_attention`; those that do not run on this machine are left out, and the table states the reason.
--only selects shapes by a part of their name, and --without leaves an implementation out. The file of --json is written
after every shape, so that a run that is stopped leaves the shapes that it has timed.
FLOPs count visible pairs, two products forward and four more backward (the recomputation of the weights does not
count); the fraction is relative to the fastest bfloat16 product of large matrices in the same run. For decoding, GB/s
count one read of all keys and values.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from starflow_jax.core.figures import text_table, write_json
from starflow_jax.experiments.benchmarks.timing import best_seconds, compiled
from starflow_jax.kernels.attention import Causal, attention
from starflow_jax.kernels.kernel_choice import device_target

Program = Callable[[], Any]
WAYS = ("fused", "xla", "cudnn", "tokamax", "pytorch")


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes: causal attention of queries from slot `offset` on to `slots` keys, the first `text` visible to all."""

    name: str
    batch: int
    heads: int
    dim: int
    queries: int
    slots: int
    backward: bool = False
    text: int = 0

    @property
    def offset(self) -> int:
        return self.slots - self.queries

    @property
    def flops(self) -> float:
        pairs = self.queries * self.offset + self.queries * (self.queries + 1) // 2
        ahead = max(self.text - self.offset, 0)
        pairs += ahead * (ahead - 1) // 2
        return (2 + 4 * self.backward) * 2.0 * pairs * self.batch * self.heads * self.dim

    @property
    def read(self) -> float:
        """Bytes of keys and values in bfloat16."""
        return 2.0 * 2 * self.batch * self.heads * self.slots * self.dim


TRAINING = [
    Shape("3B, 1,152 slots", 8, 48, 64, 1152, 1152),
    Shape("3B, 1,152 slots", 8, 48, 64, 1152, 1152, True),
    Shape("3B, prefix of 128", 8, 48, 64, 1152, 1152, text=128),
    Shape("3B, prefix of 128", 8, 48, 64, 1152, 1152, True, text=128),
    Shape("3B shallow, 1,024", 8, 48, 64, 1024, 1024, True),
    Shape("7B, 33,646 slots", 1, 8, 64, 33646, 33646),
    Shape("7B, 33,646 slots", 1, 8, 64, 33646, 33646, True),
    Shape("7B, prefix of 256", 1, 8, 64, 33646, 33646, text=256),
    Shape("7B, prefix of 256", 1, 8, 64, 33646, 33646, True, text=256),
    Shape("heads of 128", 4, 24, 128, 2048, 2048, True),
]
DECODING = [
    Shape(f"chunk of {chunk}, cache of {slots}", 4, 48, 64, chunk, slots)
    for slots in (8192, 33648)  # the size of a cache is a multiple of 8 slots
    for chunk in (1, 64, 512)
]
QUICK = [
    Shape("quick", 1, 2, 64, 130, 130, True),
    Shape("quick prefix", 1, 2, 64, 130, 130, text=10),
    Shape("quick chunk", 1, 2, 64, 4, 256),
]


def arrays(shape: Shape) -> list[jax.Array]:
    """The scaled query, key, value, and a gradient with respect to the output."""
    keys = jax.random.split(jax.random.key(0), 4)
    counts = (shape.queries, shape.slots, shape.slots, shape.queries)
    operands = [
        jax.random.normal(k, (shape.batch, shape.heads, n, shape.dim), jnp.bfloat16)
        for k, n in zip(keys, counts, strict=True)
    ]
    operands[0] = (operands[0] * shape.dim**-0.5).astype(jnp.bfloat16)
    return operands


def ways(shape: Shape, tiles: Any = None) -> dict[str, Callable[..., jax.Array]]:
    """Implementations by name: functions of query, key, value and offset (traced if queries are fewer than keys)."""
    chunked = shape.queries < shape.slots

    def ours(implementation, query, key, value, offset):
        options = {"layer": 0} if chunked and implementation == "pallas" else {}
        if options:
            key, value = key[None], value[None]
        return attention(
            query, key, value, visibility=Causal(shape.text), offset=offset if chunked else 0,
            implementation=implementation, tiles=tiles if implementation == "pallas" else None, **options,
        )  # fmt: skip

    def others(attend, implementation, query, key, value, offset):
        mask = None
        if chunked or shape.text:
            slots = jnp.arange(shape.slots)[None]
            mask = (slots <= offset + jnp.arange(shape.queries)[:, None]) | (slots < shape.text)
        parts = (jnp.swapaxes(a, 1, 2) for a in (query, key, value))
        out = attend(
            *parts, mask=None if mask is None else mask[None, None], is_causal=mask is None, scale=1.0,
            implementation=implementation,
        )  # fmt: skip
        return jnp.swapaxes(out, 1, 2)

    def tokamax(*arrays):
        from tokamax import dot_product_attention

        # Its own kernels: without a name it would fall back to XLA.
        names = ("mosaic", "triton") if device_target().platform == "gpu" else ("mosaic",)
        return others(dot_product_attention, names, *arrays)

    return {
        "fused": functools.partial(ours, "pallas"),
        "xla": functools.partial(ours, "xla"),
        "cudnn": functools.partial(others, jax.nn.dot_product_attention, "cudnn"),
        "tokamax": tokamax,
    }


def absent(way: str) -> str | None:
    """Why an implementation cannot run on this machine, or None."""
    if way == "cudnn" and device_target().platform != "gpu":
        return "runs on NVIDIA GPUs only"
    if way == "tokamax" and importlib.util.find_spec("tokamax") is None:
        return "is not installed"
    return None


def with_gradient(attend: Callable[..., jax.Array], query, key, value, gradient, offset) -> Any:
    """The output and all gradients."""
    out, pullback = jax.vjp(lambda *a: attend(*a, offset), query, key, value)
    return out, pullback(gradient)


def jax_programs(shape: Shape, without: Collection[str] = ()) -> tuple[dict[str, Program], dict[str, str]]:
    """Compiled programs by name, except those of `without`, and the reasons why others are missing."""
    query, key, value, gradient = arrays(shape)
    offset = jnp.int32(shape.offset)
    programs: dict[str, Program] = {}
    missing: dict[str, str] = {}
    for name, attend in ways(shape).items():
        if name in without:
            continue
        reason = absent(name)
        if reason is not None:
            missing[name] = reason
            continue
        try:
            if shape.backward:
                programs[name] = compiled(
                    functools.partial(with_gradient, attend), query, key, value, gradient, offset
                )[0]
            else:
                programs[name] = compiled(attend, query, key, value, offset)[0]
            programs[name]()
        except Exception as error:  # an error of one backend is reported, and the others still run
            programs.pop(name, None)
            missing[name] = str(error).splitlines()[0][:160]
    return programs, missing


def torch_program(shape: Shape) -> Program | str:
    """PyTorch's attention on random arrays, or the reason why it is not available."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU"
    sizes = (shape.queries, shape.slots, shape.slots)
    parts = [torch.randn(shape.batch, shape.heads, n, shape.dim, device="cuda", dtype=torch.bfloat16) for n in sizes]
    mask = None
    if shape.queries < shape.slots or shape.text:
        rows, slots = (torch.arange(n, device="cuda") for n in (shape.queries, shape.slots))
        mask = (slots[None] <= shape.offset + rows[:, None]) | (slots[None] < shape.text)
    for part in parts:
        part.requires_grad_(shape.backward)
    attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, attn_mask=mask, is_causal=mask is None)

    def run() -> None:
        out = attend(*parts)
        if shape.backward:
            torch.autograd.grad(out, parts, out)
        torch.cuda.synchronize()

    return run


def product_peak(size: int) -> float:
    """FLOP/s of a bfloat16 product of two square matrices of this size."""
    left, right = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
    run = compiled(functools.partial(jnp.dot, preferred_element_type=jnp.float32), left, right)[0]
    return 2.0 * size**3 / best_seconds({"product": run}, rounds=10)["product"]


def measure(shape: Shape, rounds: int, peak: float, without: Collection[str] = ()) -> dict[str, Any]:
    """Seconds, TFLOP/s, GB/s and ratios of one shape, without the implementations that `without` names."""
    programs, missing = jax_programs(shape, without)
    if "pytorch" not in without:
        torch = torch_program(shape)
        if isinstance(torch, str):
            missing["pytorch"] = torch
        else:
            programs["pytorch"] = torch
    best = best_seconds(programs, rounds=rounds)
    figures = {
        name: {
            "seconds": seconds,
            "tflops": shape.flops / seconds / 1e12,
            "fraction_of_product": shape.flops / seconds / peak,
            "gigabytes_per_second": shape.read / seconds / 1e9,
        }
        for name, seconds in best.items()
    }
    ratios = {f"fused_against_{name}": best[name] / best["fused"] for name in best if "fused" in best}
    return {**dataclasses.asdict(shape), "ways": figures, "ratios": ratios, "missing": missing}


def table(results: list[dict[str, Any]]) -> str:
    """The results as text."""
    rows = [["shape", "way", "ms", "TFLOP/s", "of product", "GB/s", "times as fast as"]]
    for result in results:
        name = result["name"] + (", with gradients" if result["backward"] else "")
        for way, figures in result["ways"].items():
            ratio = result["ratios"].get(f"fused_against_{way}")
            rows.append([
                name, way, f"{1e3 * figures['seconds']:.3f}", f"{figures['tflops']:.1f}",
                f"{figures['fraction_of_product']:.0%}", f"{figures['gigabytes_per_second']:.0f}",
                "" if ratio is None or way == "fused" else f"{ratio:.2f}x",
            ])  # fmt: skip
    lines = [text_table(rows), ""]
    reasons = {(way, why) for result in results for way, why in result["missing"].items()}
    return "\n".join(lines + [f"skipped: {way}: {why}" for way, why in sorted(reasons)])


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="runs of each program, the best counts")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the numbers there")
    parser.add_argument("--only", metavar="TEXT", default="", help="shapes whose name contains this")
    parser.add_argument(
        "--without", metavar="NAME", action="append", default=[], choices=WAYS, help="leave an implementation out"
    )
    parser.add_argument("--quick", action="store_true", help="small shapes once, as a test of this script")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    shapes = QUICK if options.quick or device_target().platform == "cpu" else [*TRAINING, *DECODING]
    small = shapes is QUICK
    if small and not options.quick:
        print("no accelerator: small shapes only", file=sys.stderr)
    names = [shape.name for shape in shapes]
    shapes = [shape for shape in shapes if options.only in shape.name]
    if not shapes:
        parser.error(f"--only must be a part of one of {'; '.join(dict.fromkeys(names))}; got {options.only!r}")
    rounds = 2 if options.quick else options.rounds
    peak = product_peak(512 if small else 8192)
    device = jax.devices()[0]
    results: list[dict[str, Any]] = []
    for shape in shapes:
        results.append(measure(shape, rounds, peak, options.without))
        if options.json is not None:
            about = {"device": device.device_kind, "product_tflops": peak / 1e12}
            write_json(options.json, {**about, "shapes": results, "complete": len(results) == len(shapes)})
    print(f"{device.device_kind}: a large bfloat16 product reaches {peak / 1e12:.1f} TFLOP/s\n")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
