"""The registries of the project; a configuration or a command selects an implementation by its name."""

from starflow_jax.core.registry import Registry

SOLVERS = Registry("solver", "SOLVERS", "starflow_jax.solvers")
SOURCES = Registry("data source", "SOURCES", "starflow_jax.data.sources")
AUTOENCODERS = Registry("autoencoder", "AUTOENCODERS", "starflow_jax.models.autoencoders")
TEXT_ENCODERS = Registry("text encoder", "TEXT_ENCODERS", "starflow_jax.models.text")
METRICS = Registry("metric", "METRICS", "starflow_jax.evaluation.samples.metrics")
REWARDS = Registry("reward", "REWARDS", "starflow_jax.evaluation.rewards")
