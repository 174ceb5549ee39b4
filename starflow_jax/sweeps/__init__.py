"""Exact likelihoods of many checkpoints on many data sets: resumable anywhere, the same on any number of devices.

    config.sweep ─► plan: cells ─► run: batches of rows ─► chunks (on disk) ─► results ─► report

- `checkpoints`, `datasets`: what is scored, and on what; `plan`: the product of them, every cell with its id.
- `rows`: a batch on the devices; `density`: rows to the terms of log p; `volume`: scaling factors of latents.
- `chunks`: what a cell has computed so far; `results`: one row a cell; `run`: the loop.
- `separation`, `plots`, `report`: what is read off the results.
"""

from starflow_jax.sweeps.cells import Cell, Plan, make_plan
from starflow_jax.sweeps.results import read_examples, read_results
from starflow_jax.sweeps.run import Outcome, run_sweep
from starflow_jax.sweeps.sweep_report import write_report

__all__ = ["Cell", "Outcome", "Plan", "make_plan", "read_examples", "read_results", "run_sweep", "write_report"]
