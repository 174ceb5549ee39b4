"""The PyTorch original as a side of a comparison: everything that depends on how it is called, in this one file.

No code of the original is part of this project, and none was at hand when this file was written. What it assumes comes
from recordings of the original (tests/goldens: the tensors of its weights, its constructor arguments in `config.json`,
its operations with their arguments in `meta.json`) and from the specification. Whatever does not fit a checkout is a
sentence, and `against_original.py --original-name NAME=VALUE` replaces it.

Recorded, and used as recorded: the constructor arguments; the names and layouts of the tensors; layouts [B, C, H, W]
and [B, T, C, H, W]; the operation `reverse` of noise and text, with `guidance`, `jacobi`, `jacobi_th`,
`jacobi_block_size` and `jacobi_max_iter`; guided text, [captions; empty captions] with twice the rows of the noise.

Not recorded, and not checked against the original:

- the module and the class. They are searched for in the folder: the class whose constructor takes the arguments of
  `_CONSTRUCTOR`; nothing is imported for that.
- that the model called with data and text gives a tuple with z at index 0 and the log-determinants of all blocks at
  index -1 (`z`, `logdets`).
- that the operation `reverse` is a method of this name which gives a tensor, or a tuple or list with the data at index
  -1 (`x`), and that its arguments are keyword arguments of their recorded names.
- that the attribute that owns the denoiser's tensors, `learnable_self_denoiser`, is called with data and text and gives
  the prediction (`denoiser`).

Since outputs are compared before anything is timed, a wrong index or argument is refused instead of being measured.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flow_operations import JacobiSetting, is_guided, operation_names
from side_process import Arrays, Side

_CONSTRUCTOR = {"in_channels", "img_size", "patch_size", "channels", "num_blocks", "layers_per_block"}
_MAX_FILE = 2**21


@dataclasses.dataclass(frozen=True)
class Names:
    """How the original is called; every field can be replaced by `--original-name FIELD=VALUE`.

    Attributes:
      module, cls: dotted module below the folder and class of the model; empty to search for them.
      z, logdets: indices into what the model returns. x: index into what `reverse` returns, where that is no tensor.
      reverse, denoiser: attributes of the model.
      guidance, jacobi, threshold, block, max_iterations: keyword arguments of `reverse`.
    """

    module: str = ""
    cls: str = ""
    z: int = 0
    logdets: int = -1
    x: int = -1
    reverse: str = "reverse"
    denoiser: str = "learnable_self_denoiser"
    guidance: str = "guidance"
    jacobi: str = "jacobi"
    threshold: str = "jacobi_th"
    block: str = "jacobi_block_size"
    max_iterations: str = "jacobi_max_iter"

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> Names:
        """The default names with some replaced.

        Raises:
          ValueError: an unknown field, or an index that is no integer.
        """
        values: dict[str, Any] = {}
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        for name, value in given.items():
            if name not in defaults:
                raise ValueError(f"--original-name must be one of {', '.join(defaults)}, got {name!r}")
            try:
                values[name] = type(defaults[name])(value)
            except ValueError:
                raise ValueError(f"--original-name {name} must be an integer, got {value!r}") from None
        return cls(**values)


def find_class(folder: Path, names: Names) -> tuple[str, str]:
    """Module and class of the model in a folder, as named, or as its constructor's arguments tell.

    Source is parsed and not executed.

    Raises:
      ValueError: there is no such class, or several.
    """
    if names.module and names.cls:
        return names.module, names.cls
    found = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not all(part.isidentifier() for part in parts) or not path.is_file() or path.stat().st_size > _MAX_FILE:
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError):
            continue
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        found += [(module, node.name) for node in classes if _constructor_arguments(node) >= _CONSTRUCTOR]
    found = [pair for pair in found if names.module in ("", pair[0]) and names.cls in ("", pair[1])]
    if len(found) != 1:
        listed = "; ".join(f"module {m}, class {c}" for m, c in found) or "none"
        raise ValueError(
            f"name the model with --original-module and --original-class: the classes in {folder} whose constructor "
            f"takes {', '.join(sorted(_CONSTRUCTOR))} are {listed}"
        )
    return found[0]


def _constructor_arguments(node: ast.ClassDef) -> set[str]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            arguments = item.args
            return {argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    return set()


def prepare(request: Mapping[str, Any]) -> Side:
    """Builds the model and loads the weights.

    The request has `original` (the folder), `arguments`, `sizes`, `threads`, `tolerance` and `max_iterations` (of
    Jacobi iteration), `names` (fields of `Names`), `folder` with `weights.npz` and `inputs.npz`, and may have
    `inverses`, names of further ones.
    """
    names, original = Names(**request["names"]), Path(request["original"])
    module, cls = find_class(original, names)
    sys.path.insert(0, str(original))
    import torch

    torch.set_num_threads(request["threads"])
    model = getattr(importlib.import_module(module), cls)(**request["arguments"])
    model.eval()
    with np.load(Path(request["folder"]) / "weights.npz", allow_pickle=False) as weights:
        tensors = {name: torch.from_numpy(np.array(weights[name])) for name in weights.files}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    # Buffers that are derived from the configuration may be absent.
    absent = sorted({name for name, _ in model.named_parameters()} & set(missing))
    if absent or unexpected:
        raise ValueError(f"the weights do not fit: missing {absent[:5]}, unexpected {sorted(unexpected)[:5]}")
    with np.load(Path(request["folder"]) / "inputs.npz", allow_pickle=False) as inputs:
        arrays = {name: torch.from_numpy(np.array(inputs[name])) for name in inputs.files}
    solver = {names.threshold: request["tolerance"], names.max_iterations: request["max_iterations"]}
    calls = Calls(torch, model, names, arrays["x"], arrays.get("text"), request["sizes"]["guidance"], solver)
    has_denoiser = bool(request["arguments"].get("learnable_self_denoiser"))
    operations = {
        name: functools.partial(calls.run, name)
        for name in [*operation_names(denoiser=has_denoiser, text="text" in arrays), *request.get("inverses", ())]
    }
    versions = {"torch": torch.__version__, "model": f"{module}.{cls}"}
    return Side(operations, lambda name, result: calls.arrays(name, result), versions=versions)


@dataclasses.dataclass(frozen=True)
class Calls:
    """The operations of the original, by the names of `flow_operations.py`."""

    torch: Any
    model: Any
    names: Names
    x: Any
    text: Any
    guidance: float
    solver: Mapping[str, Any]

    def run(self, name: str) -> Any:
        """Runs an operation once."""
        if name == "forward+backward":
            return self._gradients()
        with self.torch.no_grad():
            if name == "forward":
                return self.model(self.x, self.text)
            if name == "denoiser":
                return getattr(self.model, self.names.denoiser)(self.x, self.text)
            return self._invert(name)

    def _gradients(self) -> Any:
        self.model.zero_grad()
        result = self.model(self.x, self.text)
        z, logdets = result[self.names.z], result[self.names.logdets]
        loss = 0.5 * (z**2).mean() - sum(logdet.mean() for logdet in logdets)
        loss.backward()
        return loss

    def _invert(self, name: str) -> Any:
        names, setting, text = self.names, JacobiSetting.parse(name), self.text
        keywords: dict[str, Any] = {}
        if is_guided(name):
            text = self.torch.cat([text, 0 * text])
            keywords[names.guidance] = self.guidance
        if setting is not None:
            keywords |= {names.jacobi: 1, names.block: setting.block, **self.solver}
            if setting.tolerance is not None:
                keywords[names.threshold] = setting.tolerance
        reverse: Callable[..., Any] = getattr(self.model, names.reverse)
        result = reverse(self.x, text, **keywords)
        return result if hasattr(result, "shape") else result[names.x]

    def arrays(self, name: str, result: Any) -> Arrays:
        """A result as the arrays of `our_side.OurSide`."""
        if name == "forward":
            logdets = [_array(d).reshape(self.x.shape[0], -1).sum(axis=1) for d in result[self.names.logdets]]
            return {"z": _array(result[self.names.z]), "logdet": np.sum(logdets, axis=0)}
        if name == "forward+backward":
            owned = (self.names.denoiser + ".", "learnable_self_denoiser.")
            gradients = {
                f"gradients/{k}": np.zeros(tuple(p.shape), np.float32) if p.grad is None else _array(p.grad)
                for k, p in self.model.named_parameters()
                if not k.startswith(owned)
            }
            return {"loss": _array(result), **gradients}
        return {"prediction" if name == "denoiser" else "x": _array(result)}


def _array(tensor: Any) -> np.ndarray:
    return np.array(tensor.detach())
