"""Finds the model states in a file by the keys that they are nested under, and strips the prefixes of wrappers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starflow_jax.tensor_formats.tensors import LazyTensor, LeftAside, counted

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
        key, clean = _state_and_name(name)
        if key is None:
            rest[clean] = tensor
            continue
        state = states.setdefault(key, {})
        if clean in state:
            raise ValueError(f"the file contains {clean} twice, under names that wrappers changed")
        state[clean] = tensor
    if list(states) == [""]:
        states[""] |= rest
    # A group without blocks, such as a single buffer among an optimizer's moments, is not a state.
    return {key: state for key, state in states.items() if any(name.startswith("blocks.") for name in state)}


def _state_and_name(name: str) -> tuple[str | None, str]:
    """The key of the state that a name belongs to (None for none), and the name there, both without wrappers."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    index = next((i for i, part in enumerate(parts) if part in _ROOTS), None)
    return (None, ".".join(parts)) if index is None else (".".join(parts[:index]), ".".join(parts[index:]))


def unread_of(left_aside: Sequence[LeftAside], state: str) -> tuple[LeftAside, ...]:
    """The objects that are left aside where a state has tensors, with the originals' names as their paths."""
    entries = [(_state_and_name(one.path), one.name) for one in left_aside]
    return tuple(LeftAside(clean, name) for (key, clean), name in entries if key == state)


def choose(
    states: Mapping[str, Mapping[str, LazyTensor]], name: str | None, left_aside: Sequence[LeftAside] = ()
) -> tuple[str, Mapping[str, LazyTensor]]:
    """Returns the key and tensors of the named state, or of the only one.

    Args:
      states: result of `states_of`.
      name: the key of a state, or a part of the key of one state alone: "ema" for "state_dict.ema".
      left_aside: the objects of the file that are not read, which a sentence names.

    Raises:
      ValueError: there is no state, there are several and no name is given, or no state has that name.
    """
    names = ", ".join(repr(key) for key in sorted(states)) or "none"
    if not states:
        aside = f"; it contains {counted(left_aside)}" if left_aside else ""
        raise ValueError(f"the file contains no flow: no tensor is named blocks.*{aside}")
    if name is not None:
        matches = [name] if name in states else [key for key in states if name in key.split(".")]
        if len(matches) != 1:
            raise ValueError(f"--weights must be one of {names}, got {name!r}")
        return matches[0], states[matches[0]]
    if len(states) > 1:
        raise ValueError(f"the file contains several states, {names}; choose one with --weights")
    return next(iter(states.items()))
