"""This project's side of a comparison: the passes of a flow, and their floors, in one process."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from automatic_pass import automatic_solver
from bare_inverse import Reading, evaluations_of
from bare_products import BlockShape
from flow_operations import AUTO, FLOOR, GUIDED, PARALLEL, PRODUCT, READ, SQUARE, Sizes, is_guided
from flow_passes import FlowPasses
from side_process import Arrays, Side
from timing import compiled, compiled_program, largest_array, square_product

from starflow_jax.porting import flow_config, to_torch
from starflow_jax.solvers import Inversion, Jacobi


def prepare(request: Mapping[str, Any]) -> Side:
    """Draws weights and inputs, and writes them to `folder` for the other sides.

    The request has `arguments` (the original's constructor arguments), `sizes` (the fields of `Sizes`), `threads`, and
    `folder`, where `weights.npz` gets the original's named tensors, and `inputs.npz` x and text in its layout. It may
    have `inverses`, names of further ones, and `target`, the relative error that the inverse `auto` aims at.
    """
    passes = FlowPasses(flow_config(request["arguments"]), Sizes(**request["sizes"]))
    folder = Path(request["folder"])
    np.savez(folder / "weights.npz", **to_torch(passes.params))
    text = {} if passes.text is None else {"text": np.asarray(passes.text)}
    np.savez(folder / "inputs.npz", x=channels_first(passes.x), **text)
    return OurSide(passes, request["threads"], request.get("inverses", ()), request.get("target", 1e-3)).side()


class OurSide:
    """The operations of `FlowPasses`, each compiled when it first runs."""

    def __init__(self, passes: FlowPasses, threads: int, inverses: Sequence[str] = (), target: float = 1e-3):
        self._passes, self._threads, self._target = passes, threads, target
        self._names = [*passes.names, *inverses]
        self._programs: dict[str, Callable[[], Any]] = {PRODUCT: square_product(SQUARE)}
        self._compiled: dict[Any, tuple[jax.stages.Compiled, float]] = {}
        self._descriptions: dict[str, dict[str, Any]] = {}
        self._chunks: dict[str, Any] = {}

    def side(self) -> Side:
        """All operations: each pass, its floor under `FLOOR`, and under `READ` the reading of an inverse."""
        names = [PRODUCT]
        for name in self._names:
            names += [name, FLOOR + name, *([] if name in PARALLEL else [READ + name])]
        operations = {name: lambda name=name: self._run(name) for name in names}
        jacobi = {"tolerance": Jacobi().tolerance, "max_iterations": Jacobi().max_iterations}
        blocks = [sizes_of(shape) for shape in self._passes.shapes]
        facts: dict[str, Any] = {"blocks": blocks, "jacobi": jacobi}
        if self._passes.denoiser is not None:
            options = self._passes.config.denoiser
            mask = {"look_ahead": options.look_ahead, "window": options.window, "frames": self._passes.frames}
            facts["denoiser"] = sizes_of(self._passes.denoiser) | mask
        versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
        return Side(
            operations, self._arrays, lambda name: self._descriptions.get(name, {}), self._compile, facts, versions
        )

    def _compile(self, name: str) -> None:
        if name not in self._programs:
            self._programs[name] = self._program(name)

    def _run(self, name: str) -> Any:
        self._compile(name)
        result = self._programs[name]()
        if isinstance(result, Inversion) and name not in self._chunks:
            chunks = self._chunks[name] = self._passes.chunks(name, result)
            self._descriptions[name] |= {
                "evaluations": int(result.evaluations),
                "converged": bool(result.converged),
                "multiply_adds": self._passes.inverse_work(chunks)[0],
                "chunks": [dataclasses.asdict(chunk) for chunk in chunks],
            }
        return result

    def _program(self, name: str) -> Callable[[], Any]:
        if name.startswith(READ):
            chunks = self._chunks_of(name.removeprefix(READ))
            return Reading(evaluations_of(chunks), self._passes.inverse_work(chunks)[1], self._threads)
        if name.startswith(FLOOR):
            name = name.removeprefix(FLOOR)
            parallel = name in PARALLEL
            floor = self._passes.floor(name) if parallel else self._passes.inverse_floor(self._chunks_of(name))
            return compiled(floor[0], *floor[1])[0]
        described: dict[str, Any] = {}
        if name.removesuffix(GUIDED) == AUTO:
            solver, described["solver"] = automatic_solver(self._passes, is_guided(name), self._target)
            function, arguments = self._passes.inverse(solver, guided=is_guided(name))
        else:
            function, arguments = self._passes.run(name)
        # Inverses that differ in their tolerance share a program, which has it as an argument.
        shared, _, tolerance = name.removesuffix(GUIDED).partition(" at ")
        key = (shared, is_guided(name)) if tolerance else name
        if key not in self._compiled:
            self._compiled[key] = compiled_program(function, *arguments)
        program, seconds = self._compiled[key]
        self._descriptions[name] = described | {"compile": seconds, "largest_array": largest_array(program)}
        return lambda: jax.block_until_ready(program(*arguments))

    def _chunks_of(self, name: str) -> Any:
        if name not in self._chunks:
            self._run(name)
        return self._chunks[name]

    def _arrays(self, name: str, result: Any) -> Arrays:
        """Results in the original's layout; `group/name` where the arrays of a group are compared as one."""
        if name == "forward":
            z, logdet = result
            return {"z": channels_first(z), "logdet": np.asarray(logdet)}
        if name == "forward+backward":
            loss, gradients = result
            return {"loss": np.asarray(loss), **{f"gradients/{k}": v for k, v in to_torch(gradients).items()}}
        if name == "denoiser":
            return {"prediction": channels_first(result)}
        return {"x": channels_first(result.x)}


def sizes_of(shape: BlockShape) -> dict[str, Any]:
    """A block's sizes as plain values."""
    return {**dataclasses.asdict(shape), **dataclasses.asdict(shape.transformer)}


def channels_first(x: Any) -> np.ndarray:
    """[..., H, W, C] to [..., C, H, W]."""
    return np.moveaxis(np.asarray(x), -1, -3)
