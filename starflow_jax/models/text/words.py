"""Captions over a small vocabulary, each word a one-hot vector, so that no pretrained text encoder is needed.

This is the one-hot table of section 7 of the specification, with one row for each word.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from starflow_jax.models.text.protocol import Params
from starflow_jax.sharding.layout import Layout

_PUNCTUATION = ".,;:!?\"'()[]"


@dataclasses.dataclass(frozen=True)
class WordEncoder:
    """A `TextEncoder` without parameters.

    Id 0 is the absence of a word, id i the i-th word of the vocabulary, counted from 1.

    Attributes:
      vocabulary: V words, without spaces, all different.
      length: L, the padded length of captions.
    """

    vocabulary: tuple[str, ...]
    length: int

    @property
    def dim(self) -> int:
        """V."""
        return len(self.vocabulary)

    def ids(self, captions: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """Word ids int32 [B, L] of captions, their words separated by spaces; the empty caption is all zeros.

        Raises:
          ValueError: a word is not in the vocabulary, or a caption has more than L words.
        """
        if isinstance(captions, str):
            raise ValueError(f"captions must be a sequence of strings, got the single string {captions!r}")
        id_of = {word: i for i, word in enumerate(self.vocabulary, start=1)}
        ids = np.zeros((len(captions), self.length), np.int32)
        for row, caption in zip(ids, captions, strict=True):
            words = caption.lower().split()
            if len(words) > self.length:
                raise ValueError(f"caption must have at most {self.length} words, got {len(words)}: {caption!r}")
            for i, word in enumerate(words):
                word = word if word in id_of else word.strip(_PUNCTUATION)
                if word not in id_of:
                    near = difflib.get_close_matches(word, self.vocabulary, n=3, cutoff=0.6)
                    hint = (
                        f"did you mean {' or '.join(near)}?" if near else f"known words: {', '.join(self.vocabulary)}"
                    )
                    raise ValueError(f"caption {caption!r} contains the unknown word {word!r}; {hint}")
                row[i] = id_of[word]
        return ids

    def known_ids(self, captions: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """Word ids int32 [B, L] of any captions: words that are not in the vocabulary, or beyond L, are left out.

        A word also counts as known without the punctuation around it.
        """
        id_of = {word: i for i, word in enumerate(self.vocabulary, start=1)}
        ids = np.zeros((len(captions), self.length), np.int32)
        for row, caption in zip(ids, captions, strict=True):
            words = (word if word in id_of else word.strip(_PUNCTUATION) for word in caption.lower().split())
            word_ids = [id_of[word] for word in words if word in id_of][: self.length]
            row[: len(word_ids)] = word_ids
        return ids

    def words(self, ids: Int[np.ndarray, "L"]) -> str:
        """The words of ids int32 [L], separated by spaces."""
        return " ".join(self.vocabulary[i - 1] for i in ids if i > 0)

    def states(self, ids: Int[jax.Array | np.ndarray, "B L"]) -> Float[Array, "B L D"]:
        """Text states float32 [B, L, V] of ids int32 [B, L]: one-hot, zeros where there is no word."""
        return jax.nn.one_hot(ids - 1, len(self.vocabulary))

    def encode(
        self, params: Params, ids: Int[jax.Array | np.ndarray, "B L"], layout: Layout | None = None
    ) -> Float[Array, "B L D"]:
        """Returns `states(ids)`; there are no parameters."""
        return self.states(ids)
