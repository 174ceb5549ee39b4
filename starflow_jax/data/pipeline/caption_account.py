"""Counts which examples of a source have a caption, and in what kind of file, before they are read for training."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.data.decoding.bad_examples import BadExample
from starflow_jax.data.sources.base import Source
from starflow_jax.data.sources.captioning import Captioner
from starflow_jax.data.sources.image_collection import ExampleCaptions
from starflow_jax.data.sources.mixture import components_of

# Examples whose captions are read, evenly spaced over the components.
MAX_READ = 20_000
_THREADS = 8


@dataclasses.dataclass(frozen=True)
class CaptionAccount:
    """Numbers of examples with and without a caption.

    Attributes:
      examples: in all; read: how many of them were looked at, evenly spaced.
      counts: of these, those with a caption that can be chosen, by the kind of file that contains it.
      missing: those without one; damaged: those whose caption cannot be read.
      kinds: kinds of captions that were found but have no weight in `data.captions.kinds`.
      missing_names: names of the first few examples without a caption.
    """

    examples: int
    read: int
    counts: Mapping[str, int]
    missing: int
    damaged: int
    kinds: tuple[str, ...] = ()
    missing_names: tuple[str, ...] = ()

    @property
    def with_caption(self) -> int:
        """Number of the examples looked at that have a caption."""
        return sum(self.counts.values())

    @property
    def complete(self) -> bool:
        """Whether every example looked at has a caption."""
        return self.missing == self.damaged == 0

    def sentence(self) -> str:
        """The account in one sentence."""
        examples = f"{self.read} examples"
        if self.read < self.examples:
            examples += f" looked at, of {self.examples},"
        origins = ", ".join(
            f"{count} in a {kind}" for kind, count in sorted(self.counts.items(), key=lambda one: -one[1])
        )
        text = f"captions: {self.with_caption} of {examples} have one" + (f" ({origins})" if origins else "")
        if self.missing:
            text += f"; {self.missing} HAVE NONE and are read with the empty caption"
            text += f", such as {self.missing_names[0]}" if self.missing_names else ""
        if self.damaged:
            text += f"; {self.damaged} cannot be read"
        if self.kinds:
            text += f"; kinds without a weight in data.captions.kinds: {', '.join(self.kinds)}"
        return text

    def check_any(self) -> None:
        """Raises ValueError where captions are wanted and no example has one."""
        reason = f"; those found are of kinds without a weight: {', '.join(self.kinds)}" if self.kinds else ""
        check(
            self.with_caption > 0 or self.damaged > 0,
            f"data must have captions for a flow that reads text, and none of {self.read} examples has one{reason}",
        )

    def figures(self) -> dict[str, Any]:
        """The account as JSON values."""
        return dataclasses.asdict(self)


def caption_account(source: Source) -> CaptionAccount | None:
    """Counts the captions of a source; None where none are read, or where they are generated or stored with latents."""
    parts = [component.source for component in components_of(source) if component.weight > 0]
    accounts = [account for part in parts for account in _accounts(part, MAX_READ // len(parts))]
    if not accounts:
        return None
    counts: collections.Counter[str] = collections.Counter()
    for account in accounts:
        counts.update(account.counts)
    return CaptionAccount(
        sum(account.examples for account in accounts),
        sum(account.read for account in accounts),
        dict(counts),
        sum(account.missing for account in accounts),
        sum(account.damaged for account in accounts),
        tuple(sorted({kind for account in accounts for kind in account.kinds})),
        tuple(name for account in accounts for name in account.missing_names)[:3],
    )


def _accounts(source: Any, max_read: int) -> list[CaptionAccount]:
    """The account of at most `max_read` examples of one component, in a list; empty where it reads no captions."""
    collection: Any = getattr(source, "collection", None) or getattr(source, "folder", None)
    captions: Callable[[int], ExampleCaptions] | None = getattr(collection, "captions", None)
    captioner: Captioner | None = getattr(source, "captioner", None)
    if captions is None or captioner is None:
        return []
    indices = getattr(source, "indices", None)
    count = len(source)
    positions = np.unique(np.linspace(0, count - 1, min(count, max(max_read, 1))).astype(np.int64))
    chosen = [int(position) if indices is None else int(indices[position]) for position in positions]

    def look(index: int) -> ExampleCaptions | None:
        try:
            return captions(index)
        except BadExample:
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        answers = list(pool.map(look, chosen, chunksize=64))
    counts: collections.Counter[str] = collections.Counter()
    missing, damaged, unweighted = [], 0, set()
    for index, answer in zip(chosen, answers, strict=True):
        if answer is None:
            damaged += 1
        elif captioner.kinds_of(answer.texts):
            counts[answer.origin] += 1
        else:
            missing.append(index)
            unweighted |= {kind for kind, texts in answer.texts.items() if texts}
    names = tuple(collection.key(index) for index in missing[:3])
    return [CaptionAccount(count, len(chosen), counts, len(missing), damaged, tuple(sorted(unweighted)), names)]
