"""One autoregressive affine block, and the incremental prediction that its inverse uses."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.affine import Affine, soft_clip, to_affine
from starflow_jax.flows.affine_head import AffineHead
from starflow_jax.flows.noise_level import LevelEmbedding, NoiseLevel
from starflow_jax.flows.order import AnyArray, Grid, block_order, reorder
from starflow_jax.flows.positions import sinusoidal_positions
from starflow_jax.flows.prediction import BlockPredict, Prediction
from starflow_jax.flows.token_embedding import TokenEmbedding
from starflow_jax.kernels.attention import Causal
from starflow_jax.nn.cache import KVCache
from starflow_jax.nn.linear import Compute, Linear
from starflow_jax.nn.rope import Rotation, axial_positions, line_positions, rotation
from starflow_jax.nn.transformer import Layer, LayerModulations, Transformer
from starflow_jax.sharding.layout import Layout


def slot_rotation(config: FlowConfig, block: int | None, grid: Grid, text: int, padding: int = 0) -> Rotation | None:
    """The rotary table of a block's slots (block None: the denoiser's): text first, then tokens in raster order."""
    transformer = config.denoiser_transformer if block is None else config.blocks[block]
    if transformer.rope == "none":
        return None
    if transformer.rope == "1d":
        positions = line_positions(text + grid.tokens)
    else:
        positions = axial_positions(
            grid.rows,
            grid.columns,
            span=config.position_span,
            axes=config.axes,
            text=text,
            frames=grid.frames or 1,
        )
    return rotation(positions, transformer.head_dim, transformer.rope_pairs, padding=padding)


class AutoregressiveBlock(nnx.Module):
    """x_i = mean_i + scale_i * z_i with (mean_i, scale_i) = f(x_<i, text) (specification, section 1).

    A block without layers is the identity map and holds no parameters.
    """

    def __init__(self, config: FlowConfig, index: int, key: PRNGKeyArray, layout: Layout | None = None):
        transformer = config.blocks[index]
        self.config = config
        self.index = index
        self.is_identity = transformer.layers == 0
        if self.is_identity:
            return
        keys = jax.random.split(key, 8)
        width, c = transformer.width, config.token_channels
        compute = Compute.from_config(config, layout)
        self.proj_in = Linear(c, width, keys[0], name="proj_in", compute=compute)
        reads_text = config.is_conditioned(index)
        projects = reads_text and config.language_model is not transformer
        self.proj_txt = Linear(config.text_dim, width, keys[1], name="proj_txt", compute=compute) if projects else None
        self.sos_embed = nnx.Param(0.02 * jax.random.normal(keys[2], (c,))) if config.sos else None
        rows, columns = config.grid
        learned = (rows * columns, width)
        has_table = not config.rope and config.positions == "learned"
        self.pos_embed = nnx.Param(0.02 * jax.random.normal(keys[3], learned)) if has_table else None
        classes = (config.num_classes, width)
        self.class_embed = nnx.Param(0.02 * jax.random.normal(keys[4], classes)) if config.num_classes else None
        self.token_embed, self.next_embed = TokenEmbedding.pair(config, width, keys[4])
        self.transformer = Transformer(
            transformer,
            keys[5],
            compute=compute.of_layers(config),
            remat=config.remat,
            dropout=config.dropout,
            shared=config.shared_layers,
        )
        self.shared_layers: Layer | None = nnx.data(None)
        # Zero: a new block is the identity map, so that a new flow of any depth is invertible in float32.
        outputs, exact = c if config.scale == "unit" else 2 * c, dataclasses.replace(compute, dtype="float32")
        self.proj_out = Linear(width, outputs, keys[6], name="proj_out", std=0.0, compute=exact)
        self.level_embed = LevelEmbedding(width, keys[7], compute) if config.noise_levels else None

    @property
    def reads_tokens(self) -> bool:
        """Whether classes of the tokens condition this block."""
        return not self.is_identity and self.config.token_classes > 0

    def with_shared_layers(self, layers: Layer) -> AutoregressiveBlock:
        """This block with the layers that all blocks of a flow share, which run before its own."""
        block: AutoregressiveBlock = jax.tree.map(lambda leaf: leaf, self)
        block.shared_layers = layers
        return block

    @property
    def reads_text(self) -> bool:
        """Whether text states condition this block."""
        return not self.is_identity and self.config.is_conditioned(self.index)

    @property
    def reads_class(self) -> bool:
        """Whether a class label conditions this block."""
        return not self.is_identity and self.config.num_classes > 0

    def _prediction(self, h: Float[Array, "B n D"], first: int | Int[Array, ""]) -> Prediction:
        head = AffineHead(self.config.scale, self.config.soft_clip)
        compute = self.proj_out.compute
        return Prediction(self.proj_out(h), 0.0, first, head, compute.layout, compute.kernels)

    def _project_text(self, text: Float[AnyArray, "B L E"]) -> Float[Array, "B L D"]:
        text = jnp.asarray(text)
        return text.astype(self.config.dtype) if self.proj_txt is None else self.proj_txt(text)

    def class_vector(
        self, labels: Int[AnyArray, "B"] | Float[AnyArray, "B classes"] | None
    ) -> Float[Array, "rows 1 D"] | None:
        """The class embedding [B or 1, 1, D] added to every token; None or a label of -1 means the mean embedding.

        Weights [B, classes] in place of labels mean the weighted sum of the embeddings.
        """
        if self.class_embed is None:
            return None
        table = self.class_embed[...]
        mean = jnp.mean(table, axis=0)
        if labels is None:
            return mean[None, None]
        if labels.ndim == 2:
            return jnp.dot(jnp.asarray(labels), table, precision="highest")[:, None]
        # A label out of range gives NaN rather than another class: values cannot be checked under a transformation.
        rows = table.at[jnp.maximum(labels, 0)].get(mode="fill", fill_value=jnp.nan)
        return jnp.where(labels[:, None] < 0, mean, rows)[:, None]

    def token_vectors(self, classes: Int[AnyArray, "B N"] | None) -> Float[Array, "B N D"] | None:
        """What is added to the input of every slot of a flow with classes of tokens, in the block's order.

        Slot i reads token i and predicts token i + 1, whose class it reads, too, in a flow with `look_ahead`.
        """
        if self.token_embed is None or classes is None:
            return None
        vectors: jax.Array = self.token_embed(classes)
        if self.next_embed is not None:  # the last slot predicts nothing
            vectors = vectors + self.next_embed(jnp.pad(classes[:, 1:], ((0, 0), (0, 1)), constant_values=-1))
        return vectors

    def level_vector(self, level: NoiseLevel | None) -> Float[Array, "rows 1 D"] | None:
        """The embedding [B or 1, 1, D] of the noise level, added to every token; level None means t1."""
        if self.level_embed is None:
            return None
        assert self.config.noise_levels is not None  # __init__ has read it
        return self.level_embed(jnp.asarray(self.config.noise_levels[1] if level is None else level))

    def _embed(self, tokens: Float[Array, "B n c"], *terms: Float[Array, "..."] | None) -> Float[Array, "B n D"]:
        """The tokens as hidden states, plus the terms, [n, D] or [B or 1, 1, D]."""
        h = self.proj_in(tokens)
        for term in terms:
            if term is not None:
                h = h + term.astype(h.dtype)
        return h

    def _norm_condition(self, *terms: Float[Array, "..."] | None) -> Float[Array, "rows slots D"] | None:
        """What adaptive norms read: the sum of the embeddings of the conditions, [B or 1, n or 1, D]."""
        if self.transformer.config.norm != "adaptive":
            return None
        dtype = self.proj_in.compute.dtype
        # Each term is cast by itself, as in `predictor`: another rounding would make the inverse that of another map.
        given = [term.astype(dtype) for term in terms if term is not None]
        return sum(given, jnp.zeros((1, 1, self.transformer.config.width), dtype))

    def _positions(self, grid: Grid) -> Float[Array, "N D"] | None:
        """Positions that are added to the slots, [N, D]: learned ones in the block's order, or fixed ones."""
        if self.config.rope:
            return None
        if self.pos_embed is None:
            return sinusoidal_positions(grid.tokens, self.transformer.config.width)
        order = block_order(self.config, self.index, grid)
        return reorder(self.pos_embed[...][None], order, grid.frame)[0]

    def start_token(self, batch: int) -> Float[Array, "B 1 c"]:
        """The input before the first token, [B, 1, c] (unused zeros for a block without a start token)."""
        if self.sos_embed is None:
            return jnp.zeros((batch, 1, self.config.token_channels))
        return jnp.broadcast_to(self.sos_embed[...], (batch, 1, self.config.token_channels))

    def affine(
        self,
        tokens: Float[Array, "B N c"],
        cond: Shaped[AnyArray, "B *rest"] | None,
        grid: Grid,
        *,
        temperature: float | Float[Array, ""] | Float[Array, "B"] | None = None,
        dropout_key: PRNGKeyArray | None = None,
        noise_level: NoiseLevel | None = None,
    ) -> tuple[Affine, Float[Array, "B L D"] | None]:
        """Mean and scale of all tokens in one parallel pass.

        Args:
          tokens: [B, N, c] in the block's order.
          cond: text states [B, L, text_dim], labels [B], or classes of the tokens [B, N] in the block's order, where
            this block reads them; else None.
          grid: geometry of the tokens.
          temperature: divides the attention logits; [B] or scalar.
          dropout_key: enables dropout.
          noise_level: of a noise-conditioned flow, scalar or [B]; None for its t1.

        Returns:
          The affine parameters, and the text stream [B, L, D] after the last norm (None without text).
        """
        text = self._project_text(cond) if self.reads_text and cond is not None else None
        length = 0 if text is None else text.shape[1]
        inputs = tokens
        if self.sos_embed is not None:
            inputs = jnp.concatenate([self.start_token(tokens.shape[0]), tokens[:, :-1]], axis=1)
        class_vector = self.class_vector(cond) if self.reads_class else None
        token_vectors = self.token_vectors(cond) if self.reads_tokens else None
        conditions = (class_vector, token_vectors, self.level_vector(noise_level))
        h = self._embed(inputs, self._positions(grid), *conditions)
        if text is not None:
            h = jnp.concatenate([text, h], axis=1)
        h, _ = self.transformer(
            h,
            rotation=slot_rotation(self.config, self.index, grid, length),
            visibility=Causal(),
            temperature=temperature,
            dropout_key=dropout_key,
            shared_layers=self.shared_layers,
            condition=self._norm_condition(*conditions),
        )
        out = soft_clip(self.proj_out(h[:, length:]), self.config.soft_clip)
        if self.sos_embed is None:
            # Slot i computed the parameters of token i + 1; token 0 gets raw output 0: mean 0, scale 1.
            out = jnp.pad(out[:, :-1], ((0, 0), (1, 0), (0, 0)))
        return to_affine(out, self.config.scale), (None if text is None else h[:, :length])

    def predictor(
        self,
        cond: Shaped[AnyArray, "B *rest"] | None,
        grid: Grid,
        batch: int,
        *,
        padding: int = 0,
        temperature: float | Float[Array, ""] | Float[Array, "B"] | None = None,
        noise_level: NoiseLevel | None = None,
    ) -> tuple[BlockPredict, KVCache]:
        """The incremental form of `affine`, and a cache that already holds the text.

        Args:
          cond: as in `affine`, with `batch` rows.
          grid: geometry of all tokens that will pass through the cache.
          batch: B.
          padding: further slots, for solvers with chunks of a fixed size, which may write past the end.
          temperature: divides the attention logits; [B] or scalar.
          noise_level: as in `affine`.
        """
        text = self._project_text(cond) if self.reads_text and cond is not None else None
        length = 0 if text is None else text.shape[1]
        table = slot_rotation(self.config, self.index, grid, length, padding)
        positions = self._positions(grid)
        if positions is not None:
            positions = jnp.pad(positions, ((0, padding), (0, 0)))
        class_vector = self.class_vector(cond) if self.reads_class else None
        # Cast here, in front of the loops that call `predict`.
        dtype, level_vector = self.proj_in.compute.dtype, self.level_vector(noise_level)
        token_vectors = self.token_vectors(cond) if self.reads_tokens else None
        if token_vectors is not None:
            token_vectors = jnp.pad(token_vectors, ((0, 0), (0, padding), (0, 0)))
        positions, class_vector, token_vectors, level_vector = (
            None if term is None else term.astype(dtype)
            for term in (positions, class_vector, token_vectors, level_vector)
        )
        # One condition of all slots modulates the norms of all tokens alike: here once, not at every call of `predict`.
        fixed = self._norm_condition(class_vector, level_vector) if token_vectors is None else None
        modulations = None if fixed is None else self.transformer.modulations(fixed, self.shared_layers)
        # Without a start token, token i is predicted by the slot that reads token i - 1.
        shift = 1 if self.sos_embed is None else 0

        def run(
            h: Float[Array, "B n D"],
            slot: int | Int[Array, ""],
            cache: KVCache,
            condition: Float[Array, "rows slots D"] | tuple[LayerModulations, ...] | None = None,
        ) -> tuple[Float[Array, "B n D"], KVCache]:
            h, written = self.transformer(
                h,
                rotation=None if table is None else table.at(slot, h.shape[1]),
                visibility=Causal(),
                temperature=temperature,
                cache=cache,
                slot=slot,
                shared_layers=self.shared_layers,
                condition=condition,
            )
            assert written is not None  # a cache was passed
            return h, written

        def predict(
            previous: Float[Array, "B n c"], first: int | Int[Array, ""], cache: KVCache
        ) -> tuple[Prediction, KVCache]:
            position = first - shift
            rows = vectors = None
            if positions is not None:
                rows = jax.lax.dynamic_slice_in_dim(positions, position, previous.shape[1])
            if token_vectors is not None:
                vectors = jax.lax.dynamic_slice_in_dim(token_vectors, position, previous.shape[1], axis=1)
            conditions = (class_vector, vectors, level_vector)
            h = self._embed(previous, rows, *conditions)
            condition = self._norm_condition(*conditions) if modulations is None else modulations
            h, cache = run(h, length + position, cache, condition)
            return self._prediction(h, first), cache

        cache = self.transformer.empty_cache(batch, length + grid.tokens + padding)
        if text is not None:
            _, cache = run(text, 0, cache)
        return predict, cache
