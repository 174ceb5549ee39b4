"""Aspect-ratio buckets: area, symmetry, choice and refusals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starflow_jax.data.decoding.buckets import (
    ASPECT_RATIOS,
    aspect_ratio_value,
    image_size,
    nearest_aspect_ratio,
)

sizes = st.integers(128, 1024)
multiples = st.sampled_from([8, 16, 32])


@given(sizes, st.sampled_from(ASPECT_RATIOS), multiples)
def test_sides_are_multiples_and_the_area_is_kept(target, aspect_ratio, multiple):
    height, width = image_size(target, aspect_ratio, multiple)
    assert height % multiple == 0 and width % multiple == 0
    ratio = aspect_ratio_value(aspect_ratio)
    assert abs(height - target / ratio**0.5) <= multiple / 2 + 1e-9
    assert abs(width - target * ratio**0.5) <= multiple / 2 + 1e-9


@given(sizes, multiples)
def test_turning_the_ratio_turns_the_picture(target, multiple):
    height, width = image_size(target, "16:9", multiple)
    assert image_size(target, "9:16", multiple) == (width, height)


def test_no_ratio_keeps_the_size_as_named():
    assert image_size(250, None, 16) == (250, 250)


def test_a_ratio_may_be_a_number():
    assert image_size(512, 16 / 9, 16) == image_size(512, "16:9", 16)


def test_every_bucket_is_nearest_to_its_own_size():
    for aspect_ratio in ASPECT_RATIOS:
        height, width = image_size(960, aspect_ratio, 8)
        assert nearest_aspect_ratio(height, width) == aspect_ratio


def test_pictures_beyond_the_last_bucket_take_it():
    assert nearest_aspect_ratio(10, 1000) == "21:9"
    assert nearest_aspect_ratio(1000, 10) == "9:21"


@pytest.mark.parametrize("ratio", ["wide", "1:2:3", "0:1", "1:-2", "nan:1", 0.0, -1.0, float("inf"), True])
def test_bad_ratios_are_refused(ratio):
    with pytest.raises(ValueError, match="aspect_ratio"):
        image_size(256, ratio, 8)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="target_size must be at least 1, got 0"):
        image_size(0, "1:1", 8)
    with pytest.raises(ValueError, match="multiple must be at least 1, got -8"):
        image_size(256, "1:1", -8)
    with pytest.raises(ValueError, match="both sides above 0"):
        image_size(8, "21:9", 64)
    with pytest.raises(ValueError, match="height must be at least 1"):
        nearest_aspect_ratio(0, 5)
    with pytest.raises(ValueError, match="buckets"):
        nearest_aspect_ratio(5, 5, ())
