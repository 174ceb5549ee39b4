"""Checks of an installation and its machine, for `starflow doctor`.

- `checks`: versions, folders and what a probe found, each as a `Check`.
- `probe`: the devices and one trial of every kernel, a process of its own.
"""

from starflow_jax.diagnosis.checks import Check, DoctorRequest, check_all

__all__ = ["Check", "DoctorRequest", "check_all"]
