"""One file an experiment, each with a `get_config()`; imported as `starflow_jax.experiments`."""
