"""Configuration of a flow: one frozen dataclass that validates its fields.

Everything that changes the parameters or the arithmetic of a flow is a field of it. Options of a single call (solver,
guidance, number of frames, aspect ratio) are arguments of that call instead.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from starflow_jax.core.choices import Dtype, MLPKind, Norm, Positions, Quantisation, Scale
from starflow_jax.core.config.checks import check, check_choices, check_integer, check_real
from starflow_jax.core.config.flow_checks import (
    check_axial,
    check_default_classes,
    check_family,
    check_language_model,
    check_noise_levels,
    check_norm,
    check_orders,
    check_positions,
    check_quantise,
    check_rope_axes,
    check_shared_layers,
    check_token_classes,
)
from starflow_jax.core.config.pixel_map_config import PixelMapConfig
from starflow_jax.core.config.transformer_config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
    """The learned denoiser D(x, text) of STARFlow-V (specification, section 6), as wide as the shallow blocks.

    Attributes:
      layers: transformer layers.
      conditional: whether it reads the text.
      look_ahead: A; query frame q sees key frames up to q + A - 1. None: all later frames.
      window: R; query frame q sees key frames from q + A - 1 - R. None: all earlier frames.
    """

    layers: int = 8
    conditional: bool = True
    look_ahead: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        check_integer("denoiser.layers", self.layers, minimum=1)
        if self.look_ahead is not None:
            check_integer("denoiser.look_ahead", self.look_ahead, minimum=1)
        if self.window is not None:
            check_integer("denoiser.window", self.window, minimum=1)
            check(
                self.look_ahead is not None,
                f"denoiser.window ({self.window}) needs denoiser.look_ahead, which is None",
            )


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """A stack of autoregressive affine blocks; block 0 is nearest the data, and the last block is the deep one.

    Attributes:
      family: "starflow" or "tarflow"; determines the order of a token's channels ((p1, p2, C) or (C, p1, p2)), the
        kind of guidance, and whether the flow has a prior variance (TARFlow).
      channels: channels C of the data; image_size: rows and columns of training images (an int means a square).
      patch_size: p; a token holds C * p * p channels.
      width, deep_width: residual channels of the shallow blocks and of the deep block (None: the same).
      num_blocks: K; layers_per_block: one number for all blocks, or K numbers (0: identity block).
      shared_layers: of these layers, the first ones that are the same layers in all blocks but identity blocks, as
        iTARFlow's option of a shared backbone; every such block has further layers of its own.
      head_dim, heads, kv_heads: channels of a head, query heads (None: width / head_dim), and key/value heads (None: as
        many as query heads).
      expansion, mlp, norm, qk_norm, post_norm, final_norm, bias, rope_pairs: as in TransformerConfig; the condition of
        norm "adaptive" is the sum of the embeddings of classes, classes of tokens and noise levels (TARFlow).
      order: "R2L" or "L2R"; determines which blocks reverse the tokens (specification, section 1.2).
      orders: the order of each block's tokens in place of `order`, for still images and vectors of the trained size: K
        permutations of 0 to N - 1, whose entry i is the raster index of the block's token i; () keeps a block's order.
      scale: "softplus", "exp", or "unit" (volume preserving, sigma = 1).
      soft_clip: s of s * tanh(out / s); 0 turns it off.
      sos: whether there is a learned start token; without it the output is shifted by one.
      rope: whether positions are rotary. positions: of other flows, "learned" ones, which belong to the raster index of
        a token, or "sinusoidal", fixed ones of its index in the block's order. rope_axes: 2 or 3; None means 3 if the
        model has a text length or temporal causality, else 2. pt_seq_len: number of rows (and of columns) that
        positions span; None means image_size / patch_size.
      text_dim, text_length: width and trained length of the text states; 0 for a model without text.
      num_classes: size of the class embedding (TARFlow); 0 for none.
      token_classes: number of classes of single tokens, such as the elements of atoms, whose embeddings are added to
        the tokens (TARFlow, still images and vectors of the trained size); 0 for none. A condition is then a class for
        every token.
      default_classes: the classes of the N tokens where no condition is given, as of a flow of one molecule; -1 for a
        token without one. None: all without.
      look_ahead: whether the network also reads the class of the token that it predicts (needs token_classes).
      cond_top_only: whether only the deep block reads the text.
      temporal_causal: whether blocks that reverse the tokens keep the frames in order.
      shallow_local: whether shallow blocks process each frame separately.
      denoiser: the learned denoiser, if the model has one.
      language_model: a deep block with the architecture of a pretrained language model (no text projection, 1-D
        positions).
      noise_levels: (t0, t1), the range of noise levels of a noise-conditioned flow (specification, section 6): the
        standard deviation t of the noise in the data is a condition of every block. None for a flow without.
      dropout: dropout rate on the two residual branches in training.
      dtype: compute dtype of the networks; matmul_precision: of float32 products ("highest" keeps likelihoods exact
        on accelerators whose default is lower). Parameters, scales, logdets and reductions stay float32.
      remat: what the backward pass recomputes: "none", "attention", "mlp" or "block" (each whole layer); "dense" (a
        layer without its attention, whose output is stored), or "pointwise" (norms and the GELU; what products and
        attention give is stored). Both store attention where a kernel or cuDNN computes it, and recompute that of XLA.
        On CPUs "none" stores the products of a layer and recomputes the rest.
      kernels: of attention and of the Jacobi update: "auto" uses cuDNN on NVIDIA GPUs for causal attention of whole
        sequences in bfloat16, and Pallas kernels where they are known to be faster (`kernels/kernel_choice.py`). "xla"
        never uses either, "pallas" always uses the kernels or raises an error with the reason, and "cudnn" does so for
        cuDNN in attention without a cache, which training and likelihoods run; all else is as with "auto".
      cache: how a mesh divides the key/value cache of an inverse: "auto" by heads, over the axes tensor and sequence,
        or, where they do not divide (training refuses such a mesh), by heads over tensor and by slots over sequence;
        "slots" always the latter.
      pixel_map: a fixed bijection in front of block 0, of dequantised pixels of images or of vectors; None for none.
      quantise: how kernels of the transformers' layers are stored, for inference alone: "int8", "fp8" (e4m3), "int4"
        (in groups of inputs), or "int8-activations", which also rounds their inputs. None: float32, as trained.
    """

    channels: int
    image_size: int | tuple[int, int]
    width: int
    num_blocks: int
    layers_per_block: int | tuple[int, ...]
    family: Literal["starflow", "tarflow"] = "starflow"
    patch_size: int = 1
    shared_layers: int = 0
    deep_width: int | None = None
    head_dim: int = 64
    heads: int | None = None
    kv_heads: int | None = None
    expansion: int = 4
    mlp: MLPKind = "gelu"
    norm: Norm = "layer"
    qk_norm: bool | Literal["layer"] = False
    post_norm: bool = False
    final_norm: bool = False
    bias: bool = True
    order: Literal["R2L", "L2R"] = "R2L"
    orders: tuple[tuple[int, ...], ...] | None = None
    scale: Scale = "exp"
    soft_clip: float = 0.0
    sos: bool = False
    rope: bool = False
    positions: Positions = "learned"
    rope_axes: Literal[2, 3] | None = None
    rope_pairs: Literal["adjacent", "half"] = "adjacent"
    pt_seq_len: int | None = None
    text_dim: int = 0
    text_length: int = 0
    num_classes: int = 0
    token_classes: int = 0
    default_classes: tuple[int, ...] | None = None
    look_ahead: bool = False
    cond_top_only: bool = False
    temporal_causal: bool = False
    shallow_local: bool = False
    denoiser: DenoiserConfig | None = None
    language_model: TransformerConfig | None = None
    noise_levels: tuple[float, float] | None = None
    dropout: float = 0.0
    dtype: Dtype = "float32"
    matmul_precision: Literal["default", "high", "highest"] = "highest"
    remat: Literal["none", "pointwise", "attention", "mlp", "dense", "block"] = "none"
    kernels: Literal["auto", "xla", "pallas", "cudnn"] = "auto"
    cache: Literal["auto", "slots"] = "auto"
    pixel_map: PixelMapConfig | None = None
    quantise: Quantisation | None = None

    def __post_init__(self) -> None:
        self._check_fields()
        self._check_conditions()
        self._check_family()
        if self.language_model is not None:
            last = self.layers_per_block if isinstance(self.layers_per_block, int) else self.layers_per_block[-1]
            check_language_model(
                self.language_model, rope=self.rope, text_dim=self.text_dim, layers=last, deep_width=self.deep_width
            )
        self._check_denoiser()
        check_noise_levels(self.noise_levels, self.blocks, scale=self.scale)
        rows, columns = self.grid
        check_default_classes(self.default_classes, self.token_classes, rows * columns)
        check_positions(self.positions, self.blocks, rope=self.rope)
        conditions = bool(self.num_classes or self.token_classes or self.noise_levels)
        check_norm(self.norm, self.language_model, family=self.family, conditions=conditions)
        check_orders(self.orders, self.num_blocks, rows * columns, frames=self.temporal_causal or self.shallow_local)
        check_shared_layers(self.shared_layers, self.blocks, language_model=self.language_model is not None)
        check_quantise(self.quantise, self.blocks)
        for block in self.blocks:  # building the property validates the transformer of every block
            if block.rope == "axial":
                check_axial(block.head_dim, self.axes)

    def identity(self) -> dict[str, Any]:
        """The fields as plain values, for hashes, without `cache`, which changes no result.

        Absent pixel maps, noise levels, orders, shared layers, classes of tokens, schemes of quantisation, learned
        positions and unused fields of maps are left out, so that hashes of flows without them stay what they were.
        """
        values = dataclasses.asdict(self)
        del values["cache"]
        optional = ("pixel_map", "noise_levels", "orders", "shared_layers", "token_classes", "look_ahead", "quantise")
        for name in (*optional, "default_classes"):
            if not values[name]:
                del values[name]
        if self.positions == "learned":
            del values["positions"]
        if self.pixel_map is not None and self.pixel_map.kind != "affine":
            values["pixel_map"] = {k: v for k, v in values["pixel_map"].items() if k not in ("shift", "scale")}
        return values

    def _check_fields(self) -> None:
        check_choices(self)
        for name in ("channels", "patch_size", "width", "num_blocks", "head_dim", "expansion"):
            check_integer(name, getattr(self, name), minimum=1)
        for name in ("deep_width", "heads", "kv_heads", "pt_seq_len"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=1)
        for name in ("text_dim", "text_length", "num_classes", "token_classes"):
            check_integer(name, getattr(self, name), minimum=0)
        for name, value in zip(("image_size rows", "image_size columns"), self.image_shape, strict=True):
            check_integer(name, value, minimum=1)
            check(
                value % self.patch_size == 0,
                f"patch_size must divide image_size, got patch_size={self.patch_size} and image_size={self.image_size}",
            )
        layers = self.layers_per_block if isinstance(self.layers_per_block, tuple) else (self.layers_per_block,)
        for count in layers:
            check_integer("layers_per_block", count, minimum=0)
        check(
            len(layers) in (1, self.num_blocks),
            f"layers_per_block must have 1 or num_blocks={self.num_blocks} entries, got {len(layers)}: {layers}",
        )
        check(
            self.pixel_map is None or not (self.temporal_causal or self.shallow_local),
            "pixel_map is only supported by flows of still images, got temporal_causal or shallow_local",
        )
        if self.pixel_map is not None and self.pixel_map.kind == "affine":
            numbers = self.channels * self.image_shape[0] * self.image_shape[1]
            check(
                len(self.pixel_map.shift) == numbers,
                f"pixel_map.shift must have {numbers} numbers, one for each of an example, got "
                f"{len(self.pixel_map.shift)}",
            )
        check_real("soft_clip", self.soft_clip, minimum=0.0)
        check_real("dropout", self.dropout, minimum=0.0)
        check(self.dropout < 1.0, f"dropout must be below 1, got {self.dropout}")

    def _check_conditions(self) -> None:
        check(
            (self.text_dim > 0) == (self.text_length > 0),
            f"text_dim and text_length must be given together, got text_dim={self.text_dim} and "
            f"text_length={self.text_length}",
        )
        check(
            not (self.text_dim and self.num_classes),
            f"a flow reads text or a class, not both, got text_dim={self.text_dim} and num_classes={self.num_classes}",
        )
        check(
            self.text_dim > 0 or not self.cond_top_only,
            "cond_top_only needs text, got text_dim=0",
        )
        check_token_classes(self.token_classes, self.look_ahead, family=self.family, num_classes=self.num_classes)

    def _check_family(self) -> None:
        starflow_only = ("text_dim", "sos", "rope", "temporal_causal", "shallow_local", "denoiser", "language_model")
        given = {name: getattr(self, name) for name in starflow_only}
        check_family(self.family, given, scale=self.scale, num_classes=self.num_classes)
        check_rope_axes(self.rope_axes, rope=self.rope, three=bool(self.text_dim or self.temporal_causal))

    def _check_denoiser(self) -> None:
        if self.denoiser is not None:
            check(self.rope, "denoiser needs rope=True, got rope=False")
            check(
                not self.denoiser.conditional or self.text_dim > 0,
                "denoiser.conditional needs text, got text_dim=0",
            )

    @property
    def image_shape(self) -> tuple[int, int]:
        """Rows and columns of the data."""
        size = self.image_size
        return size if isinstance(size, tuple) else (size, size)

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns of an image of the training size."""
        height, width = self.image_shape
        return height // self.patch_size, width // self.patch_size

    @property
    def token_channels(self) -> int:
        """Channels of a token, c = C * p * p."""
        return self.channels * self.patch_size**2

    @property
    def lowest_level(self) -> float | None:
        """t0 of a noise-conditioned flow, at which data are nearly clean; None for other flows."""
        return None if self.noise_levels is None else self.noise_levels[0]

    @property
    def axes(self) -> int:
        """Number of rotary axes: 2 (row, column) or 3 (row, column, text or frame)."""
        return self.rope_axes or (3 if self.text_length or self.temporal_causal else 2)

    @property
    def position_span(self) -> int:
        """Number of rows (and of columns) that the rotary positions of a square image span."""
        return self.pt_seq_len or self.grid[0]

    def _transformer(self, width: int, layers: int) -> TransformerConfig:
        if self.heads is None:
            check(
                width % self.head_dim == 0,
                f"head_dim must divide width unless heads is given, got head_dim={self.head_dim} and width={width}",
            )
        heads = self.heads or width // self.head_dim
        return TransformerConfig(
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=self.kv_heads or heads,
            head_dim=self.head_dim,
            expansion=self.expansion,
            mlp=self.mlp,
            norm=self.norm,
            qk_norm=self.qk_norm,
            post_norm=self.post_norm,
            final_norm=self.final_norm,
            bias=self.bias,
            rope="axial" if self.rope else "none",
            rope_pairs=self.rope_pairs,
        )

    @property
    def blocks(self) -> tuple[TransformerConfig, ...]:
        """The transformer of each block; block 0 is nearest the data."""
        layers = self.layers_per_block if isinstance(self.layers_per_block, tuple) else (self.layers_per_block,)
        layers = layers * self.num_blocks if len(layers) == 1 else layers
        shallow = tuple(self._transformer(self.width, count) for count in layers[:-1])
        deep = self.language_model or self._transformer(self.deep_width or self.width, layers[-1])
        return (*shallow, deep)

    @property
    def denoiser_transformer(self) -> TransformerConfig:
        """The transformer of the learned denoiser."""
        check(self.denoiser is not None, "denoiser is None: this flow has no learned denoiser")
        return self._transformer(self.width, self.denoiser.layers)  # type: ignore[union-attr]

    def reads_backwards(self, block: int) -> bool:
        """Whether a block reverses the tokens (specification, section 1.2)."""
        return (block % 2 == 1) == (self.order == "R2L")

    def is_conditioned(self, block: int) -> bool:
        """Whether a block reads the text."""
        return self.text_dim > 0 and (block == self.num_blocks - 1 or not self.cond_top_only)

    def is_local(self, block: int) -> bool:
        """Whether a block processes each frame of a video separately."""
        return self.shallow_local and block < self.num_blocks - 1
