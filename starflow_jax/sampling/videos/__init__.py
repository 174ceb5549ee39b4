"""Sampling of videos from captions."""
