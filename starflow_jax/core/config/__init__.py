"""Configuration: frozen dataclasses that validate their fields, and the functions that build them.

- `flow`: the architecture of a flow.
- `source`, `data`, `train`, `mesh`: its data, its optimisation, and its layout over devices.
- `autoencoder`: training of autoencoders and their decoders.
- `experiment`: a flow with all of these, and how it is sampled and evaluated.
- `build`: construction from an experiment file, command-line overrides, or JSON.
- `checks`: checks of fields.
"""

from starflow_jax.core.config.autoencoder_config import AutoencoderExperiment
from starflow_jax.core.config.build import apply_overrides, build, from_json, load_config, load_experiment, to_json
from starflow_jax.core.config.data_config import DataConfig
from starflow_jax.core.config.experiment_config import EvaluateConfig, ExperimentConfig, SampleConfig, TextConfig
from starflow_jax.core.config.flow_config import DenoiserConfig, FlowConfig
from starflow_jax.core.config.mesh_config import MeshConfig
from starflow_jax.core.config.pixel_map_config import PixelMapConfig
from starflow_jax.core.config.source_config import CaptionConfig, ComponentConfig, SourceConfig
from starflow_jax.core.config.train_config import TrainConfig
from starflow_jax.core.config.transformer_config import TransformerConfig

__all__ = [
    "AutoencoderExperiment",
    "CaptionConfig",
    "ComponentConfig",
    "DataConfig",
    "DenoiserConfig",
    "EvaluateConfig",
    "ExperimentConfig",
    "FlowConfig",
    "MeshConfig",
    "PixelMapConfig",
    "SampleConfig",
    "SourceConfig",
    "TextConfig",
    "TrainConfig",
    "TransformerConfig",
    "apply_overrides",
    "build",
    "from_json",
    "load_config",
    "load_experiment",
    "to_json",
]
