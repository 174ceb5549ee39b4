"""Progress of a run on standard error: a bar in a terminal, otherwise one line per row of metrics."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm


def line(name: str, step: int, steps: int, values: Mapping[str, float], seconds_left: float | None = None) -> str:
    """A row of metrics as one line of text; unknown values are omitted.

    Args:
      seconds_left: expected seconds until the last step; None if unknown.
    """
    parts = [f"{name}: step {step}/{steps}"]
    for field, form in (
        ("loss", "loss {:.4f}"),
        ("bits_per_dim", "bits/dim {:.4f}"),
        ("held_out_bits_per_dim", "held out {:.4f} bits/dim"),
        ("psnr", "PSNR {:.2f} dB"),
        ("reward", "reward {:.4f}"),
        ("kl", "KL {:.3f} nats"),
        ("grad_norm", "gradient {:.3g}"),
        ("learning_rate", "rate {:.3g}"),
        ("images_per_second", "{:.4g} images/s"),
    ):
        if math.isfinite(values.get(field, math.nan)):
            parts.append(form.format(values[field]))
    for field, label in (("mfu", "MFU"), ("data_wait", "data wait")):
        if math.isfinite(values.get(field, math.nan)):
            parts.append(f"{label} {100 * values[field]:.1f} %")
    if "skipped_updates" in values:
        parts.append(f"skipped {values['skipped_updates']:.0f}")
    if values.get("bad_examples"):
        parts.append(f"bad examples {values['bad_examples']:.0f}")
    if seconds_left is not None:
        parts.append(f"{tqdm.format_interval(round(seconds_left))} left")
    return "  ".join(parts)


class Progress:
    """A progress bar on standard error if that is a terminal, otherwise lines. A context manager.

    Args:
      steps: number of updates of the whole run.
      enabled: false shows only the text passed to `say`.
    """

    def __init__(self, name: str, steps: int, *, enabled: bool = True):
        self._name, self._steps = name, steps
        self._lines = enabled and not sys.stderr.isatty()
        self._enabled = enabled
        self._bar = tqdm(disable=True)
        self._first: tuple[int, float] | None = None  # step and time of the first row, after compilation

    def started(self, step: int) -> Progress:
        """Shows the bar at `step`; returns this object."""
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
        """Advances the bar by `steps` updates."""
        self._bar.update(steps)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Shows a row of metrics."""
        if self._lines:
            self.say(line(self._name, step, self._steps, values, self._seconds_left(step)))
            return
        postfix = {}
        for field, label, form in (
            ("loss", "loss", "{:.4f}"),
            ("bits_per_dim", "bits/dim", "{:.3f}"),
            ("reward", "reward", "{:.3f}"),
            ("kl", "KL", "{:.2f}"),
            ("images_per_second", "images/s", "{:.0f}"),
            ("mfu", "MFU", "{:.2f}"),
        ):
            if math.isfinite(values.get(field, math.nan)):
                postfix[label] = form.format(values[field])
        if values.get("skipped_updates"):
            postfix["skipped"] = f"{values['skipped_updates']:.0f}"
        if values.get("bad_examples"):
            postfix["bad"] = f"{values['bad_examples']:.0f}"
        self._bar.set_postfix(postfix, refresh=False)

    def _seconds_left(self, step: int) -> float | None:
        """Expected seconds until the last step at the rate since the first row of metrics; None at that row."""
        now = time.monotonic()
        if self._first is None or step <= self._first[0]:
            self._first = (step, now)
            return None
        first_step, first_time = self._first
        return (now - first_time) / (step - first_step) * (self._steps - step)

    def remark(self, text: str, *, always: bool = False) -> None:
        """Prints a line if progress is enabled, or `always`."""
        if self._enabled or always:
            self.say(f"{self._name}: {text}")

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one; also if progress is not enabled."""
        tqdm.write(text, file=sys.stderr)
