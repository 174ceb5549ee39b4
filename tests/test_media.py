"""Grids of samples, PNG files, videos out and in."""

import numpy as np
import pytest
from PIL import Image

from starflow_jax.media import (
    fit_frame,
    grid_columns,
    image_grid,
    read_video,
    reading,
    to_uint8,
    video_grid,
    video_strip,
    write_frames,
    write_gif,
    write_mp4,
    write_png,
    write_video,
)


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
    with pytest.raises(ValueError, match="all above 0"):
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


def clip(frames=5, height=6, width=4, channels=1, seed=0):
    """A random clip of blocks of 2 x 2 pixels, which 4:2:0 chroma can hold."""
    shape = (frames, -(-height // 2), -(-width // 2), channels)
    small = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return small.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("height", [6, 7])
def test_mp4_comes_back_nearly_the_same(tmp_path, channels, height):
    video = clip(9, height, 5, channels)
    write_mp4(tmp_path / "new" / "x.mp4", video, fps=12.5, scale=8)
    read = read_video(tmp_path / "new" / "x.mp4")
    assert read.fps == 12.5 and read.frames.shape == (9, 8 * height, 40, 3)
    small = read.frames[:, 4::8, 4::8]
    # Colours lose more than brightness to the conversion and to chroma of half the size.
    np.testing.assert_allclose(small.astype(int), np.broadcast_to(video, small.shape), atol=4 if channels == 1 else 24)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.mp4"]


def test_mp4_of_odd_sides_continues_the_last_row_and_column(tmp_path):
    video = clip(2, 3, 5)
    write_mp4(tmp_path / "x.mp4", video, fps=8)
    frames = read_video(tmp_path / "x.mp4").frames.astype(int)
    assert frames.shape == (2, 4, 6, 3)
    padded = np.pad(video, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    np.testing.assert_allclose(frames, np.broadcast_to(padded, frames.shape), atol=6)


def test_grey_gif_is_exact_with_frames_that_repeat(tmp_path):
    video = clip(6, 5, 7)[[0, 1, 1, 1, 2, 2, 3]]
    write_gif(tmp_path / "x.gif", video, fps=10, scale=3)
    read = read_video(tmp_path / "x.gif")
    assert read.fps == 10
    np.testing.assert_array_equal(read.frames[:, 1::3, 1::3], video)


def test_a_folder_of_pictures_is_exact_and_ordered_by_number(tmp_path):
    video = clip(11, channels=3)
    write_frames(tmp_path / "new" / "frames", video, scale=2)
    assert sorted(p.name for p in (tmp_path / "new" / "frames").iterdir())[:2] == ["00.png", "01.png"]
    read = read_video(tmp_path / "new" / "frames")
    assert read.fps is None
    np.testing.assert_array_equal(read.frames[:, ::2, ::2], video)
    for number in range(11):
        write_png(tmp_path / "plain" / f"{number}.png", video[number])
    np.testing.assert_array_equal(read_video(tmp_path / "plain").frames, video)


def test_one_picture_is_one_frame(tmp_path):
    video = clip(1)
    write_png(tmp_path / "x.png", video[0])
    np.testing.assert_array_equal(read_video(tmp_path / "x.png").frames, video)


def test_16_bit_and_transparent_pictures(tmp_path):
    deep = np.array([[0, 257, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_video(tmp_path / "deep.png").frames[0, 0, :, 0], [0, 1, 255])
    see_through = np.array([[[9, 8, 7, 0], [6, 5, 4, 255]]], np.uint8)
    write_png(tmp_path / "rgba.png", see_through)
    np.testing.assert_array_equal(read_video(tmp_path / "rgba.png").frames[0], [[[255] * 3, [6, 5, 4]]])
    black = read_video(tmp_path / "rgba.png", background="black").frames[0]
    np.testing.assert_array_equal(black, [[[0] * 3, [6, 5, 4]]])


def test_an_animated_webp(tmp_path):
    video = clip(4, 8, 8, 3)
    images = [Image.fromarray(frame) for frame in video]
    images[0].save(tmp_path / "x.webp", save_all=True, append_images=images[1:], duration=100, lossless=True)
    read = read_video(tmp_path / "x.webp")
    assert read.fps == 10
    np.testing.assert_array_equal(read.frames, video)


def test_strip_and_grid_of_videos(tmp_path):
    videos = np.stack([clip(3, seed=seed) for seed in range(4)])
    strip = video_strip(videos)
    assert strip.shape == (4 * 6, 3 * 4, 1)
    np.testing.assert_array_equal(strip[6:12, 8:], videos[1, 2])
    grid = video_grid(videos)
    assert grid.shape == (3, 12, 8, 1)
    np.testing.assert_array_equal(grid[1, 6:, :4], videos[2, 1])
    write_video(tmp_path / "x.png", videos[0], fps=8)
    np.testing.assert_array_equal(read_video(tmp_path / "x.png").frames[0], video_strip(videos[:1]))


def test_fitting_undoes_an_enlargement_and_leaves_what_fits():
    video = clip(channels=3)
    np.testing.assert_array_equal(fit_frame(video[0].repeat(5, 0).repeat(5, 1), (6, 4), 3), video[0])
    np.testing.assert_array_equal(fit_frame(video[1], (6, 4), 3), video[1])
    grey = clip()[0]
    np.testing.assert_array_equal(fit_frame(grey.repeat(3, axis=2), (6, 4), 1), grey)
    np.testing.assert_array_equal(fit_frame(grey, (6, 4), 3), grey.repeat(3, axis=2))


def test_fitting_keeps_the_centre_and_the_proportions():
    wide = np.zeros((4, 12, 1), np.uint8)
    wide[:, 4:8] = 200
    np.testing.assert_array_equal(fit_frame(wide, (2, 2), 1), np.full((2, 2, 1), 200))
    np.testing.assert_array_equal(fit_frame(wide.transpose(1, 0, 2), (8, 8), 1), np.full((8, 8, 1), 200))


def test_frames_are_fitted_as_they_are_read(tmp_path):
    video = clip(3, channels=3)
    write_gif(tmp_path / "x.gif", video[..., :1], fps=8, scale=2)
    frames = read_video(tmp_path / "x.gif", size=(6, 4), channels=1).frames
    np.testing.assert_array_equal(frames, video[..., :1])


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png", ".webp", ".webm", ".avi", ".jpg"])
def test_damaged_files_are_one_sentence(tmp_path, suffix):
    good = tmp_path / "good"
    if suffix in (".mp4", ".gif", ".png"):
        write_video(good.with_suffix(suffix), clip(4, 16, 16), fps=8, scale=4)
        whole = good.with_suffix(suffix).read_bytes()
    else:
        whole = b"RIFF" + bytes(range(200))
    for content in (b"", b"junk" * 50, whole[: len(whole) // 2], whole[:20]):
        path = tmp_path / f"bad{suffix}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"video .*bad.* cannot be read: \S") as caught:
            read_video(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [".mp4", ".gif", ".png"])
def test_no_damaged_byte_gets_past_the_reader(tmp_path, name):
    write_video(tmp_path / f"x{name}", clip(3, 16, 16), fps=8)
    whole = (tmp_path / f"x{name}").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            damaged[place] = rng.integers(256)
        (tmp_path / f"x{name}").write_bytes(damaged)
        try:
            frames = read_video(tmp_path / f"x{name}").frames
        except ValueError as error:
            assert str(error).startswith("video ")
        else:
            assert frames.dtype == np.uint8 and frames.ndim == 4


def test_what_is_too_large_or_does_not_fit_together_is_refused(tmp_path, monkeypatch):
    write_gif(tmp_path / "x.gif", clip(5), fps=8)
    with pytest.raises(ValueError, match="must contain at most 4 frames"):
        read_video(tmp_path / "x.gif", max_frames=4)
    monkeypatch.setattr(reading, "MAX_FRAME_PIXELS", 23)
    with pytest.raises(ValueError, match="it has 6 x 4 pixels, more than 23"):
        read_video(tmp_path / "x.gif")
    monkeypatch.undo()
    monkeypatch.setattr(reading, "MAX_CLIP_BYTES", 100)
    write_frames(tmp_path / "frames", clip(5))
    with pytest.raises(ValueError, match="at most 100 bytes"):
        read_video(tmp_path / "frames")
    monkeypatch.undo()
    write_png(tmp_path / "frames" / "9.png", clip(1, 8, 8)[0])
    with pytest.raises(ValueError, match="one size, got 6 x 4 and 8 x 8"):
        read_video(tmp_path / "frames")
    (tmp_path / "empty").mkdir()
    for name, message in {"empty": "no images", "gone.mp4": "no such file", "x.txt": "not a video or an image"}.items():
        (tmp_path / "x.txt").write_text("words")
        with pytest.raises(ValueError, match=message):
            read_video(tmp_path / name)


def test_a_playlist_opens_no_other_file(tmp_path):
    write_mp4(tmp_path / "secret.mp4", clip(2, 16, 16), fps=8)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(ValueError, match="cannot be read"):
        read_video(tmp_path / "list.mp4")


@pytest.mark.parametrize("write", [write_mp4, write_gif])
def test_videos_that_cannot_be_written_are_refused_and_leave_nothing(tmp_path, write):
    for video, options, message in (
        (np.zeros((2, 4, 4), np.uint8), {"fps": 8}, r"video must be \[T, H, W, C\]"),
        (np.zeros((2, 4, 4, 4), np.uint8), {"fps": 8}, "C of 1 or 3"),
        (clip(), {"fps": 0}, "fps must be above 0"),
        (clip(), {"fps": 1000}, "at most 240"),
        (clip(), {"fps": 8, "scale": 0}, "scale must be an integer >= 1"),
        (np.full((2, 4, 4, 1), np.nan), {"fps": 8}, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "x", video, **options)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"path must end in \.mp4, \.gif, \.png"):
        write_video(tmp_path / "x.mkv", clip(), fps=8)
