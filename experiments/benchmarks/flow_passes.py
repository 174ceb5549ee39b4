"""The passes of a flow that benchmarks time, each with the floor of its products, as functions and their arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bare_inverse import Chunk, chunks_of, evaluations_of, inverse_operands, inverse_products, work
from bare_products import (
    backward_products,
    block_shapes,
    denoiser_shape,
    forward_products,
    parallel_operands,
    random_weights,
)
from flow_operations import JacobiSetting, Sizes, is_guided, operation_names

from starflow_jax.core.config import FlowConfig
from starflow_jax.flows import Guidance, objective
from starflow_jax.flows.order import Grid
from starflow_jax.flows.parameters import initialise, merge
from starflow_jax.solvers import AnySolver, Inversion, Jacobi, Sequential, inverse
from starflow_jax.solvers.tolerance import with_tolerance

Bound = tuple[Callable[..., Any], tuple[Any, ...]]


class FlowPasses:
    """A flow with random weights and inputs, and its passes by name.

    Attributes:
      config: of the flow. sizes: of its inputs. frames: of a video, None for images.
      blocks, shapes: index and shape of every block with layers. denoiser: its shape as that of a block, or None.
      definition, params: the flow. x: data, or the noise of inverses. text: states, None for a flow without text.
    """

    def __init__(self, config: FlowConfig, sizes: Sizes):
        self.config, self.sizes = config, sizes
        frames = self.frames = sizes.frames if config.temporal_causal else None
        keys = jax.random.split(jax.random.key(0), 4)
        shape = (sizes.batch, *([frames] if frames else []), *config.image_shape, config.channels)
        frame = Grid.from_shape(config, shape).frame
        self.x = jax.random.normal(keys[0], shape)
        self.text = jax.random.normal(keys[1], (sizes.batch, sizes.text, config.text_dim)) if config.text_dim else None
        self.definition, self.params = initialise(config, keys[2])
        # Output projections are small but not zero: the map is well conditioned, and Jacobi needs several iterations.
        owners = [*self.params["blocks"].values(), *([self.params["denoiser"]] if config.denoiser else [])]
        for i, owner in enumerate(owners):
            if "proj_out" in owner:
                kernel = owner["proj_out"]["kernel"]
                owner["proj_out"]["kernel"] = 0.02 * jax.random.normal(jax.random.fold_in(keys[3], i), kernel.shape)
        text = sizes.text if config.text_dim else 0
        self.blocks = [i for i, c in enumerate(config.blocks) if c.layers]
        self.shapes = block_shapes(config, sizes.batch, frames, frame, text)
        self.weights = [random_weights(shape, np.random.default_rng(i)) for i, shape in enumerate(self.shapes)]
        self.denoiser = denoiser_shape(config, sizes.batch, frames, frame, text) if config.denoiser else None

    @property
    def names(self) -> list[str]:
        """The names of all passes."""
        return operation_names(denoiser=self.config.denoiser is not None, text=self.text is not None)

    def run(self, name: str) -> Bound:
        """The function of a pass, and its arguments."""
        if name == "forward":
            return self._forward, (self.params, self.x, self.text)
        if name == "forward+backward":
            return self._gradients, (self.params, self.x, self.text)
        if name == "denoiser":
            return self._denoise, (self.params, self.x, self.text)
        setting = JacobiSetting.parse(name)
        solver = Sequential() if setting is None else Jacobi(block=setting.block)
        tolerance = None if setting is None else setting.tolerance
        return self.inverse(solver, guided=is_guided(name), tolerance=tolerance)

    def inverse(self, solver: AnySolver, *, guided: bool, tolerance: float | None = None) -> Bound:
        """The function of an inverse by any solver, and its arguments.

        A tolerance in place of the solver's is the last argument, so that one program serves all tolerances.
        """

        def invert(params: Any, z: jax.Array, text: jax.Array | None, *tolerance: jax.Array) -> Inversion:
            guidance = self.guidance if guided else None
            own = with_tolerance(solver, *tolerance) if tolerance else solver
            return inverse(merge(self.definition, params), z, text, solver=own, guidance=guidance)

        given = () if tolerance is None else (np.float32(tolerance),)
        return invert, (self.params, self.x, self.text, *given)

    @property
    def guidance(self) -> Guidance:
        """The guidance of guided inverses."""
        assert self.text is not None
        return Guidance(self.sizes.guidance, jnp.zeros_like(self.text), deep_only=self.config.cond_top_only)

    def _forward(self, params: Any, x: jax.Array, text: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        out = merge(self.definition, params).forward(x, text)
        return out.z, out.logdet

    def _gradients(self, params: Any, x: jax.Array, text: jax.Array | None) -> tuple[jax.Array, Any]:
        """The loss and its gradients with respect to the parameters of the blocks; the denoiser has another loss."""
        trained = {name: value for name, value in params.items() if name != "denoiser"}

        def loss(trained: Any) -> jax.Array:
            return objective(merge(self.definition, params | trained).forward(x, text)).loss

        return jax.value_and_grad(loss)(trained)

    def _denoise(self, params: Any, x: jax.Array, text: jax.Array | None) -> jax.Array:
        return merge(self.definition, params).denoiser(x, text)

    def floor(self, name: str) -> Bound:
        """The products of a parallel pass, and their arguments."""
        shapes = [self.denoiser] if name == "denoiser" and self.denoiser is not None else self.shapes
        rng = np.random.default_rng(len(self.shapes))
        weights = [random_weights(shape, rng) for shape in shapes] if name == "denoiser" else self.weights
        operands = [parallel_operands(shape, rng) for shape in shapes]
        products = [forward_products, *([backward_products] if name == "forward+backward" else [])]

        def run(weights: Any, operands: Any) -> list[Any]:
            return [[f(*one) for one in zip(shapes, weights, operands, strict=True)] for f in products]

        return run, (weights, operands)

    def chunks(self, name: str, result: Inversion) -> list[Chunk]:
        """The chunks of an inverse by their result, in order."""
        guided = {b for b in self.blocks if self.config.is_conditioned(b)} if is_guided(name) else set()
        return chunks_of(result, self.blocks, self.shapes, guided)

    def inverse_floor(self, chunks: list[Chunk]) -> Bound:
        """The products of an inverse, and their arguments."""
        evaluations = evaluations_of(chunks)

        def run(weights: Any, operands: Any) -> list[Any]:
            return inverse_products(self.shapes, evaluations, weights, operands)

        return run, (self.weights, inverse_operands(self.shapes, evaluations, np.random.default_rng(0)))

    def inverse_work(self, chunks: list[Chunk]) -> tuple[int, list[int]]:
        """Multiply-adds of an inverse, and values that one evaluation of each kind reads (`bare_inverse.work`)."""
        return work(self.shapes, evaluations_of(chunks), self.weights)
