"""Caption templates that no recording covers: kinds of argument, lengths, refusals."""

import numpy as np
import pytest

from starflow_jax.models.text import caption_prompts

CAPTIONS = ["a cat", "a dog"]


def test_nothing_asked_changes_nothing():
    assert caption_prompts(CAPTIONS) == CAPTIONS


@pytest.mark.parametrize("level", [0.7, np.float64(0.7), 1, np.int64(1), np.float32(0.5)])
def test_scalar_noise_levels_are_not_rounded_to_float32(level):
    expected = int(1000 * float(level))
    assert caption_prompts(["c"], noise_std=level) == [f"Noise Level {expected}:\nc"]


@pytest.mark.parametrize("levels", [[0.7, 0.5], (0.7, 0.5), np.array([[0.7], [0.5]]), np.float32([0.7, 0.5])])
def test_levels_of_each_caption_are_rounded_to_float32(levels):
    prompts = caption_prompts(CAPTIONS, noise_std=levels)
    assert prompts == ["Noise Level 699:\na cat", "Noise Level 500:\na dog"]


def test_jax_arrays_are_accepted():
    import jax.numpy as jnp

    prompts = caption_prompts(CAPTIONS, fps=jnp.array([16, 0]), noise_std=jnp.array([0.7, 0.5]))
    assert prompts == [
        "Noise Level 699:\nA video with 16 fps:\na cat\n",
        "Noise Level 500:\nAn image:\na dog\n",
    ]


def test_each_caption_has_its_own_medium_in_the_chat_turn():
    video, image = caption_prompts(CAPTIONS, fps=[24, 0], chat_template=True)
    assert "Please generate a video about: A video with 24 fps:\na cat\n<end_of_turn>" in video
    assert "Please generate an image about: An image:\na dog\n<end_of_turn>" in image


def test_whole_frame_rates_print_without_decimals():
    assert caption_prompts(["c"], fps=16.0) == ["A video with 16 fps:\nc\n"]


def test_strict_refuses_other_lengths_and_lenient_stops_at_the_shortest():
    with pytest.raises(ValueError, match=r"noise_std must be one value or one for each of 2 captions, got 1"):
        caption_prompts(CAPTIONS, noise_std=[0.5])
    with pytest.raises(ValueError, match=r"fps must be one value or one for each of 2 captions, got 3"):
        caption_prompts(CAPTIONS, fps=[1, 2, 3])
    assert len(caption_prompts(CAPTIONS, noise_std=[0.5], strict=False)) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_std", "0.3"),
        ("noise_std", True),
        ("noise_std", -0.1),
        ("noise_std", float("nan")),
        ("noise_std", ["0.3", "0.4"]),
        ("noise_std", [[0.1, 0.2], [0.3, 0.4]]),
        ("noise_std", [[0.1], [0.2, 0.3]]),
        ("fps", -1),
        ("fps", 23.976),
        ("fps", "16"),
        ("fps", float("inf")),
        ("aspect_ratio", "wide"),
        ("aspect_ratio", "0:1"),
        ("aspect_ratio", 1.5),
    ],
)
def test_bad_arguments_are_named(field, value, shapes_unchecked):
    with pytest.raises(ValueError, match=field):
        caption_prompts(CAPTIONS, **{field: value})


def test_captions_must_be_a_sequence_of_strings(shapes_unchecked):
    with pytest.raises(ValueError, match="single string 'a cat'"):
        caption_prompts("a cat")
    with pytest.raises(ValueError, match="got None"):
        caption_prompts(["a cat", None])
