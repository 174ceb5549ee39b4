"""Shared foundations of all other packages: configuration, registries, and atomic writing of files."""
