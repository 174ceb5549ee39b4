"""Codes groups of images, or of clips frame by frame, by the likelihood of a flow.

Encoding pops and pushes in the reverse order of decoding. For the images of a group:

    pop the places of all pixels in their levels (`pixel_grid`)
    for each block from the data to the noise, for its tokens from the LAST to the first:
        transform the token by the block's mean and scale (`modular_scale`); in the last block push the noise

so that decoding reaches the tokens from the FIRST to the last, each when its context is known.

Clips are coded frame by frame, the last frame first. The context of a frame is the earlier frames as their pixels alone
give them, with the middles of their levels, and not the places that were popped for them: those are known only when the
earlier frames are coded. A decoder thus has each frame as soon as it is decoded, and the bits that were popped for a
frame come from the frames after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.compression.lifting import LiftedBasis
from starflow_jax.compression.modular_scale import Grid, pop_scaled, push_scaled, scaled_grid
from starflow_jax.compression.noise_code import NoiseCode
from starflow_jax.compression.pixel_grid import PixelGrid
from starflow_jax.compression.rans import AnsStack
from starflow_jax.compression.token_programs import BlockTokens
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.data.decoding.dequantise import dequantise
from starflow_jax.flows import order
from starflow_jax.flows.conditions import condition_or_default
from starflow_jax.flows.parameters import Params
from starflow_jax.flows.pixel_map import token_basis

_LARGEST = 1e4  # of a number that a network reads
# By how many bits the grids of pixels and of tokens are coarser, for the first three groups.
_COARSER = ((3, 4), (2, 2), (1, 1))
_COARSEST_TOKENS = 3


@dataclasses.dataclass(frozen=True)
class Resolution:
    """How fine the integer grids are: an ordinary level covers 2^pixel_bits positions; tokens have a spacing of
    2^-token_bits. A finer grid costs less in each image and takes more initial bits."""

    pixel_bits: int
    token_bits: int

    def of_group(self, index: int) -> Resolution:
        """The grids of a group, by its place in the order of coding.

        Those of the first groups, of one image each, are coarser: there are no bits of earlier images to pop yet, and
        the initial bits that a finer grid takes instead are more than it saves.
        """
        if index >= len(_COARSER):
            return self
        pixels, tokens = _COARSER[index]
        coarsest = min(self.token_bits, _COARSEST_TOKENS)
        return Resolution(max(self.pixel_bits - pixels, 0), max(self.token_bits - tokens, coarsest))


class GroupCoders:
    """The coders of the groups of a file, which differ in their grids alone; see `FlowCoder` for the arguments."""

    def __init__(
        self, config: FlowConfig, params: Params, levels: int, frames: int | None, rows: int, resolution: Resolution
    ):
        grids = dict.fromkeys(resolution.of_group(index) for index in range(len(_COARSER) + 1))
        self._coders = {grid: FlowCoder(config, params, levels, frames, rows, grid) for grid in grids}
        self._resolution = resolution

    def of_group(self, index: int) -> FlowCoder:
        """The coder of a group, by its place in the order of coding."""
        return self._coders[self._resolution.of_group(index)]

    def last(self) -> FlowCoder:
        """The coder of all groups but the first few."""
        return self._coders[self._resolution]


class FlowCoder:
    """A flow as a coder of groups of at most `rows` images or clips.

    Args:
      config, params: of a flow on pixels, on one device.
      levels: of a pixel.
      frames: of a clip; None for still images.
      rows: images that are computed together; a smaller group is padded.
      resolution: of the integer grids.

    Raises:
      ValueError: a pixel map that widens a level too much.
    """

    def __init__(
        self, config: FlowConfig, params: Params, levels: int, frames: int | None, rows: int, resolution: Resolution
    ):
        self.config, self.params, self.levels, self.frames, self.rows = config, params, levels, frames, rows
        self.pixels = PixelGrid(levels, resolution.pixel_bits, config.pixel_map)
        self.noise = NoiseCode(resolution.token_bits)
        spacing = 2.0**-resolution.token_bits
        first, self.basis = self.pixels.grid, None
        basis = None
        if config.pixel_map is not None:
            basis = token_basis(config.pixel_map, config.channels, config.patch_size, config.family)
        if basis is not None:
            self.basis = LiftedBasis.of(basis)
            # All pixels share an origin, which the basis maps to one for each channel.
            half = 0.5 * first.spacing
            first = Grid(first.spacing, (half + first.origin[0]) * basis.astype(np.float64).sum(axis=0) - half)
        self.spacing, inner = spacing, Grid(spacing, np.zeros(1))
        self.grids = [first, *[inner] * (config.num_blocks - 1)]
        self.still = order.Grid(None, *config.grid)
        # Where the numbers of the tokens are in an image: integers of any size are moved, not computed with.
        shape = (1, *config.image_shape, config.channels)
        numbers = jnp.arange(float(np.prod(shape))).reshape(shape)
        self._places = np.asarray(order.patchify(numbers, config.patch_size, config.family), np.int64).reshape(-1)

    def blocks(self, cond: np.ndarray | None) -> list[BlockTokens]:
        """The blocks with empty caches, for a group of conditions [g, ...]; None: default classes, or none."""
        given = None if cond is None else jnp.asarray(self._padded(np.asarray(cond)))
        rows = condition_or_default(self.config, given, self.rows)
        return [self._block(index, rows) for index in range(self.config.num_blocks)]

    def push_group(self, stack: AnsStack, images: np.ndarray, cond: np.ndarray | None) -> np.ndarray:
        """Codes a group.

        Args:
          images: integers [g, H, W, C] or [g, T, H, W, C], 0 to levels - 1; cond: what the flow reads, g rows, or None.

        Returns:
          The dequantised values, float32, of the shape of `images`, at which the density was coded: those that block 0
          reads, before a basis.
        """
        blocks = self.blocks(cond)
        if self.frames is None:
            return self._push_frame(stack, images, blocks, 0, [None] * len(blocks))
        before: list[list[np.ndarray | None]] = [[None] * len(blocks)]
        for frame in range(self.frames - 1):
            before.append(self._read_frame(images[:, frame], blocks, frame, before[-1]))
        points = [
            self._push_frame(stack, images[:, frame], blocks, frame, before[frame])
            for frame in reversed(range(self.frames))
        ]
        return np.stack(points[::-1], axis=1)

    def pop_group(self, stack: AnsStack, count: int, cond: np.ndarray | None) -> Iterator[np.ndarray]:
        """Decodes a group of `count`: its frames in their order, uint8 [g, H, W, C] each; one for still images.

        Raises:
          ValueError: the stream is damaged.
        """
        blocks = self.blocks(cond)
        before: list[np.ndarray | None] = [None] * len(blocks)
        for frame in range(self.frames or 1):
            images = self._pop_frame(stack, count, blocks, frame, before)
            yield images
            if frame + 1 < (self.frames or 1):
                before = self._read_frame(images, blocks, frame, before)

    def _block(self, index: int, cond: jax.Array | None) -> BlockTokens:
        grid = self.still if self._is_local(index) else self.still.with_frames(self.frames)
        return BlockTokens(self.config, self.params, index, grid, cond, self.rows)

    def _is_local(self, index: int) -> bool:
        return self.frames is None or self.config.is_local(index)

    def _first(self, index: int, frame: int) -> int:
        """The index of a frame's first token among those in a block's cache."""
        return 0 if self._is_local(index) else frame * self.still.frame

    def _padded(self, rows: np.ndarray) -> np.ndarray:
        padding = [(0, self.rows - len(rows))] + [(0, 0)] * (rows.ndim - 1)
        return np.pad(rows, padding)

    def _push_frame(
        self,
        stack: AnsStack,
        images: np.ndarray,
        blocks: list[BlockTokens],
        frame: int,
        before: list[np.ndarray | None],
    ) -> np.ndarray:
        positions = self.pixels.pop(stack, images)
        tokens = self._tokens(positions)
        if self.basis is not None:
            tokens = self.basis.forward(tokens)
        for index, block in enumerate(blocks):
            grid, ordered = self.grids[index], _ordered(tokens, block)
            if self._is_local(index):
                block.restart()
            read = self._padded(grid.real(ordered))
            mean, scale = (a[: len(images)] for a in block.steps(read, self._first(index, frame), before[index]))
            scaled = scaled_grid(_by_token(mean), _by_token(scale), grid, self.spacing)
            noise = self.noise if index == len(blocks) - 1 else None
            tokens = _raster(_by_token(push_scaled(stack, _by_token(ordered), scaled, noise)), block)
        return self.pixels.grid.real(positions)

    def _pop_frame(
        self, stack: AnsStack, count: int, blocks: list[BlockTokens], frame: int, before: list[np.ndarray | None]
    ) -> np.ndarray:
        tokens: np.ndarray | None = None
        for index in reversed(range(len(blocks))):
            block, grid = blocks[index], self.grids[index]
            if self._is_local(index):
                block.restart()
            known = None if tokens is None else _by_token(_ordered(tokens, block))
            previous, found = before[index], []
            for token in range(self.still.frame):
                mean, scale = block.step(previous, self._first(index, frame) + token)
                scaled = scaled_grid(mean[:count], scale[:count], grid, self.spacing)
                found.append(pop_scaled(stack, self.noise if known is None else known[token], scaled))
                previous = self._padded(grid.real(found[-1]))
            tokens = _raster(_by_token(np.stack(found)), block)
        assert tokens is not None  # a flow has blocks
        if self.basis is not None:
            tokens = self.basis.backward(tokens)
        return self.pixels.push(stack, self._images(tokens)).astype(np.uint8)

    def _read_frame(
        self, images: np.ndarray, blocks: list[BlockTokens], frame: int, before: list[np.ndarray | None]
    ) -> list[np.ndarray | None]:
        """Writes a decoded frame into the caches, with pixels in the middles of their levels.

        Returns:
          The last token of the frame in the order of each block, [rows, c].
        """
        middles = dequantise(images, np.full(images.shape, 0.5, np.float32), self.levels)
        tokens, last = self._padded(self._tokens(middles)), []
        for index, block in enumerate(blocks):
            ordered = _ordered(tokens, block)
            if self._is_local(index):
                block.restart()
            mean, scale = block.steps(ordered, self._first(index, frame), before[index])
            last.append(None if self._is_local(index) else ordered[:, -1])
            with np.errstate(all="ignore"):
                tokens = np.nan_to_num((ordered - mean) / scale).clip(-_LARGEST, _LARGEST)
            tokens = _raster(tokens, block)
        return last

    def _tokens(self, images: np.ndarray) -> np.ndarray:
        """Numbers [g, H, W, C] as raster tokens [g, F, c]."""
        return images.reshape(len(images), -1)[:, self._places].reshape(len(images), self.still.frame, -1)

    def _images(self, tokens: np.ndarray) -> np.ndarray:
        """The inverse of `_tokens`."""
        shape = (len(tokens), *self.config.image_shape, self.config.channels)
        return tokens.reshape(len(tokens), -1)[:, np.argsort(self._places)].reshape(shape)


def _ordered(tokens: np.ndarray, block: BlockTokens) -> np.ndarray:
    """The tokens [g, F, c] of a frame from raster order to a block's."""
    return tokens[:, block.order]


def _raster(tokens: np.ndarray, block: BlockTokens) -> np.ndarray:
    """The inverse of `_ordered`."""
    return tokens[:, np.argsort(block.order)]


def _by_token(array: np.ndarray) -> np.ndarray:
    """[g, F, c] as [F, g, c], or back: the order in which tokens are decoded."""
    return array.swapaxes(0, 1)
