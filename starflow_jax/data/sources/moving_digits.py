"""Clips of handwritten digits that move and bounce: a video data set with captions that needs no download.

The digits are scikit-learn's own (`data.digits`), test clips showing test digits only. A digit moves along one axis at
a constant speed and turns back at the border of the canvas. Which digit, where it starts and where it goes follow from
the seed and the clip's number alone.

Three kinds of clip, told apart by the first word of the caption (specification, section 5):

- plain, "a seven moving left": the motion has this direction over the first quarter of the clip at least;
- "(extend) a seven moving left": the same journey seen from a later moment on, for clips that are continued;
- "(v2v) inverted": the first half of the frames, then the same frames with ink and paper exchanged.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np

from starflow_jax.core.choices import Split
from starflow_jax.core.config.checks import check, check_choices, check_integer, check_real
from starflow_jax.data.sources.digits import digits
from starflow_jax.models.text.templates import EXTEND, TRANSLATE, prefixed
from starflow_jax.models.text.words import WordEncoder

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ARTICLED = tuple(f"{'an' if name == 'eight' else 'a'} {name}" for name in NAMES)
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
VOCABULARY = (TRANSLATE, EXTEND, "inverted", "a", "an", "and", "moving", *NAMES, *DIRECTIONS)
LEVELS, SIDE = 17, 8
# The longest journey before the moment from which an "(extend)" clip shows it.
_MAX_DELAY = 32


# The split is found by hashing every image, which a clip should not wait for.
_digits = functools.cache(digits)


@dataclasses.dataclass(frozen=True)
class _Mover:
    """One digit on its way.

    Attributes:
      digit: place in the source of digits; direction: a key of DIRECTIONS.
      across: fixed coordinate on the other axis; along: first coordinate on the axis of motion, in the sense of it.
    """

    digit: int
    direction: str
    across: int
    along: int


@dataclasses.dataclass(frozen=True)
class MovingDigits:
    """A source of clips: `image` uint8 [T, S, S, 1] of 17 levels, `label` the (first) digit, `text` word ids [L].

    Attributes:
      split: "train" or "test": whose digits are shown.
      frames, canvas: T and S.
      speed: pixels that a digit moves from one frame to the next.
      digits: digits in a clip, 1 or 2 (two may cover each other; the darker pixel is seen).
      clips: how many there are.
      straight_frames: steps over which a plain clip moves as its caption says; None for a quarter of the frames. Part
        of what decides a clip, so that a longer clip can show the same journey as a shorter one.
      words: L, the length captions are padded to.
      extend, inverted: shares of the "(extend)" and of the "(v2v)" clips.
      seed: of everything random.
    """

    split: Split
    frames: int = 8
    canvas: int = 16
    speed: int = 2
    digits: Literal[1, 2] = 1
    clips: int = 20_000
    straight_frames: int | None = None
    words: int = 6
    extend: float = 0.0
    inverted: float = 0.0
    seed: int = 0

    def __post_init__(self):
        check_choices(self)
        check_integer("frames", self.frames, minimum=2)
        check_integer("speed", self.speed, minimum=1)
        check_integer("canvas", self.canvas, minimum=SIDE + 2)
        check_integer("clips", self.clips, minimum=1)
        check_integer("straight_frames", self.straight, minimum=1)
        check_integer("seed", self.seed, minimum=0)
        longest = 5 * self.digits  # "a seven moving left", "and", and a kind
        check_integer("words", self.words, minimum=longest)
        for name in ("extend", "inverted"):
            check_real(name, getattr(self, name), minimum=0.0)
        check(
            self.extend + self.inverted <= 1.0,
            f"extend and inverted must sum to at most 1, got {self.extend} + {self.inverted}",
        )
        room = self.canvas - SIDE
        check(
            self.straight * self.speed <= room,
            f"speed must be at most {room // self.straight} pixels for {self.straight} straight steps on a canvas of "
            f"{self.canvas}, got {self.speed}",
        )

    @property
    def name(self) -> str:
        """For logs."""
        return f"moving-digits-{self.split}"

    @property
    def straight(self) -> int:
        """Steps from the first frame on over which a plain clip moves as its caption says."""
        return max(1, self.frames // 4) if self.straight_frames is None else self.straight_frames

    @property
    def levels(self) -> int:
        """Values of a pixel."""
        return LEVELS

    @property
    def num_classes(self) -> int:
        """Digits."""
        return len(NAMES)

    @property
    def encoder(self) -> WordEncoder:
        """Of the captions."""
        return WordEncoder(VOCABULARY, self.words)

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        kind, delay, movers = self._clip(index)
        video = self._draw(movers, np.arange(self.frames) + delay)
        if kind == "inverted":
            # The target of an odd number of frames has the one more, which goes on a step.
            source = video[: self.frames // 2]
            video = np.concatenate([source, (LEVELS - 1) - video[: self.frames - len(source)]])
        label = _digits(self.split).labels[movers[0].digit]
        return {"image": video, "label": label, "text": self.encoder.ids([self.caption(index)])[0]}

    def caption(self, index: int) -> str:
        """What the clip shows."""
        kind, _, movers = self._clip(index)
        if kind == "inverted":
            return f"{TRANSLATE} inverted"
        named = [f"{ARTICLED[_digits(self.split).labels[m.digit]]} moving {m.direction}" for m in movers]
        return prefixed(" and ".join(named), EXTEND if kind == "extend" else None)

    def _clip(self, index: int) -> tuple[str, int, list[_Mover]]:
        """The clip's kind, the step of the journey at which it begins, and who moves."""
        if not 0 <= index < self.clips:
            raise IndexError(f"clip must be 0 to {self.clips - 1}, got {index}")
        rng = np.random.default_rng([self.seed, ("train", "test").index(self.split), index])
        share = rng.random()
        kind = "extend" if share < self.extend else "inverted" if share < self.extend + self.inverted else "plain"
        room = self.canvas - SIDE
        movers = [
            _Mover(
                digit=int(rng.integers(len(_digits(self.split)))),
                direction=str(rng.choice(list(DIRECTIONS))),
                across=int(rng.integers(room + 1)),
                # Far enough from the border ahead to go straight for a while.
                along=int(rng.integers(room - self.straight * self.speed + 1)),
            )
            for _ in range(self.digits)
        ]
        delay = int(rng.integers(_MAX_DELAY)) if kind == "extend" else 0
        return kind, delay, movers

    def _draw(self, movers: list[_Mover], steps: np.ndarray) -> np.ndarray:
        """The canvas at each step of the journey, uint8 [len(steps), S, S, 1]."""
        room = self.canvas - SIDE
        video = np.zeros((len(steps), self.canvas, self.canvas, 1), np.uint8)
        for mover in movers:
            image = _digits(self.split).images[mover.digit]
            row_step, column_step = DIRECTIONS[mover.direction]
            for frame, step in zip(video, steps, strict=True):
                # A triangle wave: forth, and back from the border.
                along = (mover.along + self.speed * int(step)) % (2 * room)
                along = min(along, 2 * room - along)
                along = along if row_step + column_step > 0 else room - along
                row, column = (along, mover.across) if row_step else (mover.across, along)
                window = frame[row : row + SIDE, column : column + SIDE]
                np.maximum(window, image, out=window)
        return video
