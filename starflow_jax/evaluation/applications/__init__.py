"""Applications of exact likelihood: classification, out-of-distribution detection, filtering, memorisation."""
