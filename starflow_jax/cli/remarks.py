"""What a person is told besides results, by the process that speaks for all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starflow_jax.cli.options.devices import is_first

if TYPE_CHECKING:
    from starflow_jax.data.decoding.bad_examples import Skipped


def remark(text: str) -> None:
    """A line on standard error, from the process that speaks for all."""
    if is_first():
        print(f"starflow: {text}", file=sys.stderr)


def latents_are_fixed(asked: Sequence[str]) -> str:
    """What is said of random crops and flips that latents do not have."""
    return f"data.{' and data.'.join(asked)} changes nothing: latents are of whole pictures, cut about the centre"


def skipped_lines(skipped: Skipped) -> None:
    """A line for each example that was skipped, from the process that speaks for all."""
    for name, reason in skipped.reasons.items() if is_first() else ():
        print(f"skipped {name}: {reason}")
