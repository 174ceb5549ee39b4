"""Converts captions to token ids of a fixed length with the tokenizer files of pretrained models.

SentencePiece models (`spiece.model`, `tokenizer.model`) and `tokenizer.json` are read by the libraries
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
from jaxtyping import Array, Bool, Int

from starflow_jax.core.config.checks import check, check_integer


@dataclass(frozen=True)
class Tokenizer:
    """Token ids of captions, with special tokens, truncated and padded to `length`. Hashed by file and settings.

    Attributes:
      length: L; digest: SHA-256 of the file, hexadecimal; vocabulary: rows of the embedding of the model.
      pad: id of the padding token; side: of the padding.
      first, last: ids of the begin and end tokens, which truncation preserves; None for none.
      processor: the tokenizer object of the library.
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

    def ids(self, captions: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """Token ids int32 [B, L]; a caption that is too long is truncated.

        Raises:
          ValueError: `captions` is a single string, or a token has no embedding.
        """
        check(not isinstance(captions, str), f"captions must be a sequence of strings, got the string {captions!r}")
        ids = np.full((len(captions), self.length), self.pad, np.int32)
        before, after = ([] if end is None else [end] for end in (self.first, self.last))
        room = self.length - len(before) - len(after)
        for row, caption in zip(ids, captions, strict=True):
            pieces = [*before, *_pieces(self.processor, caption)[:room], *after]
            wrong = [piece for piece in pieces if not 0 <= piece < self.vocabulary]
            check(
                not wrong,
                f"caption {caption!r} contains the token {wrong[:1]}, beyond the vocabulary of "
                f"{self.vocabulary} tokens",
            )
            if self.side == "right":
                row[: len(pieces)] = pieces
            elif pieces:
                row[-len(pieces) :] = pieces
        return ids

    def known_ids(self, captions: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """Returns `ids(captions)`: any text can be tokenized."""
        return self.ids(captions)

    def mask(self, ids: Int[jax.Array | np.ndarray, "B L"]) -> Bool[Array, "B L"]:
        """Boolean [B, L]: whether ids int32 [B, L] belong to the caption and are not padding.

        A caption may contain the text of the padding token (`<pad>`), so that the first and last other ids decide.
        """
        is_token = (jnp.asarray(ids) != self.pad).astype(jnp.int8)
        started, continues = (jax.lax.cummax(is_token, axis=1, reverse=reverse) for reverse in (False, True))
        return (started * continues).astype(bool)


def read_tokenizer(folder: Path, names: Sequence[str], length: int, vocabulary: int, **marks: Any) -> Tokenizer:
    """Reads the first existing file of `names` in a folder; `marks` are fields of `Tokenizer`.

    Raises:
      ValueError: none of the files exists, or the file cannot be read.
    """
    files = [folder / name for name in names if (folder / name).is_file()]
    check(len(files) > 0, f"model {folder} must contain {' or '.join(names)}, and does not")
    file = files[0]
    read = _read_json if file.suffix == ".json" else _read_sentencepiece
    try:
        content = file.read_bytes()
        processor = read(content)
    except Exception as error:  # the libraries raise several kinds of errors on damaged files
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
    processor.no_truncation()  # overrides the settings of the file
    processor.no_padding()
    return processor


def _pieces(processor: Any, caption: str) -> list[int]:
    """Token ids of a caption without special tokens, from either library."""
    encode: Callable[..., Any] = processor.encode
    if hasattr(processor, "id_to_piece"):
        return encode(caption)
    return encode(caption, add_special_tokens=False).ids
