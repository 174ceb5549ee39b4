"""From encoded files to arrays of the size that a model takes."""
