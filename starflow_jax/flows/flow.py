"""The flow: a stack of autoregressive blocks that maps data to noise, with log-determinants."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.affine import Affine
from starflow_jax.flows.bits import bits_per_dim
from starflow_jax.flows.block import AutoregressiveBlock
from starflow_jax.flows.block_initialisation import initial_blocks
from starflow_jax.flows.conditions import check_guidance, condition_or_default, fold_condition
from starflow_jax.flows.denoiser import Denoiser
from starflow_jax.flows.guidance import AnyGuidance, Guidance, doubled, halves
from starflow_jax.flows.noise_level import NoiseLevel, resolved_level
from starflow_jax.flows.order import AnyArray, Grid, block_order, is_real, patchify, reorder, unpatchify
from starflow_jax.flows.pixel_map import map_pixels, token_basis, unmap_pixels
from starflow_jax.nn.linear import Compute
from starflow_jax.nn.transformer import Transformer
from starflow_jax.sharding.layout import Layout


@flax.struct.dataclass
class FlowOutput:
    """The result of `Flow.forward`, in float32.

    Attributes:
      z: the noise, in the layout of x.
      logdets: per block log |dz/dx| of every token and channel in the block's order: [B, N, c]; [B, T, F, c] for a
        block that runs inside frames; zeros [B] for an identity block.
      tokens: the input of each block, then z: K + 1 arrays [B, ([T,] h, w), c] in raster order.
      text: text stream of the deep block after its last norm, [B, L, D] (2B rows when guided); None without text.
      map_logdet: log |dy/dx| of the pixel map for every pixel, in the layout of x; None without a map.
      lengths: number of tokens of every example, [B]; the noise and the log-determinants of the padding behind them are
        0. None without padding.
    """

    z: jax.Array
    logdets: tuple[jax.Array, ...]
    tokens: tuple[jax.Array, ...]
    text: jax.Array | None
    map_logdet: jax.Array | None = None
    lengths: jax.Array | None = None

    @property
    def all_logdets(self) -> tuple[Float[Array, "B ..."], ...]:
        """Those of the blocks and, after them, that of the pixel map where there is one."""
        return self.logdets if self.map_logdet is None else (*self.logdets, self.map_logdet)

    @property
    def logdet(self) -> Float[Array, "B"]:
        """Sum over the pixel map and the blocks, their tokens and channels, [B]."""
        return sum(jnp.sum(d.reshape(d.shape[0], -1), axis=1) for d in self.all_logdets)  # type: ignore[return-value]


class Flow(nnx.Module):
    """A stack of blocks, 0 nearest the data, the last one deep (specification, section 2).

    The module is a pytree of parameters, and every method is a pure function of it and its arguments, for use with
    `jax.*` transformations. Use `flows.parameters.split` where a `jit` boundary is crossed every step.
    With a layout, computation is sharded over the devices of a mesh.
    """

    def __init__(self, config: FlowConfig, key: PRNGKeyArray, layout: Layout | None = None):
        keys = jax.random.split(key, config.num_blocks + 1)
        self.config = config
        self.blocks = nnx.List(initial_blocks(config, keys[:-1], layout))
        self.shared = self._new_shared(config, key, layout)
        self.denoiser = Denoiser(config, keys[-1], layout) if config.denoiser is not None else None
        # TARFlow's learned prior: a running mean of z^2, a statistic and not trained (specification, section 2).
        rows, columns = config.grid
        statistic = jnp.ones((rows * columns, config.token_channels))
        self.prior_variance = nnx.Param(statistic) if config.family == "tarflow" else None

    @staticmethod
    def _new_shared(config: FlowConfig, key: PRNGKeyArray, layout: Layout | None) -> Transformer | None:
        """The layers that all blocks share, without a norm after them; None where `config.shared_layers` is 0."""
        if not config.shared_layers:
            return None
        transformer = dataclasses.replace(config.blocks[-1], layers=config.shared_layers, final_norm=False)
        compute = Compute.from_config(config, layout).of_layers(config)
        return Transformer(transformer, jax.random.fold_in(key, 1), compute=compute)

    def block(self, index: int) -> AutoregressiveBlock:
        """Block `index` with all its layers, those included that it shares with the others."""
        block: AutoregressiveBlock = self.blocks[index]
        return block if self.shared is None or block.is_identity else block.with_shared_layers(self.shared.layers)

    def tokens_of(self, x: Shaped[AnyArray, "B *size"]) -> Float[Array, "B *grid c"]:
        """Data [B, ([T,] H, W), C] as float32 tokens [B, ([T,] h, w), c]."""
        return patchify(jnp.asarray(x, jnp.float32), self.config.patch_size, self.config.family)

    def noise_tokens(self, z: Shaped[AnyArray, "B *size"]) -> Float[Array, "B *grid c"]:
        """Standard normal noise z as the tokens that the last block's inverse reads: TARFlow scales it to its prior."""
        tokens = self.tokens_of(z)
        if self.prior_variance is None:
            return tokens
        return tokens * jnp.sqrt(self.prior_variance[...]).reshape(1, *tokens.shape[1:-1], -1)

    def prior_noise(self, z: Float[Array, "B *size"]) -> Float[Array, "B *size"]:
        """The standard normal noise whose `noise_tokens` are those of z, the inverse of its scaling."""
        if self.prior_variance is None:
            return z
        tokens = self.tokens_of(z)
        return self.data_of(tokens / jnp.sqrt(self.prior_variance[...]).reshape(1, *tokens.shape[1:-1], -1))

    def data_of(self, tokens: Float[Array, "B *grid c"]) -> Float[Array, "B *size"]:
        """The inverse of `tokens_of`."""
        return unpatchify(tokens, self.config.patch_size, self.config.family)

    def mapped_tokens(
        self, x: Shaped[AnyArray, "B *size"]
    ) -> tuple[Float[Array, "B *grid c"], Float[Array, "B *size"] | None]:
        """The tokens that block 0 reads: those of the mapped pixels, with log |dy/dx| of the map (None without one)."""
        pixel_map = self.config.pixel_map
        if pixel_map is None:
            return self.tokens_of(x), None
        y, logdet = map_pixels(pixel_map, jnp.asarray(x, jnp.float32))
        return self._in_basis(self.tokens_of(y), inverted=False), logdet

    def unmapped_data(self, tokens: Float[Array, "B *grid c"]) -> Float[Array, "B *size"]:
        """The data of the tokens that block 0 reads, the inverse of `mapped_tokens`."""
        pixel_map = self.config.pixel_map
        if pixel_map is None:
            return self.data_of(tokens)
        return unmap_pixels(pixel_map, self.data_of(self._in_basis(tokens, inverted=True)))

    def _in_basis(self, tokens: Float[Array, "B *grid c"], *, inverted: bool) -> Float[Array, "B *grid c"]:
        config = self.config
        assert config.pixel_map is not None
        basis = token_basis(config.pixel_map, config.channels, config.patch_size, config.family)
        if basis is None:
            return tokens
        return jnp.matmul(tokens, basis.T if inverted else basis, precision="highest")

    def is_guided(self, block: int, guidance: AnyGuidance | None) -> bool:
        """Whether a block combines a conditional and an unconditional prediction."""
        if guidance is None or self.blocks[block].is_identity:
            return False
        if guidance.deep_only and block < self.config.num_blocks - 1:
            return False
        return self.blocks[block].reads_text if isinstance(guidance, Guidance) else True

    def forward(
        self,
        x: Shaped[AnyArray, "B *size"],
        cond: Shaped[AnyArray, "B *rest"] | None = None,
        *,
        guidance: AnyGuidance | None = None,
        dropout_key: PRNGKeyArray | None = None,
        noise_level: NoiseLevel | None = None,
        lengths: Int[AnyArray, "B"] | None = None,
    ) -> FlowOutput:
        """Maps data to noise.

        Args:
          x: [B, H, W, C] images or [B, T, H, W, C] video; any size that the patch size divides.
          cond: text states [B, L, text_dim]; or labels [B], -1 for a dropped one (None: all dropped); or weights of
            the class embeddings [B, num_classes] (1 / num_classes each: a dropped one); or classes of the tokens
            [B, N] in raster order, -1 for a token without one (None: `config.default_classes`, or all without), of a
            flow with `token_classes`.
          guidance: classifier-free guidance of means and scales; None for none.
          dropout_key: enables dropout.
          noise_level: standard deviation of the noise in x that a noise-conditioned flow reads, scalar or [B]; None for
            its highest one, at which it samples.
          lengths: number of tokens of every example, 1 to N, of flows of patch size 1; the rows of x behind them are
            padding, whose values have no effect. None for N.

        Returns:
          z, log-determinants, and the tokens between blocks.

        Raises:
          ValueError: x, cond, noise_level or lengths does not fit the configuration.
        """
        grid = Grid.from_shape(self.config, x.shape)
        check_lengths(self.config, grid, lengths, x.shape[0])
        cond = condition_or_default(self.config, cond, x.shape[0])
        check_guidance(self.config, guidance, cond)
        level = resolved_level(self.config, noise_level, x.shape[0])
        tokens, map_logdet = self.mapped_tokens(x)
        if lengths is not None:
            tokens = without_padding(tokens, lengths)
            map_logdet = None if map_logdet is None else without_padding(map_logdet, lengths)
        states, logdets, text = [tokens], [], None
        keys = [None] * len(self.blocks) if dropout_key is None else jax.random.split(dropout_key, len(self.blocks))
        for index in range(len(self.blocks)):
            tokens, logdet, text = self.block_forward(index, tokens, cond, grid, guidance, keys[index], level, lengths)
            states.append(tokens)
            logdets.append(logdet)
        lengths = None if lengths is None else jnp.asarray(lengths)
        return FlowOutput(self.data_of(tokens), tuple(logdets), tuple(states), text, map_logdet, lengths)

    def block_forward(
        self,
        index: int,
        tokens: Float[Array, "B *grid c"],
        cond: Shaped[AnyArray, "B *rest"] | None,
        grid: Grid,
        guidance: AnyGuidance | None,
        dropout_key: PRNGKeyArray | None,
        level: NoiseLevel | None = None,
        lengths: Int[AnyArray, "B"] | None = None,
    ) -> tuple[Float[Array, "B *grid c"], Float[Array, "B ..."], Float[Array, "rows L D"] | None]:
        """The output tokens of a block, its log-determinants and its text stream."""
        block = self.block(index)
        batch = tokens.shape[0]
        if block.is_identity:
            return tokens, jnp.zeros((batch,)), None
        order_grid, frames = self.block_grid(index, grid)
        ordered = self.to_block(index, tokens, grid, lengths)
        cond = fold_condition(self.block_condition(index, cond, grid, lengths), frames)
        of_each = level is not None and jnp.ndim(level) == 1
        if of_each:
            level = jnp.repeat(jnp.asarray(level), frames)
        options: dict[str, Any] = {"dropout_key": dropout_key, "noise_level": level}
        if guidance is not None and self.is_guided(index, guidance):
            both = None if cond is None else jnp.concatenate([cond, guidance.unconditional(cond)])
            temperature = guidance.temperatures(ordered.shape[0])
            if of_each:
                options["noise_level"] = doubled(jnp.asarray(level))
            affine, text = block.affine(doubled(ordered), both, order_grid, temperature=temperature, **options)
            affine = guidance.combine(*halves(affine), jnp.arange(order_grid.tokens), order_grid.tokens)
        else:
            affine, text = block.affine(ordered, cond, order_grid, **options)
        affine = Affine(*(a.astype(jnp.float32) for a in (affine.mean, affine.scale)))
        logdet, output = affine.logdet, affine.forward(ordered)
        if lengths is not None:
            logdet, output = without_padding(logdet, lengths), without_padding(output, lengths)
        if frames > 1 or (self.config.is_local(index) and grid.frames is not None):
            logdet = logdet.reshape(batch, frames, grid.frame, -1)
        return self.from_block(index, output, grid, batch, lengths), logdet, text

    def block_grid(self, index: int, grid: Grid) -> tuple[Grid, int]:
        """The grid of a block's sequence, and the number of frames that are folded into its batch."""
        if self.config.is_local(index) and grid.frames is not None:
            return grid.with_frames(None), grid.frames
        return grid, 1

    def to_block(
        self,
        index: int,
        tokens: Float[AnyArray, "B *grid c"],
        grid: Grid,
        lengths: Int[AnyArray, "B"] | None = None,
    ) -> Float[AnyArray, "rows N c"]:
        """Raster tokens [B, ([T,] h, w), c] in the order of a block: [B or B * T, N or F, c]."""
        block_grid, _ = self.block_grid(index, grid)
        flat = tokens.reshape(-1, block_grid.tokens, tokens.shape[-1])
        return reorder(flat, block_order(self.config, index, block_grid), block_grid.frame, lengths)

    def block_condition(
        self,
        index: int,
        cond: Shaped[AnyArray, "B *rest"] | None,
        grid: Grid,
        lengths: Int[AnyArray, "B"] | None = None,
    ) -> Shaped[AnyArray, "B *rest"] | None:
        """The condition as a block reads it: classes of tokens in the block's order, anything else as it is."""
        if not self.config.token_classes or cond is None:
            return cond
        return reorder(cond, block_order(self.config, index, grid), grid.frame, lengths)

    def from_block(
        self,
        index: int,
        ordered: Float[AnyArray, "rows N c"],
        grid: Grid,
        batch: int,
        lengths: Int[AnyArray, "B"] | None = None,
    ) -> Float[AnyArray, "B *grid c"]:
        """The inverse of `to_block`."""
        block_grid, _ = self.block_grid(index, grid)
        order = block_order(self.config, index, block_grid)
        tokens = reorder(ordered, order, block_grid.frame, lengths, restore=True)
        return tokens.reshape(batch, *grid.shape, -1)

    def log_prob(
        self,
        x: Shaped[AnyArray, "B *size"],
        cond: Shaped[AnyArray, "B *rest"] | None = None,
        *,
        noise_level: NoiseLevel | None = None,
        lengths: Int[AnyArray, "B"] | None = None,
    ) -> Float[Array, "B"]:
        """Exact log-likelihood log N(z; 0, I) + sum logdet of x, [B], in nats (specification, section 2).

        A noise-conditioned flow has one density for every noise level: that of data with noise of this level. With
        `lengths`, it is the density of the tokens that are no padding, given their number.
        """
        out = self.forward(x, cond, noise_level=noise_level, lengths=lengths)
        return standard_normal_log_prob(out.z, lengths) + out.logdet

    def bits_per_dim(
        self,
        x: Shaped[AnyArray, "B *size"],
        cond: Shaped[AnyArray, "B *rest"] | None = None,
        *,
        levels: int = 256,
        noise_level: NoiseLevel | None = None,
    ) -> Float[Array, "B"]:
        """Bits/dim of dequantised integer data x, [B]; see `flows.bits.bits_per_dim`."""
        bits: jax.Array = bits_per_dim(self.log_prob(x, cond, noise_level=noise_level), x[0].size, levels)
        return bits


