"""Sampling of a density that is given as a function, with a flow as the proposal.

- `proposals.py`: what can be drawn from, a `Distribution` of a flow or a normal distribution; the form of a target.
- `importance.py`: samples with self-normalised weights, the effective sample size, log Z with its error, resampling.
- `annealing.py`: sequential Monte Carlo from a proposal to a target, with Metropolis-adjusted Langevin moves.
- `symmetries.py`: a flow made symmetric under a group of maps that leaves a target unchanged.
- `tuning.py`: a flow fitted to points and, optionally, to the target itself.
- `fitting.py`: rounds of drawing, reweighting and tuning, which `fitted_rounds.py` keeps so that they can be resumed.
"""

from starflow_jax.sampling.resampling import systematic
from starflow_jax.targets.annealing import Annealed, anneal
from starflow_jax.targets.fitted_rounds import Round
from starflow_jax.targets.fitting import Fitted, fit
from starflow_jax.targets.importance import WeightedSamples, draw
from starflow_jax.targets.proposals import Normal, Proposal, Target
from starflow_jax.targets.symmetries import Symmetrised, Symmetry, symmetrised
from starflow_jax.targets.tuning import tune

__all__ = [
    "Annealed",
    "Fitted",
    "Normal",
    "Proposal",
    "Round",
    "Symmetrised",
    "Symmetry",
    "Target",
    "WeightedSamples",
    "anneal",
    "draw",
    "fit",
    "symmetrised",
    "systematic",
    "tune",
]
