"""Clips of handwritten digits that move and bounce: a video data set with captions that needs no download.

The digits are those of scikit-learn (`data.sources.digits`); test clips show test digits only. A digit moves along one
axis at a constant speed and turns back at the border of the canvas. The digit, its start and its direction are
functions of the seed and the index of the clip.

There are three kinds of clips, which differ in the first word of the caption (specification, section 5):

- plain, "a seven moving left": the motion has this direction over at least the first quarter of the clip;
- "(extend) a seven moving left": the same trajectory from a later moment on, for continuing clips;
- "(v2v) inverted": the first half of the frames, then the same frames with inverted intensity.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np

from starflow_jax.core.choices import Split
from starflow_jax.core.config.checks import check, check_choices, check_integer, check_real
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.data.sources.digits import digits
from starflow_jax.data.sources.source_request import SourceRequest
from starflow_jax.models.text.templates import EXTEND, TRANSLATE, prefixed
from starflow_jax.models.text.words import WordEncoder

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ARTICLED = tuple(f"{'an' if name == 'eight' else 'a'} {name}" for name in NAMES)
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
VOCABULARY = (TRANSLATE, EXTEND, "inverted", "a", "an", "and", "moving", *NAMES, *DIRECTIONS)
# Every digit in every direction.
CAPTIONS = tuple(f"{digit} moving {direction}" for digit in ARTICLED for direction in DIRECTIONS)
LEVELS, SIDE = 17, 8
# The largest number of steps that an "(extend)" clip skips.
_MAX_DELAY = 32


# The split hashes every image, which is too slow to repeat for every clip.
_digits = functools.cache(digits)


@dataclasses.dataclass(frozen=True)
class _Mover:
    """One moving digit.

    Attributes:
      digit: index in the source of digits; direction: a key of DIRECTIONS.
      across: constant coordinate on the other axis; along: first coordinate on the axis of motion, in its direction.
    """

    digit: int
    direction: str
    across: int
    along: int


@dataclasses.dataclass(frozen=True)
class MovingDigits:
    """A source of clips: `image` uint8 [T, S, S, 1] of 17 levels, `label` the (first) digit, `text` word ids [L].

    Attributes:
      split: "train" or "test", the split of the digits.
      frames, canvas: T and S.
      speed: pixels that a digit moves from one frame to the next.
      digits: digits in a clip, 1 or 2 (where two overlap, the darker pixel is visible).
      clips: number of clips.
      straight_frames: steps over which a plain clip moves in the direction of its caption; None for a quarter of the
        frames. A longer clip with the same value shows the same trajectory as a shorter one.
      words: L, the padded length of captions.
      extend, inverted: shares of the "(extend)" and of the "(v2v)" clips.
      seed: seed of all random choices.
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
        """Name in logs."""
        return f"moving-digits-{self.split}"

    @property
    def straight(self) -> int:
        """Steps from the first frame on over which a plain clip moves in the direction of its caption."""
        return max(1, self.frames // 4) if self.straight_frames is None else self.straight_frames

    @property
    def levels(self) -> int:
        """Number of levels of a pixel."""
        return LEVELS

    @property
    def num_classes(self) -> int:
        """Number of digits."""
        return len(NAMES)

    @property
    def encoder(self) -> WordEncoder:
        """The encoder of the captions."""
        return WordEncoder(VOCABULARY, self.words)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The words of the captions."""
        return VOCABULARY

    def with_frames(self, frames: int) -> MovingDigits:
        """The same trajectories in clips of `frames` frames, at least 2: a "(v2v)" clip has a source and a target."""
        return dataclasses.replace(self, frames=max(2, frames), straight_frames=self.straight)

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        kind, delay, movers = self._clip(index)
        video = self._render(movers, np.arange(self.frames) + delay)
        if kind == "inverted":
            # With an odd number of frames the target is one frame longer than the source.
            source = video[: self.frames // 2]
            video = np.concatenate([source, (LEVELS - 1) - video[: self.frames - len(source)]])
        label = _digits(self.split).labels[movers[0].digit]
        return {"image": video, "label": label, "text": self.encoder.ids([self.caption(index)])[0]}

    def caption(self, index: int) -> str:
        """The caption of a clip."""
        kind, _, movers = self._clip(index)
        if kind == "inverted":
            return f"{TRANSLATE} inverted"
        phrases = [f"{ARTICLED[_digits(self.split).labels[m.digit]]} moving {m.direction}" for m in movers]
        return prefixed(" and ".join(phrases), EXTEND if kind == "extend" else None)

    def _clip(self, index: int) -> tuple[str, int, list[_Mover]]:
        """The kind of the clip, the step of the trajectory at which it begins, and its digits."""
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
                # Far enough from the border to move straight for `straight` steps.
                along=int(rng.integers(room - self.straight * self.speed + 1)),
            )
            for _ in range(self.digits)
        ]
        delay = int(rng.integers(_MAX_DELAY)) if kind == "extend" else 0
        return kind, delay, movers

    def _render(self, movers: list[_Mover], steps: np.ndarray) -> np.ndarray:
        """The canvas at each step of the trajectory, uint8 [len(steps), S, S, 1]."""
        room = self.canvas - SIDE
        video = np.zeros((len(steps), self.canvas, self.canvas, 1), np.uint8)
        for mover in movers:
            image = _digits(self.split).images[mover.digit]
            row_step, column_step = DIRECTIONS[mover.direction]
            for frame, step in zip(video, steps, strict=True):
                # A triangle wave: the digit turns back at the border.
                along = (mover.along + self.speed * int(step)) % (2 * room)
                along = min(along, 2 * room - along)
                along = along if row_step + column_step > 0 else room - along
                row, column = (along, mover.across) if row_step else (mover.across, along)
                window = frame[row : row + SIDE, column : column + SIDE]
                np.maximum(window, image, out=window)
        return video


@SOURCES.register(
    "moving_digits",
    frames="always",
    captions="words",
    fields=("clips", "test_clips", "digits", "speed", "extend", "inverted"),
    levels=17,
)
def open_moving_digits(config: SourceConfig, request: SourceRequest) -> MovingDigits:
    """Clips on a canvas of the flow's image_size.

    Raises:
      ValueError: there is no flow of square images, or the clips do not fit it.
    """
    flow = request.flow
    if flow is None or flow.image_shape[0] != flow.image_shape[1]:
        raise ValueError("data.source 'moving_digits' needs a flow of a square flow.image_size")
    return MovingDigits(
        request.split,
        frames=config.frames,
        canvas=flow.image_shape[0],
        digits=config.digits,
        speed=config.speed,
        clips=config.clips if request.training else config.test_clips,
        words=flow.text_length,
        # Held-out clips are plain, so that scores do not depend on the shares.
        extend=config.extend if request.training else 0.0,
        inverted=config.inverted if request.training else 0.0,
    )
