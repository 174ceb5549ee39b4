"""The data, frozen networks and devices of a run, opened and checked before its folder is touched."""

from __future__ import annotations

import dataclasses

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.flow_checks import check_trainable
from starflow_jax.costs.flops import shape_work, train_flops
from starflow_jax.data import Loader, Source, train_loader
from starflow_jax.data.pipeline.caption_account import CaptionAccount, caption_account
from starflow_jax.data.pipeline.opening_notes import opening_notes
from starflow_jax.flows.parameters import abstract
from starflow_jax.sharding.layout import Layout
from starflow_jax.training.step.frozen_autoencoder import Frozen, open_with_encoder
from starflow_jax.training.step.frozen_text import FrozenText, open_text
from starflow_jax.training.step.gradient_transformations import check_lr_factors
from starflow_jax.training.step.inputs import latent_shape, shortened, with_levels
from starflow_jax.training.step.run_layout import run_layout


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """The inputs of the training step of a run, besides the training state.

    Attributes:
      config: the experiment, with the pixel levels of its data; source: its training data.
      layout: of the devices, None for one device.
      encoder, text: frozen networks that the step applies, None where the experiment has none.
      notes: sentences about what the data contain and is not read.
      captions: the account of captions, None where the flow or the data have none.
    """

    config: ExperimentConfig
    source: Source
    layout: Layout | None
    encoder: Frozen | None
    text: FrozenText | None
    notes: tuple[str, ...] = ()
    captions: CaptionAccount | None = None

    @classmethod
    def from_config(cls, config: ExperimentConfig, source: Source | None = None) -> Setup:
        """Opens the data and networks that the experiment names; the parameters of frozen networks stay on the host.

        Args:
          source: data to use instead of those that `config.data` names.

        Raises:
          ValueError: files that are missing or damaged, parts that do not fit together, or a flow that reads text and
            data without captions.
        """
        check_trainable(config.flow.quantise, "the flow")
        if config.train.optimizer.lr_factors:
            check_lr_factors(config.train.optimizer, abstract(config.flow)[1])
        source, encoder = open_with_encoder(config, "train", source)
        config = with_levels(config, source)
        text = open_text(config, source)
        captions = caption_account(source)
        if captions is not None:
            captions.check_any()
        layout, notes = run_layout(config, source, encoder), tuple(opening_notes(source))
        return cls(config, source, layout, encoder, text, notes, captions)

    def on_devices(self) -> Setup:
        """The same with the parameters of the frozen networks on the devices of the layout."""
        return dataclasses.replace(
            self,
            encoder=None if self.encoder is None else self.encoder.over(self.layout),
            text=None if self.text is None else self.text.over(self.layout),
        )

    def loader(self, step: int) -> Loader:
        """This process's rows of the batches of the curriculum stage that contains update `step`, from its start."""
        config, data = self.config, self.config.data
        end, frames, batch_size = config.train.stage(step)
        # Each stage has its own order of the data; that of the last stage does not depend on the stages before it.
        seed = config.seed if end == config.train.steps else (config.seed + end) % 2**32
        return train_loader(
            shortened(self.source, frames),
            batch_size,
            seed,
            process=(0, 1) if self.layout is None else self.layout.share(),
            threads=data.threads,
            workers=data.workers,
            prefetch=data.prefetch,
        )

    def flops(self, pixels: tuple[int, ...]) -> float:
        """Model FLOPs of one update on a batch of pixels [B, (T,) H, W, C], recomputation not counted."""
        shape = latent_shape(None if self.encoder is None else self.encoder.autoencoder, pixels[1:])
        return train_flops(self.config.flow, shape_work(self.config.flow, (pixels[0], *shape)))
