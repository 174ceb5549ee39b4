"""Training of the learned inverse of a finished run."""
