"""Memory, collectives and step time of a run, predicted for accelerators that are not attached."""
