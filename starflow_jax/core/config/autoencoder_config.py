"""Configuration of an experiment on an autoencoder: training a new one, or fine-tuning the decoder of an old one."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from starflow_jax.core.choices import Dtype
from starflow_jax.core.config.checks import check, check_choices, check_integer, check_paths, check_real
from starflow_jax.core.config.mesh_config import MeshConfig
from starflow_jax.core.config.source_config import SourceConfig


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """A new autoencoder (`models.autoencoders.kl.model.AutoencoderKL`); the names are those of diffusers.

    Attributes:
      block_out_channels: channels of each resolution, the highest first; every further one halves rows and columns.
      layers_per_block: residual layers of the encoder at each resolution; the decoder has one more.
      latent_channels, pixel_channels: channels of the latents and of the images.
      norm_num_groups: groups of the group norms.
      mid_block_add_attention: whether there is attention at the lowest resolution.
    """

    block_out_channels: tuple[int, ...]
    layers_per_block: int = 2
    latent_channels: int = 4
    pixel_channels: int = 3
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The loss: mean squared error + perceptual * LPIPS + kl * KL + adversarial * lambda * hinge loss.

    Attributes:
      kl: weight of the KL divergence of the posterior from N(0, 1), in nats per latent element. It must be 0 if the
        encoder is frozen.
      perceptual: weight of LPIPS (Zhang et al., arXiv 1801.03924); 0 for none.
      perceptual_weights: files of the weights of LPIPS (`reconstruction.lpips`).
      adversarial: weight of the patch discriminator's loss, which is first scaled by lambda to the gradient norm of the
        other terms at the decoder's last layer (VQGAN, Esser et al., arXiv 2012.09841); 0 for none.
      discriminator_start: updates before the adversarial term is used and the discriminator is trained.
      discriminator_width, discriminator_layers: channels of its first layer, and number of layers that halve the image.
      latent_noise: standard deviation of the noise that is added to latents before they are decoded, in the units of
        the latents that a flow reads.
    """

    kl: float = 0.0
    perceptual: float = 0.0
    perceptual_weights: tuple[str, ...] = ()
    adversarial: float = 0.0
    discriminator_start: int = 0
    discriminator_width: int = 64
    discriminator_layers: int = 3
    latent_noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("kl", "perceptual", "adversarial", "latent_noise"):
            check_real(name, getattr(self, name), minimum=0.0)
        check_integer("discriminator_start", self.discriminator_start, minimum=0)
        for name in ("discriminator_width", "discriminator_layers"):
            check_integer(name, getattr(self, name), minimum=1)
        check(
            (self.perceptual > 0) == (len(self.perceptual_weights) > 0),
            "perceptual_weights must name the files of LPIPS where perceptual is above 0, and only there, got "
            f"perceptual={self.perceptual} and perceptual_weights={list(self.perceptual_weights)}",
        )


@dataclasses.dataclass(frozen=True)
class ReconstructionConfig:
    """Optimisation of an autoencoder by Adam, and its records.

    Attributes:
      steps, batch_size: total number of updates, and images per update.
      lr, warmup: peak learning rate, and updates of linear warm-up; the rate decays to zero as a half cosine over all
        updates.
      discriminator_lr: learning rate of the discriminator, constant.
      betas: of both optimizers. grad_clip: largest global norm of a gradient, 0 for no limit.
      ema: decay of the exponential moving average of the parameters, which is what is saved; 0 for none.
      log_every, checkpoint_every: updates between rows of metrics, and between checkpoints.
      keep: number of newest checkpoints to keep.
    """

    steps: int
    batch_size: int
    lr: float
    warmup: int = 0
    discriminator_lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)
    grad_clip: float = 1.0
    ema: float = 0.999
    log_every: int = 50
    checkpoint_every: int = 1000
    keep: int = 1
    keep_best: ClassVar[int] = 0
    best_metric: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep"):
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("warmup", self.warmup, minimum=0)
        for name in ("lr", "discriminator_lr", "grad_clip", "ema"):
            check_real(name, getattr(self, name), minimum=0.0)
        check(self.ema < 1.0, f"ema must be below 1, got {self.ema}")
        check(self.warmup <= self.steps, f"warmup must be at most steps={self.steps}, got {self.warmup}")
        for beta in self.betas:
            check_real("betas", beta, minimum=0.0)
            check(beta < 1.0, f"betas must be below 1, got {self.betas}")


@dataclasses.dataclass(frozen=True)
class AutoencoderExperiment:
    """Training of a new autoencoder (`network`), or of the decoder of an existing one (`autoencoder`).

    Attributes:
      name: name of the experiment; data, loss, train: its parts.
      image_size: rows and columns of the images (an int means a square).
      network: sizes of a new autoencoder; autoencoder: path of an existing one, whose decoder is fine-tuned while its
        encoder is frozen.
      evaluate: number of held-out images that are reconstructed at the end.
      dtype: of convolutions, "float32" or "bfloat16"; parameters, norms and losses are float32.
      mesh: layout of a run over devices; seed: of the initial parameters, the order of the data, and noise.
    """

    name: str
    data: SourceConfig
    image_size: int | tuple[int, int]
    loss: LossConfig
    train: ReconstructionConfig
    network: NetworkConfig | None = None
    autoencoder: str | None = None
    evaluate: int = 256
    dtype: Dtype = "float32"
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        for side in self.image_shape:
            check_integer("image_size", side, minimum=1)
        check_integer("evaluate", self.evaluate, minimum=1)
        check_choices(self)
        check_paths(self, "autoencoder")
        check_integer("seed", self.seed, minimum=0)
        check(self.seed < 2**32, f"seed must be below 2**32, got {self.seed}")
        check(
            not (self.data.traits.latents or self.data.traits.mixture),
            f"data.source must be images, got {self.data.source!r}",
        )
        check(self.data.frames == 0, f"data.frames must be 0, for still images, got {self.data.frames}")
        check(
            (self.network is None) != (self.autoencoder is None),
            "either network, for a new autoencoder, or autoencoder, for the fine-tuning of a decoder, must be given, "
            f"got network={self.network} and autoencoder={self.autoencoder!r}",
        )
        check(
            self.network is not None or self.loss.kl == 0,
            f"loss.kl must be 0 with a frozen encoder, got {self.loss.kl}",
        )

    @property
    def image_shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
