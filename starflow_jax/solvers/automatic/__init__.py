"""Chooses a solver for every block from measurements on samples of the data."""
