"""From a source to batches: the order, the loader, and what is recorded about the data."""
