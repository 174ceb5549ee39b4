"""The loop around the update: progress, metrics, signals, profiles."""
