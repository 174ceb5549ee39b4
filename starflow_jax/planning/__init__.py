"""Memory, collectives and step time of a run on accelerators that are not attached."""
