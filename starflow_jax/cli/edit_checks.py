"""What `starflow edit` refuses: options that do not belong together, or that do not fit the run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from starflow_jax.cli.errors import CommandError
from starflow_jax.cli.options.outputs import check_new_folder, check_writable
from starflow_jax.core.storage.places import shown

if TYPE_CHECKING:
    from starflow_jax.sampling.loaded_run import Run

SUFFIXES = (".png", ".npz", ".gif", ".mp4")
POSTERIOR = ("inpaint", "upscale", "denoise", "colourise", "operator")
# The options that belong to some of the operations.
_OWN = {
    "mask": ("inpaint",),
    "factor": ("upscale",),
    "operator": ("operator",),
    "measure": ("upscale", "denoise", "colourise", "operator"),
    "seed": POSTERIOR,
    "sigma": POSTERIOR,
    "chains": POSTERIOR,
    "candidates": POSTERIOR,
    "steps": POSTERIOR,
    "burn_in": POSTERIOR,
    "moves": POSTERIOR,
    "leapfrog": POSTERIOR,
    "step_size": POSTERIOR,
    "checkpoint": POSTERIOR,
    "num": ("interpolate",),
    "to_label": ("attribute",),
    "to_caption": ("attribute",),
    "without": ("attribute",),
    "having": ("attribute",),
    "strength": ("attribute",),
}


def check_options(arguments: argparse.Namespace) -> None:
    """Raises CommandError for options of other operations, missing ones, and files that cannot be written."""
    operation = arguments.operation
    for name, operations in _OWN.items():
        if getattr(arguments, name) is not None and operation not in operations:
            flag = {"to_label": "--to-class"}.get(name, "--" + name.replace("_", "-"))
            raise CommandError(f"{flag} is for {', '.join(operations)}, got {operation}")
    for name, owner in (("mask", "inpaint"), ("factor", "upscale"), ("operator", "operator")):
        if operation == owner and getattr(arguments, name) is None:
            raise CommandError(f"{operation} requires --{name}, got none")
    if operation == "denoise" and arguments.sigma is None:
        raise CommandError("denoise requires --sigma, got none")
    if (arguments.without is None) != (arguments.having is None):
        raise CommandError("--without and --having must be given together, got one of them")
    changes = (arguments.to_label, arguments.to_caption, arguments.having)
    if operation == "attribute" and all(value is None for value in changes):
        raise CommandError("attribute requires --to-class, --to-caption or --without and --having, got none")
    _check_conditions(arguments)
    _check_moves(arguments)
    out = arguments.out
    if not out.suffix:
        check_new_folder("--out", out)
    elif out.suffix in SUFFIXES:
        check_writable("--out", out)
    else:
        allowed = f"{', '.join(SUFFIXES)}, or be a folder without a suffix"
        raise CommandError(f"--out must end in {allowed}, got {str(out)!r}")
    if out.suffix == ".npz" and arguments.scale is not None:
        raise CommandError(f"--scale is for pictures and videos, got --out {str(out)!r}")
    if arguments.json is not None and arguments.json.absolute() == out.absolute():
        raise CommandError(f"--json must be another file than --out, got {str(out)!r} for both")
    if arguments.checkpoint is not None:
        _check_checkpoint(arguments)


def _check_checkpoint(arguments: argparse.Namespace) -> None:
    """Raises CommandError for a folder of chains in the way of the results, or that cannot hold chains."""
    from starflow_jax.editing.chain_record import RECORD

    checkpoint = arguments.checkpoint
    for flag, path in (("--out", arguments.out), ("--json", arguments.json)):
        # Texts, with addresses in place of local copies, whose folders do not contain one another as addresses do.
        if path is not None and f"{_text(checkpoint)}/".startswith(f"{_text(path)}/"):
            raise CommandError(
                f"--checkpoint must be another folder than {flag}, and not inside of it, got {str(checkpoint)!r} and "
                f"{flag} {str(path)!r}"
            )
    if arguments.json is not None and _text(arguments.json) == f"{_text(checkpoint)}/{RECORD}":
        raise CommandError(f"--json must not be the record of --checkpoint, got {str(arguments.json)!r}")
    check_new_folder("--checkpoint", checkpoint, RECORD)


def _text(path: Path) -> str:
    return shown(os.path.abspath(path))


def _check_conditions(arguments: argparse.Namespace) -> None:
    """Raises CommandError for classes and captions that exclude one another or have no effect."""
    if arguments.label is not None and arguments.captions is not None:
        raise CommandError("--class and --caption are mutually exclusive")
    if arguments.to_label is not None and arguments.to_caption is not None:
        raise CommandError("--to-class and --to-caption are mutually exclusive")
    refused = ("all",) if arguments.operation in POSTERIOR else ("all", "any")
    for flag, label, words in (
        ("--class", arguments.label, refused),
        ("--to-class", arguments.to_label, ("all", "any")),
    ):
        if label in words:
            allowed = "a class or none" if "any" in words else "a class, any or none"
            raise CommandError(f"{flag} must be {allowed}, got {label}")
    if arguments.strength is not None and arguments.having is None:
        raise CommandError("--strength needs --without and --having, got neither")
    if arguments.having is not None and len(arguments.captions or ()) > 1:
        raise CommandError(f"--caption must be one for all with --having, got {len(arguments.captions)}")


def _check_moves(arguments: argparse.Namespace) -> None:
    """Raises CommandError for options that the kind of moves does not have."""
    moves = arguments.moves or "mala"
    if arguments.leapfrog is not None and moves not in ("hamiltonian", "latent-hamiltonian", "both"):
        raise CommandError(f"--leapfrog is for --moves hamiltonian, latent-hamiltonian and both, got {moves}")
    if arguments.step_size is not None and moves in ("latent", "latent-hamiltonian"):
        raise CommandError(f"--step-size is for moves of data, got --moves {moves}")


def check_data(arguments: argparse.Namespace, model: Run) -> None:
    """Raises CommandError for a run on data of a kind that the operation cannot edit."""
    data = model.config.data
    if data.traits.vectors:
        raise CommandError(f"edit is for runs on images or clips, got one on vectors in {model.workdir}")
    if data.on_latents and arguments.operation not in POSTERIOR:
        raise CommandError(f"{arguments.operation} is for runs on pixels, got one on latents in {model.workdir}")


def check_out(arguments: argparse.Namespace, model: Run) -> None:
    """Raises CommandError where the results of a run cannot have the kind of file of --out."""
    from starflow_jax.editing.examples import data_size

    suffix, (*front, channels) = arguments.out.suffix, data_size(model)
    if suffix in (".gif", ".mp4") and len(front) == 2:
        raise CommandError(f"--out must end in .png or .npz for a run on still images, got {str(arguments.out)!r}")
    if suffix != ".npz" and channels not in (1, 3):
        raise CommandError(f"--out must end in .npz for a run on {channels} channels, got {str(arguments.out)!r}")
