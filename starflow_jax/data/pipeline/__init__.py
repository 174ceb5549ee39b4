"""Batches of a source: their order, reading ahead, and digests of the data."""
