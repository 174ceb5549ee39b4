"""What a person sees of a run: a bar in a terminal, one line for every row of metrics elsewhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping

from tqdm import tqdm


def line(name: str, step: int, steps: int, values: Mapping[str, float]) -> str:
    """A row of metrics as one line; figures that are not known are left out."""
    shown = [f"{name}: step {step}/{steps}"]
    for field, form in (
        ("loss", "loss {:.4f}"),
        ("bits_per_dim", "bits/dim {:.4f}"),
        ("held_out_bits_per_dim", "held out {:.4f} bits/dim"),
        ("psnr", "PSNR {:.2f} dB"),
        ("grad_norm", "gradient {:.3g}"),
        ("learning_rate", "rate {:.3g}"),
        ("images_per_second", "{:.4g} images/s"),
    ):
        if math.isfinite(values.get(field, math.nan)):
            shown.append(form.format(values[field]))
    for field, label in (("mfu", "MFU"), ("data_wait", "data wait")):
        if math.isfinite(values.get(field, math.nan)):
            shown.append(f"{label} {100 * values[field]:.1f} %")
    if "skipped_updates" in values:
        shown.append(f"skipped {values['skipped_updates']:.0f}")
    if values.get("bad_examples"):
        shown.append(f"bad examples {values['bad_examples']:.0f}")
    return "  ".join(shown)


class Progress:
    """A progress bar on standard error if that is a terminal, else lines. A context manager.

    Args:
      steps: of the whole run.
      enabled: false shows nothing but what is said.
    """

    def __init__(self, name: str, steps: int, *, enabled: bool = True):
        self._name, self._steps = name, steps
        self._lines = enabled and not sys.stderr.isatty()
        self._enabled = enabled
        self._bar = tqdm(disable=True)

    def begun(self, step: int) -> Progress:
        """Shows the bar, from `step` on."""
        self._bar = tqdm(
            total=self._steps,
            initial=step,
            desc=self._name,
            unit="step",
            disable=not self._enabled or self._lines,
            dynamic_ncols=True,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]",
        )
        return self

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, steps: int) -> None:
        """Moves on by `steps` updates."""
        self._bar.update(steps)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Shows a row of metrics."""
        if self._lines:
            self.say(line(self._name, step, self._steps, values))
            return
        shown = {}
        for field, label, form in (
            ("loss", "loss", "{:.4f}"),
            ("bits_per_dim", "bits/dim", "{:.3f}"),
            ("images_per_second", "images/s", "{:.0f}"),
            ("mfu", "MFU", "{:.2f}"),
        ):
            if math.isfinite(values.get(field, math.nan)):
                shown[label] = form.format(values[field])
        if values.get("skipped_updates"):
            shown["skipped"] = f"{values['skipped_updates']:.0f}"
        if values.get("bad_examples"):
            shown["bad"] = f"{values['bad_examples']:.0f}"
        self._bar.set_postfix(shown, refresh=False)

    def remark(self, text: str) -> None:
        """Prints a line, unless nothing is to be shown."""
        if self._enabled:
            self.say(f"{self._name}: {text}")

    def say(self, text: str) -> None:
        """Prints a line, above the bar where there is one; also where nothing else is shown."""
        tqdm.write(text, file=sys.stderr)