def standard_normal_log_prob(
    z: Float[AnyArray, "B *rest"], lengths: Int[AnyArray, "B"] | None = None
) -> Float[Array, "B"]:
    """log N(z; 0, I) of z: [B, ...], [B], in nats; of the first `lengths` rows alone, where the others are 0."""
    flat = z.reshape(z.shape[0], -1).astype(jnp.float32)
    count = flat.shape[1] if lengths is None else jnp.asarray(lengths) * (flat.shape[1] // z.shape[1])
    return -0.5 * jnp.sum(flat * flat, axis=1) - 0.5 * count * jnp.log(2.0 * jnp.pi)


def without_padding(values: Float[Array, "B N *rest"], lengths: Int[AnyArray, "B"]) -> Float[Array, "B N *rest"]:
    """The values of tokens [B, N, ...], with 0 in place of those of padding."""
    real = is_real(lengths, values.shape[1])
    return jnp.where(real.reshape(*real.shape, *(1,) * (values.ndim - 2)), values, 0.0)


def check_lengths(config: FlowConfig, grid: Grid, lengths: Int[AnyArray, "B"] | None, batch: int) -> None:
    """Raises ValueError where examples of this grid cannot have padding, or `lengths` is not [batch]."""
    if lengths is None:
        return
    if grid.frames is not None or grid.columns != 1 or config.patch_size != 1 or config.scale == "unit":
        raise ValueError(
            "lengths need vectors: x of one column without frames, patch_size 1 and a scale other than 'unit', got a "
            f"grid {grid.shape}, patch_size {config.patch_size} and scale {config.scale!r}"
        )
    if jnp.shape(lengths) != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"lengths must be integers [{batch}], got {lengths.dtype} of shape {jnp.shape(lengths)}")
