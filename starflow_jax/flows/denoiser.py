"""The learned denoiser D(x, text), a small transformer over whole frames (specification, section 6)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.block import slot_rotation
from starflow_jax.flows.noise_level import LevelEmbedding, NoiseLevel, resolved_level
from starflow_jax.flows.order import AnyArray, Grid, patchify, unpatchify
from starflow_jax.kernels.attention import FrameWindow, Full, Visibility
from starflow_jax.nn.linear import Compute, Linear
from starflow_jax.nn.transformer import Transformer
from starflow_jax.sharding.layout import Layout


class Denoiser(nnx.Module):
    """Predicts sigma_n * dL/dx, the flow's input gradient, in one pass (flow-score matching, arXiv 2511.20462)."""

    def __init__(self, config: FlowConfig, key: PRNGKeyArray, layout: Layout | None = None):
        check(config.denoiser is not None, "denoiser is None: this flow has no learned denoiser")
        options = config.denoiser
        transformer = config.denoiser_transformer
        keys = jax.random.split(key, 3)
        compute = Compute.from_config(config, layout)
        if compute.kernels == "cudnn":  # which has no other masks than causal ones
            compute = dataclasses.replace(compute, kernels=None)
        self.config = config
        self.proj_in = Linear(config.token_channels, transformer.width, keys[0], name="proj_in", compute=compute)
        self.proj_txt = (
            Linear(config.text_dim, transformer.width, keys[1], name="proj_txt", compute=compute)
            if options.conditional  # type: ignore[union-attr]
            else None
        )
        self.transformer = Transformer(transformer, keys[2], compute=compute.of_layers(config), remat=config.remat)
        exact = dataclasses.replace(compute, dtype="float32")
        self.proj_out = Linear(transformer.width, config.token_channels, key, name="proj_out", std=0.0, compute=exact)
        level_key = jax.random.fold_in(key, 3)  # the other keys are the same with and without noise levels
        self.level_embed = LevelEmbedding(transformer.width, level_key, compute) if config.noise_levels else None

    def visibility(self, grid: Grid, text: int) -> Visibility:
        """The attention mask; there is none for still images and for models without a bound on the look-ahead."""
        options = self.config.denoiser
        assert options is not None  # checked by __init__
        if grid.frames is None or options.look_ahead is None:
            return Full()
        return FrameWindow(text, grid.frame, options.look_ahead, options.window)

    def __call__(
        self,
        x: Shaped[Array, "B *size"],
        cond: Shaped[AnyArray, "B *rest"] | None = None,
        noise_level: NoiseLevel | None = None,
    ) -> Float[Array, "B *size"]:
        """The prediction, float32 in the layout of x.

        Args:
          x: noisy data [B, H, W, C] or [B, T, H, W, C].
          cond: text states [B, L, text_dim]; read by a conditional denoiser only.
          noise_level: as in `Flow.forward`.

        Raises:
          ValueError: a conditional denoiser is given no text; or a noise level does not fit the configuration.
        """
        config = self.config
        grid = Grid.from_shape(config, x.shape)
        tokens = patchify(x, config.patch_size, config.family).reshape(x.shape[0], grid.tokens, -1)
        h = self.proj_in(tokens)
        if self.level_embed is not None:
            level = resolved_level(config, noise_level, x.shape[0])
            h = h + self.level_embed(jnp.asarray(level)).astype(h.dtype)
        text = 0
        if self.proj_txt is not None:
            if cond is None:
                raise ValueError("cond is None, but this denoiser reads text states [B, L, text_dim]")
            text = cond.shape[1]
            h = jnp.concatenate([self.proj_txt(jnp.asarray(cond)), h], axis=1)
        h, _ = self.transformer(
            h, rotation=slot_rotation(config, None, grid, text), visibility=self.visibility(grid, text)
        )
        out = self.proj_out(h[:, text:]).reshape(x.shape[0], *grid.shape, -1)
        return unpatchify(out.astype(jnp.float32), config.patch_size, config.family)
