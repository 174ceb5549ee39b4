"""Configuration of the learned inverse of a flow, and of its training."""

from __future__ import annotations

import dataclasses

from starflow_jax.core.choices import Dtype
from starflow_jax.core.config.checks import check, check_choices, check_integer, check_real
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.config.mesh_config import MeshConfig
from starflow_jax.core.config.train_config import FOR_TRAINING_OF_FLOWS, TrainConfig, check_unread
from starflow_jax.core.config.transformer_config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class LearnedInverseConfig:
    """The network of a learned inverse: one bidirectional transformer for each block of the flow, and one more.

    Attributes:
      width: channels of the residual stream, which all transformers share.
      layers: layers of the transformer of each block.
      clean_layers: layers of the last transformer, which estimates data without the training noise.
      head_dim: channels of an attention head, 4k >= 20 for videos and flows that read text.
      expansion: ratio of the hidden channels of the MLPs to `width`.
      guided: whether the network reads a guidance weight and imitates the guided inverse.
      dtype: compute dtype; the heads and the estimates are float32.
    """

    width: int
    layers: int = 2
    clean_layers: int = 1
    head_dim: int = 32
    expansion: int = 4
    guided: bool = False
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        for name in ("width", "layers", "clean_layers", "head_dim", "expansion"):
            check_integer(f"network.{name}", getattr(self, name), minimum=1)
        check_choices(self)
        check(
            self.width % self.head_dim == 0,
            f"network.head_dim must divide network.width, got {self.head_dim} and {self.width}",
        )

    def transformer(self, flow: FlowConfig, layers: int) -> TransformerConfig:
        """The transformer of `layers` layers of a learned inverse of this flow.

        Raises:
          ValueError: a head dimension that does not suit the rotary positions of the flow's grid.
        """
        if flow.axes == 3:
            check(
                self.head_dim >= 20 and self.head_dim % 4 == 0,
                f"network.head_dim must be 4k >= 20 for three rotary axes, got {self.head_dim}",
            )
        else:
            check(
                self.head_dim % 4 == 0,
                f"network.head_dim must be a multiple of 4 for two rotary axes, got {self.head_dim}",
            )
        heads = self.width // self.head_dim
        return TransformerConfig(
            self.width, layers, heads, heads, self.head_dim, self.expansion, final_norm=True, rope="axial"
        )


@dataclasses.dataclass(frozen=True)
class InversePairsConfig:
    """The pairs of noise and data that a learned inverse is trained on.

    Attributes:
      max_guidance: the guidance weight of an update is uniform in [0, max_guidance]; 0 for no guidance.
      sampled: share of updates whose pairs are drawn by the flow (noise, inverted exactly under the weight) instead of
        being training data that the flow maps to noise. Guided samples differ from the data, and only drawn pairs show
        the network what it will see.
      free_running: share of samples for which the network reads its own estimates of the states, as it does in one
        pass; the others read the flow's states (teacher forcing).
      clip: bound of the states that are imitated, in units of their standard deviation (BiFlow, arXiv 2512.10953).
    """

    max_guidance: float = 0.0
    sampled: float = 0.0
    free_running: float = 0.5
    clip: float = 6.0

    def __post_init__(self) -> None:
        check_real("pairs.max_guidance", self.max_guidance, minimum=0.0, maximum=1e3)
        check_real("pairs.clip", self.clip, minimum=1.0)
        for name in ("sampled", "free_running"):
            check_real(f"pairs.{name}", getattr(self, name), minimum=0.0, maximum=1.0)


@dataclasses.dataclass(frozen=True)
class LearnedInverseExperiment:
    """The training of a learned inverse of a finished run.

    Attributes:
      name: name of the experiment; network, pairs, train: its parts. Fields of `train` that have no meaning here must
        have their default: the curriculum, accumulation, calls of several updates, evaluations, the best checkpoints.
      flow_step: step of the checkpoint of the flow, whose averaged parameters are inverted.
      mesh: layout of the training over devices; seed: of the initial parameters, the order of the data, and noise.
    """

    name: str
    network: LearnedInverseConfig
    train: TrainConfig
    flow_step: int
    pairs: InversePairsConfig = dataclasses.field(default_factory=InversePairsConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("flow_step", self.flow_step, minimum=0)
        check_integer("seed", self.seed, minimum=0)
        check(self.seed < 2**32, f"seed must be below 2**32, got {self.seed}")
        check_unread(self.train, "accumulate", *FOR_TRAINING_OF_FLOWS, for_what="a learned inverse")
        check(
            self.network.guided == (self.pairs.max_guidance > 0),
            "network.guided must be true where pairs.max_guidance is above 0, and only there, got "
            f"{self.network.guided} and {self.pairs.max_guidance:g}",
        )
