"""Streaming of videos: each frame is yielded as soon as it is final."""
