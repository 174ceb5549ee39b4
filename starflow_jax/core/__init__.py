"""What every other package may use: configuration, registries, and files that are written whole or not at all."""
