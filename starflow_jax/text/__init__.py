"""Text conditioning: the sentences a caption is wrapped in.

- `captions`: caption templates (frame rate, noise level, aspect ratio, chat turn).
"""

from starflow_jax.text.captions import caption_prompts

__all__ = ["caption_prompts"]
