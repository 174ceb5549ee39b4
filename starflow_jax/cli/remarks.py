"""Messages to the user besides results, printed by process 0 alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starflow_jax.cli.process_group import is_first

if TYPE_CHECKING:
    from starflow_jax.data.decoding.bad_examples import Skipped


def remark(text: str) -> None:
    """Prints a line on standard error, from process 0 alone."""
    if is_first():
        print(f"starflow: {text}", file=sys.stderr)


def latents_are_fixed(fields: Sequence[str]) -> str:
    """The message about options of random crops and flips, which have no effect on latents."""
    return f"data.{' and data.'.join(fields)} has no effect: latents are those of whole images, cropped at the centre"


def skipped_lines(skipped: Skipped) -> None:
    """Prints a line for each example that could not be read and was skipped, from process 0 alone."""
    for name, reason in skipped.reasons.items() if is_first() else ():
        print(f"skipped {name}: {reason}")
