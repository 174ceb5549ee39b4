"""The configurations that the folder of a training run may hold."""

from __future__ import annotations

from starflow_jax.core.config.autoencoder_config import AutoencoderExperiment
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.learned_inverse_config import LearnedInverseExperiment

# Of a flow, of an autoencoder or its decoder, and of a learned inverse.
AnyExperiment = ExperimentConfig | AutoencoderExperiment | LearnedInverseExperiment
