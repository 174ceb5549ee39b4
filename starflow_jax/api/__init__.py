"""Trained models as objects: loading a run, drawing samples from it, scoring data with it.

- `model_loading`: `from_pretrained`, which reads a `Run`.
- `model_sampling`: `sample`.
- `model_likelihood`: `log_prob` and `bits_per_dim`.
- `distributions`, `flow_distribution`: `distribution` and the `Distribution` that it gives.
- `model_condition`: `condition`, what a flow reads in place of captions and labels.

These functions are part of the public interface, which `starflow_jax/__init__.py` lists.
"""
