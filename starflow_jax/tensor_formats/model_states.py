"""Finds the model states in a file by the keys that they are nested under, and strips the prefixes of wrappers."""

from __future__ import annotations

from collections.abc import Mapping

from starflow_jax.tensor_formats.tensors import LazyTensor

# First components of the originals' names; the components before them are the key of the state in the file.
_ROOTS = ("blocks", "learnable_self_denoiser", "feat_rope", "var")
# Name components added by data-parallel training, compilation and sharding.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")


def states_of(tensors: Mapping[str, LazyTensor]) -> dict[str, dict[str, LazyTensor]]:
    """Groups tensors by the key that a flow's state is nested under ("" for none), with the originals' names.

    Tensors outside of any state, such as an optimizer's, are left out, unless the file has one state that is not
    nested: then they are included and count as unexpected.

    Raises:
      ValueError: the names of two tensors of one state differ only in the prefixes of wrappers.
    """
    states: dict[str, dict[str, LazyTensor]] = {}
    rest: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        index = next((i for i, part in enumerate(parts) if part in _ROOTS), None)
        if index is None:
            rest[".".join(parts)] = tensor
            continue
        state = states.setdefault(".".join(parts[:index]), {})
        clean = ".".join(parts[index:])
        if clean in state:
            raise ValueError(f"the file contains {clean} twice, under names that wrappers changed")
        state[clean] = tensor
    if list(states) == [""]:
        states[""] |= rest
    # A group without blocks, such as a single buffer among an optimizer's moments, is not a state.
    return {key: state for key, state in states.items() if any(name.startswith("blocks.") for name in state)}


def choose(states: Mapping[str, Mapping[str, LazyTensor]], name: str | None) -> tuple[str, Mapping[str, LazyTensor]]:
    """Returns the key and tensors of the named state, or of the only one.

    Raises:
      ValueError: there is no state, there are several and no name is given, or no state has that name.
    """
    names = ", ".join(repr(key) for key in sorted(states)) or "none"
    if not states:
        raise ValueError("the file contains no flow: no tensor is named blocks.*")
    if name is not None:
        if name not in states:
            raise ValueError(f"--state must be one of {names}, got {name!r}")
        return name, states[name]
    if len(states) > 1:
        raise ValueError(f"the file contains several states, {names}; choose one with --state")
    return next(iter(states.items()))
