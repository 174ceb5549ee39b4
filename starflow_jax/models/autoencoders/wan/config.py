"""Sizes of Wan video autoencoders, from a diffusers configuration or from the shapes of tensors."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starflow_jax.core.config.checks import check, check_integer, check_real

# Published statistics of latents by channel, of Wan2.1 and of Wan2.2 (whose file does not contain them).
# fmt: off
WAN21_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
WAN21_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916,
)
WAN22_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
    -0.1382, 0.0542, 0.2813, 0.0891, 0.157, -0.0098, 0.0375, -0.1825,
    -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123,
    -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052, 0.3748,
    0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
WAN22_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013,
    0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
    0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
    0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
    0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on


@dataclasses.dataclass(frozen=True)
class WanConfig:
    """Sizes of a causal video autoencoder; Wan2.1 by default.

    Attributes:
      channels: channels of latents.
      width, decoder_width: channels of the encoder and decoder layers next to the pixels.
      multipliers: widths of the levels as multiples of these, from the pixels inwards. Sides are halved between levels.
      blocks: residual blocks of each level of the encoder; the decoder has one more.
      temporal: whether time is halved, too, between each two levels.
      residual: whether levels have shortcuts (Wan2.2).
      patch: side of the squares of pixels that become channels of the first layer (Wan2.2: 2).
      pixel_channels: channels of images.
      latents_mean, latents_std: statistics by channel for normalising latents.
    """

    channels: int = 16
    width: int = 96
    decoder_width: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    temporal: tuple[bool, ...] = (False, True, True)
    residual: bool = False
    patch: int = 1
    pixel_channels: int = 3
    latents_mean: tuple[float, ...] = WAN21_MEAN
    latents_std: tuple[float, ...] = WAN21_STD

    def __post_init__(self):
        for name in ("channels", "width", "decoder_width", "blocks", "patch", "pixel_channels"):
            check_integer(name, getattr(self, name), minimum=1)
        check(len(self.multipliers) > 0, "multipliers must name at least one level, got ()")
        for value in self.multipliers:
            check_integer("multipliers", value, minimum=1)
        levels = len(self.multipliers)
        check(
            len(self.temporal) == levels - 1 and all(isinstance(value, bool) for value in self.temporal),
            f"temporal must be {levels - 1} booleans, one between each two of the {levels} levels, got {self.temporal}",
        )
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            check(len(values) == self.channels, f"{name} must contain {self.channels} numbers, got {len(values)}")
            for value in values:
                check_real(name, value)
        check(min(self.latents_std) > 0, f"latents_std must be above 0, got {min(self.latents_std)}")
        # Shortcuts average or repeat whole groups of channels; the plain decoder halves its channels between levels.
        for fewer, more, factor in self._shortcuts():
            check(
                fewer * factor % more == 0,
                f"multipliers must let shortcuts turn {fewer} x {factor} channels into {more}, got {self.multipliers}",
            )
        if not self.residual:
            for wide in self.decoder_widths[1:-1]:
                check(wide % 2 == 0, f"decoder_width must give levels of even width, got {wide}")

    def _shortcuts(self) -> list[tuple[int, int, int]]:
        if not self.residual:
            return []
        wide, shortcuts = self.encoder_widths, []
        for level in range(len(self.multipliers)):
            last = level == len(self.multipliers) - 1
            factor = 1 if last else 4 * (2 if self.temporal[level] else 1)
            shortcuts.append((wide[level], wide[level + 1], factor))
        wide = self.decoder_widths
        for level, temporal in enumerate(self.temporal[::-1]):
            shortcuts.append((wide[level + 1], wide[level], 4 * (2 if temporal else 1)))
        return shortcuts

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Input channels of the first level, then output channels of each level."""
        return tuple(self.width * m for m in (1, *self.multipliers))

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Likewise for the decoder, whose first level is the innermost."""
        return tuple(self.decoder_width * m for m in (self.multipliers[-1], *self.multipliers[::-1]))

    @property
    def stride(self) -> int:
        """Pixels along a side of a latent position."""
        return self.patch * 2 ** len(self.temporal)

    @property
    def frame_stride(self) -> int:
        """Frames of pixels in a latent frame after the first, which encodes one."""
        return 2 ** sum(self.temporal)


def config_from_diffusers(config: Mapping[str, Any]) -> WanConfig:
    """The configuration in the `config.json` of a diffusers folder of class `AutoencoderKLWan`.

    Raises:
      ValueError: another class, or a field that is not supported.
    """
    kind = config.get("_class_name", "AutoencoderKLWan")
    check(kind == "AutoencoderKLWan", f"_class_name must be 'AutoencoderKLWan', got {kind!r}")
    scales = config.get("attn_scales") or []
    check(len(scales) == 0, f"attn_scales must be empty, got {scales}")
    patch = config.get("patch_size") or 1
    check_integer("patch_size", patch, minimum=1)
    sizes = {name: config.get(name, 3 * patch**2) for name in ("in_channels", "out_channels")}
    for name, value in sizes.items():
        check_integer(name, value, minimum=1)
    pixel_channels = sizes["in_channels"] // patch**2
    check(
        sizes["in_channels"] == sizes["out_channels"] == pixel_channels * patch**2,
        f"in_channels and out_channels must be the same multiple of patch_size^2 = {patch**2}, got {sizes}",
    )
    width = config.get("base_dim", WanConfig.width)
    channels = config.get("z_dim", WanConfig.channels)
    return WanConfig(
        channels=channels,
        width=width,
        decoder_width=config.get("decoder_base_dim") or width,
        multipliers=_values("dim_mult", config.get("dim_mult", WanConfig.multipliers)),
        blocks=config.get("num_res_blocks", WanConfig.blocks),
        temporal=_values("temperal_downsample", config.get("temperal_downsample", WanConfig.temporal)),
        residual=bool(config.get("is_residual", False)),
        patch=patch,
        pixel_channels=pixel_channels,
        latents_mean=_values("latents_mean", config.get("latents_mean", _published(channels)[0])),
        latents_std=_values("latents_std", config.get("latents_std", _published(channels)[1])),
    )


def config_to_diffusers(config: WanConfig) -> dict[str, Any]:
    """The inverse of `config_from_diffusers`."""
    pixel_values = config.pixel_channels * config.patch**2
    return {
        "_class_name": "AutoencoderKLWan",
        "attn_scales": [],
        "base_dim": config.width,
        "decoder_base_dim": config.decoder_width,
        "dim_mult": list(config.multipliers),
        "dropout": 0.0,
        "in_channels": pixel_values,
        "is_residual": config.residual,
        "latents_mean": list(config.latents_mean),
        "latents_std": list(config.latents_std),
        "num_res_blocks": config.blocks,
        "out_channels": pixel_values,
        "patch_size": None if config.patch == 1 else config.patch,
        "scale_factor_spatial": config.stride,
        "scale_factor_temporal": config.frame_stride,
        "temperal_downsample": list(config.temporal),
        "z_dim": config.channels,
    }


def config_from_original(
    shapes: Mapping[str, tuple[int, ...]],
    latents_mean: Sequence[float] | None = None,
    latents_std: Sequence[float] | None = None,
) -> WanConfig:
    """The configuration of a file in the layout of the original `Wan2.2_VAE.pth`, from the shapes of its tensors.

    Args:
      shapes: shapes of the tensors by name.
      latents_mean, latents_std: None for the published ones.

    Raises:
      ValueError: a required tensor is missing, or no statistics are published for these latents.
    """

    def size(name: str, axis: int) -> int:
        check(len(shapes.get(name, ())) > axis, f"tensors of a Wan2.2 autoencoder must contain {name}, found none")
        return shapes[name][axis]

    def count(pattern: str) -> int:
        return len({match.group(1) for name in shapes if (match := re.match(pattern, name))})

    level = "encoder.downsamples.{}.downsamples".format
    width, entering = size("encoder.conv1.weight", 0), size("encoder.conv1.weight", 1)
    patch = math.isqrt(entering // 3)
    check(entering == 3 * patch**2, f"encoder.conv1.weight must read 3 patch^2 channels, got {entering}")
    levels = count(r"encoder\.downsamples\.(\d+)\.")
    blocks = count(r"encoder\.downsamples\.0\.downsamples\.(\d+)\.residual\.")
    wide = [size(f"{level(i)}.0.residual.2.weight", 0) for i in range(levels)]
    out, channels = size("decoder.head.0.gamma", 0), size("conv2.weight", 0)
    check(
        levels > 0 and all(value % width == 0 for value in wide) and out % max(wide[0] // width, 1) == 0,
        f"levels must be multiples of the first layer's {width} channels, got {wide} and {out}",
    )
    published = _published(channels)
    return WanConfig(
        channels=channels,
        width=width,
        decoder_width=out // (wide[0] // width),
        multipliers=tuple(value // width for value in wide),
        blocks=blocks,
        temporal=tuple(f"{level(i)}.{blocks}.time_conv.weight" in shapes for i in range(levels - 1)),
        residual=True,
        patch=patch,
        latents_mean=_values("latents_mean", published[0] if latents_mean is None else latents_mean),
        latents_std=_values("latents_std", published[1] if latents_std is None else latents_std),
    )


def _values(name: str, values: Any) -> tuple[Any, ...]:
    """A list of a configuration file as a tuple."""
    check(isinstance(values, Sequence) and not isinstance(values, str), f"{name} must be a list, got {values!r}")
    return tuple(values)


def _published(channels: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Published mean and standard deviation for this number of channels; empty for others."""
    return {16: (WAN21_MEAN, WAN21_STD), 48: (WAN22_MEAN, WAN22_STD)}.get(channels, ((), ()))
