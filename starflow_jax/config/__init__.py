"""Configuration: frozen dataclasses that check themselves, and the one place that builds them.

- `flow`: what a flow is made of.
- `experiment`: a flow with its data, training, sampling and evaluation.
- `build`: from an experiment file, command-line overrides, or JSON.
- `checks`: one-sentence checks of fields.
"""

from starflow_jax.config.build import apply_overrides, build, from_json, load_config, to_json
from starflow_jax.config.experiment import (
    DataConfig,
    EvaluateConfig,
    ExperimentConfig,
    SampleConfig,
    TextConfig,
    TrainConfig,
)
from starflow_jax.config.flow import DenoiserConfig, FlowConfig, TransformerConfig

__all__ = [
    "DataConfig",
    "DenoiserConfig",
    "EvaluateConfig",
    "ExperimentConfig",
    "FlowConfig",
    "SampleConfig",
    "TextConfig",
    "TrainConfig",
    "TransformerConfig",
    "apply_overrides",
    "build",
    "from_json",
    "load_config",
    "to_json",
]
