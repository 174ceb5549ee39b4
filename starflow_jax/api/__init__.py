"""Trained models as objects: loading a run, drawing samples from it, scoring data with it.

- `run`: `Run`, and `from_pretrained`, which reads one.
- `draw`: `sample`.
- `score`: `log_prob` and `bits_per_dim`.

These functions are part of the public interface, which `starflow_jax/__init__.py` lists.
"""
