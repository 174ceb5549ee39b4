"""Decoding of files to arrays of the size that a model reads."""
