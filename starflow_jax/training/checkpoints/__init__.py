"""Checkpoints: writing, reading, verifying, resuming, and retaining them."""
