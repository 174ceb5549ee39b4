"""A patch discriminator (Isola et al., arXiv 1611.07004) and the losses of VQGAN (arXiv 2012.09841) for it.

It has group norm where the original has batch norm, so that its output does not depend on the other images of a batch.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from starflow_jax.models.autoencoders.protocol import Params
from starflow_jax.nn.convolution import GroupNorm, conv
from starflow_jax.nn.module_parameters import drawn, merge, split

_STD = 0.02
_SLOPE = 0.2
_GROUPS = 8
_WIDEST = 8  # multiple of the first width, at most


class _Module(nnx.Module):
    def __init__(self, config: PatchDiscriminator, rngs: nnx.Rngs):
        c = config
        widths = [c.width * min(2**index, _WIDEST) for index in range(c.layers + 1)]
        padding = [(1, 1), (1, 1)]
        self.conv_in = conv(c.pixel_channels, widths[0], 4, rngs, "float32", stride=2, padding=padding)
        # All but the last halve the image.
        strides = [2] * (c.layers - 1) + [1]
        pairs = zip(widths, widths[1:], strides, strict=False)
        self.convs = nnx.List(
            [conv(a, b, 4, rngs, "float32", stride=stride, padding=padding, bias=False) for a, b, stride in pairs]
        )
        self.norms = nnx.List([GroupNorm(width, min(_GROUPS, width), rngs) for width in widths[1:]])
        self.conv_out = conv(widths[-1], 1, 4, rngs, "float32", padding=padding)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.leaky_relu(self.conv_in(x), _SLOPE)
        for layer, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.leaky_relu(norm(layer(x)), _SLOPE)
        return self.conv_out(x)[..., 0]


@dataclasses.dataclass(frozen=True)
class PatchDiscriminator:
    """Classifies overlapping patches of an image as real or fake; its parameters are separate.

    Attributes:
      pixel_channels: of the image; width: channels of the first layer; layers: how often it halves the image.
    """

    pixel_channels: int
    width: int = 64
    layers: int = 3

    @property
    def smallest(self) -> int:
        """The smallest number of rows and columns that gives at least one patch."""
        return 3 * 2**self.layers

    def init(self, key: jax.Array) -> Params:
        """Initial parameters as in the paper: normal with standard deviation 0.02."""
        return drawn(split(_Module(self, nnx.Rngs(0)))[1], key, _STD)

    def __call__(self, params: Params, pixels: jax.Array) -> jax.Array:
        """Logits float32 [B, h, w] of the patches of pixels [B, H, W, C], high for real ones."""
        return merge(split(_Module(self, nnx.Rngs(0)))[0], params)(pixels)


def hinge(real: jax.Array, fake: jax.Array) -> jax.Array:
    """The hinge loss of the discriminator from its logits, a scalar."""
    return 0.5 * (jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + fake)))


def adaptive_weight(reconstruction: jax.Array, adversarial: jax.Array) -> jax.Array:
    """lambda of VQGAN's equation 7: the ratio of the norms of two gradients at the last layer, at most 1e4."""
    ratio = jnp.linalg.norm(reconstruction) / (jnp.linalg.norm(adversarial) + 1e-6)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, 1e4))
