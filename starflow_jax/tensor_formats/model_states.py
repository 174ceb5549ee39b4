"""The states of a model inside a file: under which keys they are nested, and what wrappers added to their names."""

from __future__ import annotations

from collections.abc import Mapping

from starflow_jax.tensor_formats.tensors import LazyTensor

# First parts of the originals' names; what comes before them is where a file keeps the state.
_ROOTS = ("blocks", "learnable_self_denoiser", "feat_rope", "var")
# What data-parallel training, compilation and sharding put into names.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")


def states_of(tensors: Mapping[str, LazyTensor]) -> dict[str, dict[str, LazyTensor]]:
    """The states of flows in a file, by the key they are nested under ("" for none), with the originals' names.

    Tensors of no state, such as an optimizer's, are left out, except where the file is one state and nothing else:
    there they belong to it, as what is unexpected.

    Raises:
      ValueError: two tensors of one state that differ in what wrappers added to their names.
    """
    found: dict[str, dict[str, LazyTensor]] = {}
    rest: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        place = next((i for i, part in enumerate(parts) if part in _ROOTS), None)
        if place is None:
            rest[".".join(parts)] = tensor
            continue
        state = found.setdefault(".".join(parts[:place]), {})
        clean = ".".join(parts[place:])
        if clean in state:
            raise ValueError(f"the file holds {clean} twice, under names that wrappers changed")
        state[clean] = tensor
    if list(found) == [""]:
        found[""] |= rest
    # A lone buffer, of an optimizer's moments say, makes no state.
    return {key: state for key, state in found.items() if any(name.startswith("blocks.") for name in state)}


def choose(states: Mapping[str, Mapping[str, LazyTensor]], name: str | None) -> tuple[str, Mapping[str, LazyTensor]]:
    """One state: the named one, or the only one.

    Raises:
      ValueError: none, several and no name, or none of that name.
    """
    there = ", ".join(repr(key) for key in sorted(states)) or "none"
    if not states:
        raise ValueError("the file holds no flow: no tensor is named blocks.*")
    if name is not None:
        if name not in states:
            raise ValueError(f"--state must be one of {there}, got {name!r}")
        return name, states[name]
    if len(states) > 1:
        raise ValueError(f"the file holds several states, {there}; choose one with --state")
    return next(iter(states.items()))
