"""Where the time of a run goes: compilation, data, updates, saves; and the share of it that made lasting progress."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from starflow_jax.core.atomic_writing import write_text
from starflow_jax.core.regular_files import parse_json, read_text

GOODPUT_FILE = "goodput.json"
_MOST_SECONDS = 1e12
# What the time of an attempt is spent on; "step" is everything in the loop that is none of the others.
PHASES = {
    "start": "opening data and devices",
    "restore": "initialising or restoring the state",
    "compile": "compilation and the first update of a program",
    "step": "updates",
    "data": "waiting for data",
    "save": "saving checkpoints",
    "callback": "samples and evaluations",
}


class TimeAccount:
    """The seconds of the running attempt by phase; a phase inside another takes its time from the outer one.

    Args:
      clock: returns seconds that never decrease.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._lock = clock, threading.Lock()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase, self._since = "start", clock()

    @property
    def phase(self) -> str:
        """The current phase."""
        return self._phase

    @property
    def since_change(self) -> float:
        """Seconds since the current phase began; the loop changes its phase at least twice for every call."""
        return self._clock() - self._since

    def enter(self, phase: str) -> str:
        """Switches to another phase; returns the previous one."""
        with self._lock:
            now = self._clock()
            self._seconds[self._phase] += now - self._since
            previous, self._phase, self._since = self._phase, phase, now
        return previous

    @contextlib.contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Charges the time inside to `phase`."""
        previous = self.enter(phase)
        try:
            yield
        finally:
            self.enter(previous)

    def seconds(self) -> dict[str, float]:
        """The seconds of every phase up to now."""
        with self._lock:
            seconds = dict(self._seconds)
            seconds[self._phase] += self._clock() - self._since
        return seconds


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One call of `train` for a run.

    Attributes:
      first_step, last_step: number of updates at its start, and when it was last recorded.
      began, recorded: Unix time of both.
      seconds: by phase, from `began` to `recorded`.
    """

    first_step: int
    last_step: int
    began: float
    recorded: float
    seconds: Mapping[str, float]

    @property
    def total(self) -> float:
        """All its seconds."""
        return sum(self.seconds.values())


@dataclasses.dataclass(frozen=True)
class Goodput:
    """The time of all attempts of a run.

    Attributes:
      attempts: in the order of time.
    """

    attempts: tuple[Attempt, ...]

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of all attempts by phase."""
        return {phase: sum(one.seconds.get(phase, 0.0) for one in self.attempts) for phase in PHASES}

    @property
    def total(self) -> float:
        """Seconds of all attempts."""
        return sum(one.total for one in self.attempts)

    @property
    def lost(self) -> float:
        """Seconds of updates that a later attempt made again, because they were after its checkpoint.

        The part of an attempt that ended after its last record is not known and not included.
        """
        lost = 0.0
        for index, one in enumerate(self.attempts[:-1]):
            resumed = min(after.first_step for after in self.attempts[index + 1 :])
            made, repeated = one.last_step - one.first_step, one.last_step - resumed
            if repeated > 0 and made > 0:
                lost += one.seconds.get("step", 0.0) * min(repeated / made, 1.0)
        return lost

    @property
    def share(self) -> float:
        """Seconds of updates that were not lost, as a share of all seconds, 0 to 1."""
        return max(0.0, self.seconds["step"] - self.lost) / self.total if self.total else 0.0

    def rows(self) -> list[tuple[str, str]]:
        """The account as pairs of a label and a text."""
        count = len(self.attempts)
        attempts = f"{count} attempt{'s' if count != 1 else ''}"
        rows = [("goodput", f"{100 * self.share:.1f} % of {duration(self.total)} in {attempts}")]
        parts = [(PHASES[phase], seconds) for phase, seconds in self.seconds.items()]
        parts.append(("updates made again after a restart (part of the updates)", self.lost))
        return rows + [
            (label, f"{duration(seconds)}, {100 * seconds / self.total:.1f} %")
            for label, seconds in parts
            if seconds > 0
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "goodput": self.share,
            "seconds": self.seconds,
            "lost_seconds": self.lost,
            "attempts": len(self.attempts),
        }


class GoodputRecord:
    """Keeps the account of a run in its folder, one entry for each attempt.

    Args:
      workdir: an existing folder.
      account: of this attempt.
      first_step: number of updates made before this attempt.
      enabled: false writes nothing, for all processes of a run but one.
    """

    def __init__(self, workdir: Path, account: TimeAccount, first_step: int, *, enabled: bool = True):
        earlier = read_goodput(workdir)
        self._earlier = () if earlier is None else earlier.attempts
        self._path, self._account, self._enabled = Path(workdir) / GOODPUT_FILE, account, enabled
        self._first, self._began = first_step, time.time() - sum(account.seconds().values())

    def current(self, step: int) -> Goodput:
        """The account up to now, `step` updates into the run."""
        now = Attempt(self._first, step, self._began, time.time(), self._account.seconds())
        return Goodput((*self._earlier, now))

    def write(self, step: int) -> None:
        """Records the account up to now."""
        if self._enabled:
            attempts = [dataclasses.asdict(one) for one in self.current(step).attempts]
            write_text(self._path, json.dumps({"attempts": attempts}, indent=1) + "\n")


def read_goodput(workdir: Path) -> Goodput | None:
    """The account of a run; None if there is none, or it cannot be read."""
    path = Path(workdir) / GOODPUT_FILE
    try:
        values = parse_json(read_text(path))
        return Goodput(tuple(_attempt(one) for one in values["attempts"]))
    # Absent, or not what `write` has written.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def duration(seconds: float) -> str:
    """A duration as `1:02:03`, and in seconds below a minute."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _attempt(values: Mapping[str, Any]) -> Attempt:
    seconds: Sequence[tuple[str, float]] = [(phase, float(values["seconds"].get(phase, 0.0))) for phase in PHASES]
    if not all(0 <= time < _MOST_SECONDS for _, time in seconds):  # false for NaN, too
        raise ValueError(f"seconds must be from 0 to {_MOST_SECONDS:g}, got {seconds}")
    steps = (int(values["first_step"]), int(values["last_step"]))
    return Attempt(*steps, float(values["began"]), float(values["recorded"]), dict(seconds))
