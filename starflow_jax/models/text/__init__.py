"""Text conditioning: caption templates and text encoders.

- `templates`: caption templates (frame rate, noise level, aspect ratio, chat turn).
- `protocol`: the interface. `words`, `labels`: one-hot states of a small vocabulary or a label table.
- `t5`, `gemma`, `tokenizer`: pretrained encoders and their tokenizers; `storage` reads them from folders with the
  formats that are registered in `TEXT_ENCODERS`.
- `states`: text states of many captions, each encoded once.
"""

from starflow_jax.models.text.labels import LabelTable, read_labels
from starflow_jax.models.text.protocol import CaptionReader, TextEncoder
from starflow_jax.models.text.storage import load_caption_reader, load_text_encoder
from starflow_jax.models.text.templates import caption_prompts
from starflow_jax.models.text.words import WordEncoder

__all__ = [
    "CaptionReader",
    "LabelTable",
    "TextEncoder",
    "WordEncoder",
    "caption_prompts",
    "load_caption_reader",
    "load_text_encoder",
    "read_labels",
]
