"""Working folders of runs whose hosts share no disk."""
