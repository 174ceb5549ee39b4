"""Text conditioning: the sentences a caption is wrapped in, and the vectors it becomes.

- `captions`: caption templates (frame rate, noise level, aspect ratio, chat turn).
- `words`: one-hot states of a small vocabulary.
"""

from starflow_jax.text.captions import caption_prompts
from starflow_jax.text.words import WordEncoder

__all__ = ["WordEncoder", "caption_prompts"]
