"""Decisions that the processes of one run take together."""
