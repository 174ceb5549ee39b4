"""One file per experiment, each with a `get_config()`; the package is imported as `starflow_jax.experiments`."""
