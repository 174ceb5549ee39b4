"""Captions to videos."""
