"""Exact likelihoods of many checkpoints on many data sets, independent of devices and resumable at any batch.

    SweepConfig ─► grid: cells ─► runner: batches of rows ─► chunk files on disk ─► results ─► report

- `checkpoint_selection`, `datasets`: the checkpoints and data sets of a sweep; `grid`: their product, each cell with
  its id; `content_hash`: hashes of files and arrays, which are part of the id.
- `density`: terms of log p of a batch of rows; `latent_scale`: change of volume by the scaling of latents.
- `chunk_file`: the rows that a cell has computed so far; `results`: one row for each cell; `runner`: the loop.
- `separation`, `sweep_plots`, `sweep_report`: comparisons, plots and the report, computed from the results.
"""

from starflow_jax.sweeps.grid import Cell, Plan, make_plan
from starflow_jax.sweeps.results import read_examples, read_results
from starflow_jax.sweeps.runner import Outcome, run_sweep
from starflow_jax.sweeps.sweep_report import write_report

__all__ = ["Cell", "Outcome", "Plan", "make_plan", "read_examples", "read_results", "run_sweep", "write_report"]
