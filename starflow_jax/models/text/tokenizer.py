"""Captions to token ids of a fixed length, by the vocabulary files of pretrained models.

SentencePiece models (`spiece.model`, `tokenizer.model`) and `tokenizer.json` are read by their own libraries,
`sentencepiece` and `tokenizers`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check, check_integer


@dataclass(frozen=True)
class Tokenizer:
    """A caption's pieces, marked at their ends, cut and padded to `length`. Equal to one of the same file and numbers.

    Attributes:
      length: L; digest: SHA-256 of the file, hexadecimal; vocabulary: rows of the model's embedding.
      pad: id of what fills up, on the right or left `side`.
      first, last: ids before and after every caption, which are kept when it is cut; None for none.
      processor: of the library that reads the file.
    """

    length: int
    digest: str
    vocabulary: int
    pad: int = 0
    first: int | None = None
    last: int | None = None
    side: Literal["right", "left"] = "right"
    processor: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_integer("text_length", self.length, minimum=1 + (self.first is not None) + (self.last is not None))

    def ids(self, captions: Sequence[str]) -> np.ndarray:
        """Token ids int32 [B, L]; a caption that is too long loses its end.

        Raises:
          ValueError: a single string, or a piece that the model has no embedding of.
        """
        check(not isinstance(captions, str), f"captions must be a sequence of strings, got the string {captions!r}")
        found = np.full((len(captions), self.length), self.pad, np.int32)
        before, after = ([] if end is None else [end] for end in (self.first, self.last))
        room = self.length - len(before) - len(after)
        for row, caption in zip(found, captions, strict=True):
            pieces = [*before, *_pieces(self.processor, caption)[:room], *after]
            wrong = [piece for piece in pieces if not 0 <= piece < self.vocabulary]
            check(not wrong, f"caption {caption!r} has the token {wrong[:1]}, beyond the model's {self.vocabulary}")
            if self.side == "right":
                row[: len(pieces)] = pieces
            elif pieces:
                row[-len(pieces) :] = pieces
        return found

    def known_ids(self, captions: Sequence[str]) -> np.ndarray:
        """The same: any text has pieces."""
        return self.ids(captions)

    def mask(self, ids: jax.Array | np.ndarray) -> jax.Array:
        """Boolean [B, L]: where ids int32 [B, L] are of the caption and do not fill up.

        A caption may spell the filling itself (`<pad>`), so that its ends decide, not each id.
        """
        kept = (jnp.asarray(ids) != self.pad).astype(jnp.int8)
        begun, goes_on = (jax.lax.cummax(kept, axis=1, reverse=reverse) for reverse in (False, True))
        return (begun * goes_on).astype(bool)


def read_tokenizer(folder: Path, names: Sequence[str], length: int, vocabulary: int, **marks: Any) -> Tokenizer:
    """The tokenizer in the first of the files `names` that a folder has; marks: as in `Tokenizer`.

    Raises:
      ValueError: none of them is there, or one that cannot be read.
    """
    found = [folder / name for name in names if (folder / name).is_file()]
    check(len(found) > 0, f"model {folder} must hold {' or '.join(names)}, and does not")
    file = found[0]
    read = _read_json if file.suffix == ".json" else _read_sentencepiece
    try:
        content = file.read_bytes()
        processor = read(content)
    except Exception as error:  # the libraries raise several kinds for damaged files
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"tokenizer {file} cannot be read: {line}") from error
    digest = hashlib.sha256(content).hexdigest()
    return Tokenizer(length=length, digest=digest, vocabulary=vocabulary, processor=processor, **marks)


def _read_sentencepiece(content: bytes) -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=content)


def _read_json(content: bytes) -> Any:
    import tokenizers

    processor = tokenizers.Tokenizer.from_buffer(content)
    processor.no_truncation()  # what a file asks of its own accord
    processor.no_padding()
    return processor


def _pieces(processor: Any, caption: str) -> list[int]:
    """Ids of a caption's pieces without marks, by either library."""
    encode: Callable[..., Any] = processor.encode
    if hasattr(processor, "id_to_piece"):
        return encode(caption)
    return encode(caption, add_special_tokens=False).ids
