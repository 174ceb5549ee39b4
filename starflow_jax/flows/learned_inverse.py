"""The learned inverse of a flow: estimates of the state after every inverted block, in one pass from the noise.

The network follows BiFlow (arXiv 2512.10953): a bidirectional transformer for each block of the flow, from the noise to
the data, and one more, whose hidden states a head per block aligns with the flow's own states. Its estimates are
approximate. They serve as samples in one pass, or as initial estimates of a solver (`solvers.inverse`), whose answer is
the flow's own whatever they are.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.config.learned_inverse_config import LearnedInverseConfig
from starflow_jax.flows.order import AnyArray, Grid
from starflow_jax.kernels.attention import FrameWindow, Full, Visibility
from starflow_jax.nn.linear import Compute, Linear
from starflow_jax.nn.rope import Rotation, axial_positions, rotation
from starflow_jax.nn.transformer import Transformer
from starflow_jax.sharding.layout import Layout

_WEIGHT_FREQUENCIES = 16
_LOG_SCALE_BOUND = 4.0


@flax.struct.dataclass
class Stream:
    """The hidden states between two transformers of the network.

    Attributes:
      hidden: [B, L + N, D]: the text, then the tokens in raster order.
      grid: geometry of the tokens.
    """

    hidden: jax.Array
    grid: Grid = flax.struct.field(pytree_node=False)

    @property
    def text(self) -> int:
        """L, the number of text states."""
        return self.hidden.shape[1] - self.grid.tokens


@flax.struct.dataclass
class Estimates:
    """The result of one pass, float32, as tokens [B, ([T,] h, w), c] in raster order.

    Attributes:
      states: K + 1 arrays like `FlowOutput.tokens`: the estimated input of each block, then the noise.
      clean: the estimate of the data without the training noise.
    """

    states: tuple[jax.Array, ...]
    clean: jax.Array


class _Step(nnx.Module):
    """One transformer of the network with its input and its head."""

    def __init__(
        self, flow: FlowConfig, network: LearnedInverseConfig, layers: int, key: PRNGKeyArray, compute: Compute
    ):
        keys = jax.random.split(key, 3)
        width, c = network.width, flow.token_channels
        self.proj_in = Linear(c, width, keys[0], name="proj_in", compute=compute)
        self.transformer = Transformer(network.transformer(flow, layers), keys[1], compute=compute, remat=flow.remat)
        exact = dataclasses.replace(compute, dtype="float32")
        # Zero: a new network estimates every state by the one before it.
        self.proj_out = Linear(width, 2 * c, keys[2], name="proj_out", std=0.0, compute=exact)

    def __call__(
        self, stream: Stream, state: Float[Array, "B N c"], table: Rotation, visibility: Visibility
    ) -> tuple[Stream, Float[Array, "B N c"]]:
        """The next stream, and the estimate mean + scale * state.

        The flow's own state is affine in this one, so that errors of the head shrink with the scale of the noise.
        """
        text = stream.text
        hidden = stream.hidden.at[:, text:].add(self.proj_in(state).astype(stream.hidden.dtype))
        hidden, _ = self.transformer(hidden, rotation=table, visibility=visibility)
        mean, log_scale = jnp.split(self.proj_out(hidden[:, text:]).astype(jnp.float32), 2, axis=-1)
        scale = jnp.exp(_LOG_SCALE_BOUND * jnp.tanh(log_scale / _LOG_SCALE_BOUND))
        return dataclasses.replace(stream, hidden=hidden), mean + scale * state


class LearnedInverse(nnx.Module):
    """A network that imitates the inverse of a flow; a pytree of parameters whose methods are pure functions.

    For videos it is causal over frames: the estimates of a frame depend on the noise of that frame and of earlier ones.

    Args:
      flow: configuration of the flow.
      network: sizes of the network.
      key: of the initial parameters.
      layout: of several devices.
    """

    def __init__(
        self, flow: FlowConfig, network: LearnedInverseConfig, key: PRNGKeyArray, layout: Layout | None = None
    ):
        keys = jax.random.split(key, flow.num_blocks + 4)
        compute = Compute(network.dtype, flow.matmul_precision, layout)
        width = network.width
        self.flow = flow
        self.network = network
        self.steps = nnx.List(
            [
                _Step(flow, network, network.layers, keys[index], compute) if block.layers else None
                for index, block in enumerate(flow.blocks)
            ]
        )
        self.last = _Step(flow, network, network.clean_layers, keys[-4], compute)
        reads_text = flow.text_dim > 0
        self.proj_txt = Linear(flow.text_dim, width, keys[-3], name="proj_txt", compute=compute) if reads_text else None
        classes = (flow.num_classes, width)
        self.class_embed = nnx.Param(0.02 * jax.random.normal(keys[-2], classes)) if flow.num_classes else None
        self.proj_weight = (
            Linear(2 * _WEIGHT_FREQUENCIES, width, keys[-1], name="proj_weight", compute=compute)
            if network.guided
            else None
        )

    def begin(
        self,
        grid: Grid,
        batch: int,
        cond: Shaped[AnyArray, "B *rest"] | None = None,
        weight: float | Float[Array, ""] = 0.0,
    ) -> Stream:
        """The stream before the transformer of the last block.

        Args:
          grid: geometry of the tokens.
          batch: B.
          cond: as in `Flow.forward`.
          weight: guidance weight; ignored by a network that imitates the inverse without guidance.
        """
        width, dtype = self.network.width, self.network.dtype
        hidden = jnp.zeros((batch, grid.tokens, width), jnp.float32)
        if self.class_embed is not None:
            table = self.class_embed[...]
            labels = jnp.full((batch,), -1) if cond is None else jnp.asarray(cond)
            if labels.ndim == 2:  # weights of classes
                rows = labels @ table
            else:
                rows = jnp.where(labels[:, None] < 0, jnp.mean(table, axis=0), table[jnp.maximum(labels, 0)])
            hidden = hidden + rows[:, None]
        if self.proj_weight is not None:
            hidden = hidden + self.proj_weight(_weight_features(weight)).astype(jnp.float32)
        hidden = hidden.astype(dtype)
        if self.proj_txt is not None and cond is not None:
            hidden = jnp.concatenate([self.proj_txt(jnp.asarray(cond)), hidden], axis=1)
        return Stream(hidden, grid)

    def propose(
        self, index: int, stream: Stream, state: Float[Array, "B *grid c"]
    ) -> tuple[Stream, Float[Array, "B *grid c"]]:
        """The estimated input of block `index` (not an identity block), given its output.

        Args:
          index: the block; blocks are passed from the last one to the first.
          stream: of `begin`, or of the block after this one.
          state: [B, ([T,] h, w), c] tokens in raster order: the block's output, exact or estimated.
        """
        step = self.steps[index]
        assert step is not None  # not an identity block
        return self._advance(step, stream, state)

    def clean(self, stream: Stream, state: Float[Array, "B *grid c"]) -> Float[Array, "B *grid c"]:
        """The data without the training noise, given noisy data [B, ([T,] h, w), c] and the stream of block 0."""
        return self._advance(self.last, stream, state)[1]

    def __call__(
        self,
        noise: Float[Array, "B *grid c"],
        cond: Shaped[AnyArray, "B *rest"] | None = None,
        weight: float | Float[Array, ""] = 0.0,
        *,
        teacher: tuple[Float[Array, "B *grid c"], ...] | None = None,
        free_running: Bool[Array, "B"] | None = None,
    ) -> Estimates:
        """All estimates in one pass.

        Args:
          noise: [B, ([T,] h, w), c], the noise as the last block of the flow gives it.
          cond, weight: as in `begin`.
          teacher: the flow's own states (`FlowOutput.tokens`), which the transformers then read in place of the
            estimates of earlier ones (teacher forcing).
          free_running: samples that read the estimates nevertheless; None for none.
        """
        frames = noise.shape[1] if noise.ndim == 5 else None
        stream = self.begin(Grid(frames, *noise.shape[-3:-1]), noise.shape[0], cond, weight)
        states = [noise]

        def read(index: int) -> jax.Array:
            """The state that the transformer after state `index` reads."""
            if teacher is None:
                return states[0]
            if free_running is None:
                return teacher[index]
            return jnp.where(free_running.reshape(-1, *(1,) * (noise.ndim - 1)), states[0], teacher[index])

        for index in reversed(range(len(self.steps))):
            state = read(index + 1)
            if self.steps[index] is not None:
                stream, state = self.propose(index, stream, state)
            states.insert(0, state)
        return Estimates(tuple(states), self.clean(stream, read(0)))

    def _advance(
        self, step: _Step, stream: Stream, state: Float[Array, "B *grid c"]
    ) -> tuple[Stream, Float[Array, "B *grid c"]]:
        grid, text = stream.grid, stream.text
        visibility = Full() if grid.frames is None else FrameWindow(text, grid.frame, 1, None)
        tokens = state.reshape(state.shape[0], grid.tokens, -1)
        stream, estimate = step(stream, tokens, self._rotation(grid, text), visibility)
        return stream, estimate.reshape(state.shape)

    def _rotation(self, grid: Grid, text: int) -> Rotation:
        flow = self.flow
        positions = axial_positions(
            grid.rows, grid.columns, span=flow.position_span, axes=flow.axes, text=text, frames=grid.frames or 1
        )
        return rotation(positions, self.network.head_dim, "adjacent")


def _weight_features(weight: float | Float[Array, ""]) -> Float[Array, "1 1 features"]:
    """Sines and cosines of a guidance weight at periods from 1/8 to several thousand."""
    frequencies = jnp.exp(jnp.linspace(jnp.log(50.0), jnp.log(1e-3), _WEIGHT_FREQUENCIES))
    angles = jnp.float32(weight) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])[None, None]
