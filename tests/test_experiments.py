"""The experiments that ship: they load, their trees are built without memory, their sizes are the released ones."""

import math
import re
from pathlib import Path

import jax
import pytest

from starflow_jax.core.config import load_config
from starflow_jax.flows.parameters import abstract, count

FOLDER = Path(__file__).parents[1] / "experiments"
RELEASED = sorted(p.stem for p in FOLDER.glob("*flow*.py"))


def dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def layers(number: int, width: int) -> int:
    """qkv, projection, two MLP layers of expansion 4, two layer norms."""
    each = dense(width, 3 * width) + dense(width, width) + dense(width, 4 * width) + dense(4 * width, width) + 4 * width
    return number * each


def tarflow(channels: int, width: int, classes: int) -> int:
    """8 blocks of 8 layers on 1024 tokens."""
    block = layers(8, width) + dense(channels, width) + dense(width, 2 * channels) + 1024 * width + classes * width
    return 8 * block


def itarflow(channels: int, width: int) -> int:
    """Blocks of 4, 4, 4 and 24 layers on 1024 tokens, with 1000 classes and an MLP for the noise level."""
    levels = dense(width, 4 * width) + dense(4 * width, width)
    ends = dense(channels, width) + dense(width, 2 * channels) + 1024 * width + 1000 * width + levels
    return sum(layers(number, width) + ends for number in (4, 4, 4, 24))


def starflow(channels: int, width: int, deep: int, depth: int = 24, text: int = 2048) -> int:
    """5 shallow blocks of 2 layers, a deep one that reads the text; start token and final norm in each."""

    def block(number, width):
        return layers(number, width) + dense(channels, width) + dense(width, 2 * channels) + channels + width

    return 5 * block(2, width) + block(depth, deep) + dense(text, deep)


def denoiser(channels: int, width: int) -> int:
    return layers(8, width) + dense(channels, width) + dense(width, channels) + width + dense(2048, width)


SIZES = {
    "tarflow_imagenet64_bpd": tarflow(12, 768, 0),
    "tarflow_imagenet64_uncond": tarflow(12, 768, 0),
    "tarflow_imagenet64_cond": tarflow(12, 768, 1000),
    "tarflow_imagenet128_cond": tarflow(48, 1024, 1000),
    "tarflow_afhq256": tarflow(192, 768, 3),
    "itarflow_imagenet64": itarflow(12, 1280),
    "itarflow_imagenet128": itarflow(48, 1600),
    "itarflow_imagenet256": itarflow(192, 2176),
    "starflow_imagenet256_cond": starflow(4, 2048, 2048, depth=18, text=1000),
    "starflow_3b_t2i": starflow(4, 3072, 3072),
    "starflow_v_7b": starflow(48, 3072, 4096) + denoiser(48, 3072),
}


def test_every_released_experiment_has_its_size_here():
    assert sorted(SIZES) == RELEASED


@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes(name):
    config = load_config(str(FOLDER / f"{name}.py"))
    _, params = abstract(config.flow)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))
    assert count(params) == SIZES[name]
    # Its docstring tells the same number.
    numbers = [
        int(n.replace(",", "")) for n in re.findall(r"\d[\d,]+(?= parameters)", (FOLDER / f"{name}.py").read_text())
    ]
    assert numbers == [SIZES[name]]


def test_the_released_orders_of_magnitude():
    assert math.isclose(SIZES["starflow_imagenet256_cond"], 1.4e9, rel_tol=0.03)
    assert math.isclose(SIZES["starflow_3b_t2i"], 3.8e9, rel_tol=0.03)
    assert math.isclose(SIZES["starflow_v_7b"], 7e9, rel_tol=0.03)
