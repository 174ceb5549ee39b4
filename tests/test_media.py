"""Grids of samples and PNG files."""

import numpy as np
import pytest
from PIL import Image

from starflow_jax.media import grid_columns, image_grid, to_uint8, write_png


@pytest.mark.parametrize("count", range(1, 60))
def test_grid_columns_is_the_smallest_divisor_from_the_square_root_on(count):
    columns = grid_columns(count)
    assert count % columns == 0 and columns**2 >= count
    assert not [d for d in range(1, columns) if count % d == 0 and d**2 >= count]


def test_grid_places_images_row_by_row():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8)
    grid = image_grid(images, columns=3)
    assert grid.shape == (4, 9, 1)
    np.testing.assert_array_equal(grid[::2, ::3, 0], [[0, 1, 2], [3, 4, 5]])
    assert image_grid(images).shape == (4, 9, 1)


def test_left_over_cells_are_black():
    grid = image_grid(np.ones((3, 2, 2, 3)), columns=2)
    assert grid.shape == (4, 4, 3)
    assert grid[2:, 2:].max() == 0 and grid[:2].min() == 255


def test_floats_are_clipped_and_rounded():
    np.testing.assert_array_equal(to_uint8(np.array([-2.0, -1.0, 0.0, 1.0, 7.0])), [0, 0, 128, 255, 255])


def test_every_8_bit_level_survives_the_way_through_floats():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(levels.astype(np.float32) / 127.5 - 1.0), levels)


def test_bfloat16_is_floating_point():
    import jax.numpy as jnp

    np.testing.assert_array_equal(to_uint8(jnp.array([-1.0, 1.0], jnp.bfloat16)), [0, 255])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_round_trip_and_scale(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 4, channels), np.uint8)
    path = tmp_path / "new" / "sample.png"
    write_png(path, image, scale=3)
    with Image.open(path) as file:
        pixels = np.asarray(file).reshape(15, 12, channels)
    np.testing.assert_array_equal(pixels[1::3, 1::3], image)
    np.testing.assert_array_equal(pixels, image.repeat(3, 0).repeat(3, 1))
    assert [entry.name for entry in path.parent.iterdir()] == ["sample.png"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "sample.png"
    write_png(path, np.zeros((2, 2), np.uint8))
    before = path.read_bytes()

    def fail_half_way(self, file, format):
        file.write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        write_png(path, np.ones((2, 2), np.uint8))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["sample.png"]


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"images must have shape \[n, h, w, c\].*got \[2, 2, 1\]"):
        image_grid(np.zeros((2, 2, 1), np.uint8))
    with pytest.raises(ValueError, match="none of them 0"):
        image_grid(np.zeros((0, 2, 2, 1), np.uint8))
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        image_grid(np.zeros((2, 2, 2, 1), np.uint8), columns=0)
    with pytest.raises(ValueError, match="dtype int64"):
        to_uint8(np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="got 1 values that are not"):
        to_uint8(np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match="c of 1, 3 or 4"):
        write_png(tmp_path / "x.png", np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        write_png(tmp_path / "x.png", np.zeros((2, 2), np.uint8), scale=0)
    with pytest.raises(ValueError, match="count must be at least 1"):
        grid_columns(0)
    assert not list(tmp_path.iterdir())
