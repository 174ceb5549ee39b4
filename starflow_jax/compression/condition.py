"""What the flow is told about an image: its class, which the stream contains, or a caption, which the header does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from starflow_jax.compression.rans import AnsStack
from starflow_jax.core.config.checks import check
from starflow_jax.data.decoding.dequantise import dequantise
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sampling.ranking import log_likelihoods
from starflow_jax.sampling.videos.video_plan import caption_reader, text_states
from starflow_jax.training.step.frozen_text import prompts

# Captions that are checked at once.
_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The conditions of all images; those of a group are computed when it is coded.

    Attributes:
      kind: "none", "classes", which are coded, or "captions".
      labels: int32 [n] of an encoder; None where there are no classes or they are still in a stream.
      captions: one for each clip, or one for all.
      read: gives text states float32 [n, L, E] of captions.
      classes: of the flow.
    """

    kind: str
    labels: np.ndarray | None = None
    captions: tuple[str, ...] = ()
    read: Callable[[Sequence[str]], np.ndarray] | None = None
    classes: int = 0

    def rows(self, group: slice) -> np.ndarray | None:
        """What the flow reads for a group: labels int32 [g], -1 for none; text states float32 [g, L, E]; or None."""
        size = group.stop - group.start
        if self.read is not None:
            states = self.read(self.captions if len(self.captions) == 1 else self.captions[group])
            return np.broadcast_to(states, (size, *states.shape[1:]))
        if not self.classes:
            return None
        return np.full(size, -1, np.int32) if self.labels is None else self.labels[group]

    def push(self, stack: AnsStack, rows: np.ndarray | None) -> None:
        """Pushes the classes of a group, log2(classes) bits each; `rows` are those of the group."""
        if self.kind == "classes" and rows is not None:
            for label in reversed(rows.tolist()):
                stack.push_uniform(label, self.classes)

    def pop(self, stack: AnsStack, group: slice) -> np.ndarray | None:
        """What the flow reads for a group, with the classes that `push` pushed."""
        if self.kind != "classes":
            return self.rows(group)
        return np.asarray([stack.pop_uniform(self.classes) for _ in range(group.start, group.stop)], np.int32)


def class_conditions(
    model: Run, images: np.ndarray, cond: str | Sequence[int] | Sequence[str] | np.ndarray | None, levels: int
) -> Conditions:
    """The classes of images, for a flow with classes.

    Args:
      cond: labels [n]; "auto" for the likeliest; None for none, which takes no bits.

    Raises:
      ValueError: labels that the flow does not have.
    """
    flow = model.config.flow
    if cond is None:
        return Conditions("none", classes=flow.num_classes)
    check(not isinstance(cond, str) or cond == "auto", f'cond must be labels, "auto" or None, got {cond!r}')
    labels = likeliest_classes(model, images, levels) if isinstance(cond, str) else np.asarray(cond)
    fits = labels.dtype.kind in "iu" and labels.shape == (len(images),)
    check(fits, f"cond must be {len(images)} integers, got {labels.dtype} of shape {list(labels.shape)}")
    low, high, most = int(labels.min()), int(labels.max()), flow.num_classes - 1
    check(low >= 0 and high <= most, f"cond must be 0 to {most}, got {low if low < 0 else high}")
    return Conditions("classes", labels.astype(np.int32), classes=flow.num_classes)


def likeliest_classes(model: Run, images: np.ndarray, levels: int) -> np.ndarray:
    """The class under which each image, with pixels in the middles of their levels, is likeliest, int32 [n]."""
    flow = model.config.flow
    x = dequantise(images, np.full(images.shape, 0.5, np.float32), levels)
    scores = [
        log_likelihoods(model.params, flow, x, np.full(len(x), label, np.int32), noise_level=flow.lowest_level)
        for label in range(flow.num_classes)
    ]
    return np.argmax(np.nan_to_num(np.stack(scores), nan=-np.inf), axis=0).astype(np.int32)


def caption_conditions(model: Run, captions: str | Sequence[object] | np.ndarray, count: int) -> Conditions:
    """The text states of captions, one for all or one for each of `count`.

    Raises:
      ValueError: another number of captions, or one that the model cannot read.
    """
    texts = (captions,) if isinstance(captions, str) else tuple(captions)
    fits = len(texts) in (1, count) and all(isinstance(text, str) for text in texts)
    check(fits, f"cond must be one caption for all, or one for each of {count}, got {len(texts)} values")
    strings, config = tuple(map(str, texts)), model.config
    reader = caption_reader(config)
    for first in range(0, len(strings), _CHUNK):  # a caption that cannot be read is refused before anything is coded
        reader.encoder.ids(prompts(config, strings[first : first + _CHUNK]))

    def read(some: Sequence[str]) -> np.ndarray:
        return text_states(config, some, reader)

    return Conditions("captions", captions=strings, read=read)
