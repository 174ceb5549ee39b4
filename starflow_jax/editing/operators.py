"""Linear measurements of images and clips: what is observed, up to Gaussian noise, of data that is to be restored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.models.autoencoders import Autoencoder
from starflow_jax.models.autoencoders.protocol import Params


class Operator(Protocol):
    """A linear map A of data, traceable by JAX, and a pytree."""

    def __call__(self, x: Float[Array, "B *size"]) -> Float[Array, "B *measured"]:
        """A x of every example."""
        ...


@flax.struct.dataclass
class Mask:
    """Some of the values of the data, in space and time; the others are zero and say nothing.

    Attributes:
      visible: bool, of a shape that broadcasts against one example [(T,) H, W, C]; True where a value is observed.
    """

    visible: jax.Array | np.ndarray

    def __call__(self, x: Float[Array, "B *size"]) -> Float[Array, "B *measured"]:
        """x with zeros in place of hidden values."""
        return jnp.where(jnp.asarray(self.visible), x, 0.0)


@flax.struct.dataclass
class Identity:
    """All values, with noise: the operator of denoising."""

    def __call__(self, x: Float[Array, "B *size"]) -> Float[Array, "B *measured"]:
        """x itself."""
        return x


@flax.struct.dataclass
class BlockMeans:
    """Means of squares of factor x factor pixels: the operator of enlarging.

    Attributes:
      factor: side of a square; rows and columns of the data must be multiples of it.
    """

    factor: int = flax.struct.field(pytree_node=False)

    def __post_init__(self) -> None:
        check_integer("factor", self.factor, minimum=1)

    def __call__(self, x: Float[Array, "B *size"]) -> Float[Array, "B *measured"]:
        """[B, (T,) H / factor, W / factor, C]."""
        *front, height, width, channels = x.shape
        f = self.factor
        check(
            height % f == 0 and width % f == 0,
            f"factor must divide the {height} rows and {width} columns of the data, got {f}",
        )
        return x.reshape(*front, height // f, f, width // f, f, channels).mean(axis=(-4, -2))


@flax.struct.dataclass
class ChannelMean:
    """The mean over channels: the operator of colouring a grey picture."""

    def __call__(self, x: Float[Array, "B *size"]) -> Float[Array, "B *measured"]:
        """[B, (T,) H, W, 1]."""
        return x.mean(axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class GivenOperator:
    """A linear function of the user's own.

    Attributes:
      name: as it was given.
      function: from data [B, (T,) H, W, C] to a measurement [B, ...], in operations that JAX traces.
    """

    name: str
    function: Callable[[jax.Array], jax.Array]

    def __call__(self, x: Float[Array, "B *size"]) -> Float[Array, "B *measured"]:
        """What the function returns."""
        return self.function(x)


# No array is in it: the function is a static argument of compiled programs.
jax.tree_util.register_static(GivenOperator)


@flax.struct.dataclass
class OfDecoded:
    """An operator on the pixels that the latents x are decoded to: linear in the pixels, not in x.

    Attributes:
      operator: on pixels.
      params: of the autoencoder.
      autoencoder: static.
    """

    operator: Operator
    params: Params
    autoencoder: Autoencoder = flax.struct.field(pytree_node=False)

    def __call__(self, x: Float[Array, "B *size"]) -> Float[Array, "B *measured"]:
        """The measurement of the decoded latents."""
        return self.operator(self.autoencoder.decode(self.params, x))


def as_operator(operator: Operator | Callable[[jax.Array], jax.Array]) -> Operator:
    """An operator as it is; a function, which is no pytree, as one."""
    if not jax.tree_util.all_leaves([operator]):
        return cast(Operator, operator)
    return GivenOperator(getattr(operator, "__name__", type(operator).__name__), operator)


def check_operator(operator: Operator, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a measurement of one example of a shape.

    Raises:
      ValueError: the operator does not fit the shape, fails, or is not linear.
    """
    name = getattr(operator, "name", type(operator).__name__)
    x, other = jax.random.normal(jax.random.key(0), (2, 2, *shape))
    try:
        measured, second, combined, alone = (operator(value) for value in (x, other, 2.0 * x + other, x[:1]))
        traced = jax.eval_shape(operator, x)
        out, real = tuple(traced.shape), jnp.issubdtype(traced.dtype, jnp.floating)
    except Exception as error:  # a function of the user's own may raise anything
        if not isinstance(operator, GivenOperator) and isinstance(error, ValueError):
            raise
        raise ValueError(f"operator {name} failed with {type(error).__name__}: {error}") from error
    check(real, f"operator {name} must give real floating-point numbers, got {traced.dtype}")
    check(len(out) > 0 and out[0] == 2, f"operator {name} must keep the axis of examples, got shape {list(out)}")
    check(
        bool(jnp.allclose(combined, 2.0 * measured + second, rtol=1e-3, atol=1e-3)),
        f"operator {name} must be linear, got A(2 x + y) different from 2 A(x) + A(y)",
    )
    check(
        alone.shape[1:] == out[1:] and bool(jnp.allclose(alone, measured[:1], rtol=1e-3, atol=1e-3)),
        f"operator {name} must measure every example alone, got values that depend on the others",
    )
    return out[1:]


def noise_gain(operator: Operator, shape: tuple[int, ...], draws: int = 64) -> float:
    """The root mean square of A n for standard normal noise n in data of this shape: how noise in x shows in A x."""
    if isinstance(operator, Mask):
        return 1.0  # of the values that are observed
    measured = operator(jax.random.normal(jax.random.key(0), (draws, *shape)))
    return float(jnp.sqrt(jnp.mean(measured**2)))
