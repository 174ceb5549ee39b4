"""Quality, motion and drift of clips, and the names that VBench expects."""

import csv
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from starflow_jax.cli.dispatch import main
from starflow_jax.data.sources.digits import digits
from starflow_jax.data.sources.moving_digits import MovingDigits
from starflow_jax.evaluation.video.clip_measurement import distinct_names
from starflow_jax.evaluation.video.clip_metrics import clip_quality, group_figures
from starflow_jax.evaluation.video.drift import Drift, drift_distances, pixel_features, spectrum_features
from starflow_jax.evaluation.video.motion import (
    block_displacements,
    centroid_displacements,
    direction_agreement,
    frame_displacements,
    luma,
    motion,
)
from starflow_jax.evaluation.video.psnr_ssim import frame_psnr, frame_ssim
from starflow_jax.media import write_gif, write_mp4
from starflow_jax.sampling.videos.vbench_names import (
    DIMENSIONS,
    FOLDERS,
    read_prompts,
    scored_on,
    video_name,
    wanted_videos,
)
from starflow_jax.sampling.videos.video_sampling import frame_noise

RNG = np.random.default_rng(0)


def pattern(size: int, down: float, right: float) -> np.ndarray:
    """A periodic pattern moved by any fraction of a pixel, float64 [size, size, 1]: coarse structure, and some fine."""
    rng = np.random.default_rng(7)
    u = np.fft.fftfreq(size)[:, None] * size
    v = np.fft.rfftfreq(size)[None] * size
    amplitudes = rng.normal(size=(size, size // 2 + 1)) / (1 + np.hypot(u, v)) ** 2
    amplitudes[(np.abs(u) >= size // 2) | (np.abs(v) >= size // 2)] = 0  # the highest frequency has no sense
    amplitudes[0, 0] = 0
    phases = rng.uniform(0, 2 * np.pi, amplitudes.shape) - 2 * np.pi * (u * down + v * right) / size
    found = np.fft.irfft2(amplitudes * np.exp(1j * phases), s=(size, size), norm="forward")
    return 128 + 40 * found[..., None] / 0.5


def panning(down: float, right: float, frames: int = 5, size: int = 32) -> np.ndarray:
    """A clip of the pattern that moves by so much a frame."""
    return np.stack([pattern(size, t * down, t * right) for t in range(frames)])


def moving(frames: int = 4, step: tuple[int, int] = (0, 2), size: int = 20) -> np.ndarray:
    """A digit on dark paper that moves, uint8 [T, size, size, 1]."""
    digit = digits("test").images[3, ..., 0] * 15
    clip = np.zeros((frames, size, size, 1), np.uint8)
    for t in range(frames):
        top, left = 4 + t * step[0], 4 + t * step[1]
        clip[t, top : top + 8, left : left + 8, 0] = digit
    return clip


def test_psnr_of_a_constant_error():
    clean = RNG.uniform(50, 200, (3, 12, 12, 3))
    assert np.allclose(frame_psnr(clean + 5, clean), 20 * math.log10(255 / 5))
    assert np.isinf(frame_psnr(clean, clean)).all()
    # Frames are compared one by one.
    found = clean.copy()
    found[1] += 1
    assert np.isinf(frame_psnr(found, clean)).tolist() == [True, False, True]


def test_ssim_is_that_of_its_definition():
    a, b = RNG.uniform(0, 255, (2, 1, 14, 13, 1))
    window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(window, window) / window.sum() ** 2
    values = []
    for row in range(4):
        for column in range(3):
            x, y = (v[0, row : row + 11, column : column + 11, 0] for v in (a, b))
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * x * x).sum() - mx**2, (window * y * y).sum() - my**2
            cxy = (window * x * y).sum() - mx * my
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values.append((2 * mx * my + c1) * (2 * cxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert math.isclose(frame_ssim(a, b)[0], np.mean(values), rel_tol=1e-9)
    assert np.allclose(frame_ssim(a, a), 1)
    with pytest.raises(ValueError, match="at least 11 x 11 for SSIM, got 14 x 10"):
        frame_ssim(a[:, :, :10], b[:, :, :10])


@pytest.mark.parametrize("step", [(0.0, 1.0), (0.5, -0.3), (-1.4, 0.7)])
def test_displacements_to_a_fraction_of_a_pixel(step):
    grey = luma(panning(*step))
    assert np.allclose(frame_displacements(grey), step, atol=0.06)
    blocks = block_displacements(grey, block=8, reach=3)
    inner = blocks[:, 1:-1, 1:-1].reshape(-1, 2)  # at the border the pattern leaves the frame
    assert np.allclose(np.nanmedian(inner, axis=0), step, atol=0.25)


def test_an_object_on_paper_is_followed_by_its_centre():
    clip = moving(step=(1, 2))
    assert np.allclose(centroid_displacements(luma(clip)), (1, 2))
    # On light paper, and in colours, it is the same object.
    assert np.allclose(centroid_displacements(luma(np.repeat(255 - clip, 3, axis=-1))), (1, 2))
    blocks = block_displacements(luma(clip), block=4, reach=3)
    assert np.isnan(blocks[0, 0, 0]).all() and not np.isnan(blocks).all()  # empty paper says nothing


def test_motion_tells_straight_jumping_and_still_clips_apart():
    straight = motion(moving(5))
    assert straight.speed == pytest.approx(2) and straight.consistency == pytest.approx(1)
    assert straight.evenness == pytest.approx(1) and straight.direction == pytest.approx((0, 2)) and not straight.static
    to_and_fro = motion(moving(5)[[0, 1, 0, 1, 0]])
    assert to_and_fro.speed == pytest.approx(2) and to_and_fro.consistency == pytest.approx(-1)
    assert to_and_fro.evenness == pytest.approx(0)
    still = moving(5)[[0] * 5]
    assert all(motion(still, method).static for method in ("centroid", "frame", "blocks"))
    assert math.isnan(motion(still).consistency)
    empty = motion(np.zeros((3, 8, 8, 1), np.uint8))
    assert empty.static and math.isnan(empty.speed)
    # Light that comes and goes is no motion, but not static either.
    assert not motion(np.full((3, 8, 8, 1), 9, np.uint8) * np.array([1, 9, 1], np.uint8)[:, None, None, None]).static


def test_the_direction_of_captions():
    source = MovingDigits("test", frames=8, canvas=16, clips=8)
    for place in range(8):
        clip = np.rint(source[place]["image"] * (255 / 16)).astype(np.uint8)
        way = source.caption(place).split()[-1]
        found = clip_quality(clip, caption=source.caption(place))
        assert found.direction > 0.99 and not found.static
        assert clip_quality(clip, caption=f"a zero moving {_opposite(way)}").direction < -0.99
    assert math.isnan(clip_quality(clip, caption="a zero").direction)
    assert math.isnan(direction_agreement(moving(4)[[0] * 4], (0, 1)))


def _opposite(way: str) -> str:
    return {"left": "right", "right": "left", "up": "down", "down": "up"}[way]


def test_drift_of_pixels_and_of_the_spectrum():
    clip = moving(5)
    assert np.allclose(drift_distances(clip, spectrum_features), 0, atol=1e-9)  # what moves does not change
    assert (drift_distances(clip, pixel_features)[1:] > 0.5).all()
    fading = np.rint(clip[:1] * np.linspace(1, 0.2, 5)[:, None, None, None]).astype(np.uint8)
    assert np.allclose(drift_distances(fading, spectrum_features), np.linspace(0, 0.8, 5), atol=0.02)
    assert np.isnan(drift_distances(np.zeros((2, 8, 8, 1), np.uint8), spectrum_features)).all()
    with pytest.raises(ValueError, match=r"features must be finite, \[5, D\]"):
        drift_distances(clip, lambda frames: np.zeros(3))


def test_drift_over_clips_of_several_lengths():
    curves = [0.1 * np.arange(8), 0.3 * np.arange(4), np.full(8, np.nan)]
    drift = Drift.from_curves(curves)
    assert drift.slope == pytest.approx(0.2) and drift.clips == (2, 2, 2, 2, 1, 1, 1, 1)
    assert drift.mean[1] == pytest.approx(0.2) and drift.late == pytest.approx((0.6 + 0.9) / 2)
    assert math.isnan(drift.error[7])


def test_of_many_clips():
    clips = [clip_quality(moving(4), caption="a zero moving right"), clip_quality(moving(4)[[0] * 4], caption="up")]
    figures = group_figures(clips)
    assert figures["static"] == 1 and figures["direction"] == {"share": 0.5, "clips": 2}
    assert figures["motion"]["centroid"]["speed"]["mean"] == pytest.approx(1)
    assert figures["motion"]["centroid"]["consistency"]["clips"] == 1


def test_the_command(tmp_path, capsys):
    (tmp_path / "drawn").mkdir()
    for number in range(2):
        clip = moving(6, step=(0, 1 + number % 2), size=24)
        write_gif(tmp_path / "drawn" / f"{number}.gif", clip, fps=8)
    write_mp4(tmp_path / "drawn" / "2.mp4", clip[[0] * 6], fps=8)  # a GIF whose frames are equal has but one
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(moving(6, size=24)):
        Image.fromarray(frame[..., 0]).save(tmp_path / "frames" / f"{number}.png")
    drawn, frames, out = (str(tmp_path / name) for name in ("drawn", "frames", "out"))
    options = [
        "--video",
        drawn,
        "--real",
        frames,
        "--caption",
        "a six moving right",
        "--json",
        str(tmp_path / "q.json"),
    ]
    references = [argument for number in range(3) for argument in ("--reference", str(tmp_path / "drawn" / "0.gif"))]
    assert main(["video-quality", *options, *references, "--out", out]) == 0
    figures = json.loads((tmp_path / "q.json").read_text())
    assert figures["videos"]["clips"] == 3 and figures["videos"]["static"] == 1 and figures["real"]["clips"] == 1
    # GIFs are exact in grey: the first clip is its own reference.
    assert figures["videos"]["each"][0]["curves"]["PSNR"] == [None] * 6  # infinite
    assert figures["videos"]["each"][1]["curves"]["PSNR"][0] is None
    assert figures["videos"]["each"][1]["curves"]["PSNR"][5] > 5
    assert figures["videos"]["each"][0]["curves"]["SSIM"] == pytest.approx([1] * 6)
    rows = list(csv.DictReader((tmp_path / "out" / "frames.csv").read_text().splitlines()))
    assert (
        len(rows) == 24
        and {row["clip"] for row in rows} == {"0.gif", "1.gif", "2.mp4", "frames"}
        and float(rows[5]["spectrum"]) < 1e-6
    )
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"report.md", "frames.csv", "drift.png", "motion.png"}
    shown = capsys.readouterr().out
    assert "2.00" in shown and "centroid (of one object)" in shown and "\nwhich suits clips of one object" in shown
    assert "centroid (of one object)" in (tmp_path / "out" / "report.md").read_text()


def test_clips_of_one_name_are_told_apart():
    paths = [Path(text) for text in ("x/a/0.gif", "y/a/0.gif", "y/a/1.gif", "0.gif", "0.gif")]
    assert distinct_names(paths) == ["x/a/0.gif", "y/a/0.gif", "1.gif", "0.gif", "0.gif"]
    assert distinct_names(paths[1:3]) == ["0.gif", "1.gif"] and distinct_names([]) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--video", "nowhere.mp4"], "--video nowhere.mp4 does not exist"),
        (["--video", "a.gif", "--reference", "a.gif", "--reference", "a.gif"], "once for each of 1 videos, got 2"),
        (["--video", "a.gif", "--caption", "x", "--caption", "y"], "--caption must be given once"),
        (["--video", "a.gif", "--held-out", "3"], "--held-out requires --workdir"),
        (["--video", "a.gif", "--size", "8by8"], "--size must be ROWSxCOLUMNS"),
        (["--video", "a.gif", "--size", "0x8"], "--size must be ROWSxCOLUMNS"),
        (["--video", "one.png"], "at least two frames, got 1"),
        (["--video", "text.mp4"], "text.mp4 cannot be read"),
        (
            ["--video", "a.gif", "--reference", "small.gif"],
            "--reference small.gif must have the size of --video a.gif",
        ),
        (["--video", "a.gif", "--workdir", "empty"], "contains no training run"),
    ],
)
def test_the_command_refuses(options, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_gif("a.gif", moving(3), fps=8)
    write_gif("small.gif", moving(3)[:, :10], fps=8)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    Image.fromarray(moving(1)[0, ..., 0]).save("one.png")
    assert main(["video-quality", *options, "--out", "out"]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_vbench_names_and_counts(tmp_path):
    assert video_name("A 3D model of a 1800s victorian house.", 4) == "A 3D model of a 1800s victorian house.-4.mp4"
    assert len(DIMENSIONS) == 16
    (tmp_path / "temporal_flickering.txt").write_text("a still lake\n")
    (tmp_path / "color.txt").write_text("a red bird\n\na blue car  \na red bird\n")
    videos = wanted_videos(read_prompts(tmp_path))
    assert [v.file for v in videos[:2]] == ["color/a red bird-0.mp4", "color/a red bird-1.mp4"]
    assert len(videos) == 2 * 5 + 25 and len({v.place for v in videos}) == 35
    # A video's noise is the same whatever else is drawn.
    assert wanted_videos({"color": ["a blue car"]}, 1)[0].place == videos[5].place
    assert len(wanted_videos(read_prompts(tmp_path / "color.txt"), 2)) == 4


def test_vbench_scores_some_dimensions_on_videos_of_others():
    assert set(scored_on(["scene", "color"])) == {"scene", "color", "background_consistency"}
    assert scored_on(["subject_consistency"])["motion_smoothness"] == "subject_consistency"
    # Eleven files of prompts serve all 16 dimensions.
    assert set(scored_on(set(DIMENSIONS) - set(FOLDERS))) == set(DIMENSIONS) and len(FOLDERS) == 5
    assert scored_on(["scene", "background_consistency"])["background_consistency"] == "background_consistency"


def test_vbench_leaves_out_files_of_other_prompts(tmp_path, capsys):
    for name in ("overall", "all_dimension", "color"):
        (tmp_path / f"{name}.txt").write_text("a red bird\n")
    assert read_prompts(tmp_path) == {"color": ("a red bird",)}
    assert main(["vbench", "--workdir", "nowhere", "--prompts", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert f"skipped {tmp_path / 'overall.txt'}, which is not named after" in capsys.readouterr().err
    (tmp_path / "color.txt").unlink()
    with pytest.raises(ValueError, match=r"called after a dimension .*, got all_dimension.txt"):
        read_prompts(tmp_path)


def test_vbench_videos_have_noise_of_their_own():
    # As many prompts as VBench has. Of 20 bits of a checksum some would be shared; all 32 keep them apart.
    prompts = [f"a {size} {thing} number {n}" for n in range(100) for size in ("small", "big") for thing in "abcde"]
    videos = wanted_videos({"scene": prompts}, 2)
    places = [video.place for video in videos]
    assert len(places) == 2000 == len(set(places))
    assert len({crc % 1_000_000 for crc, _ in places}) < 1000  # or this would show nothing
    noise = np.asarray(frame_noise(jax.random.key(0), np.asarray(places, np.uint32), np.arange(1), (2,)))
    assert len(np.unique(noise.reshape(2000, 2), axis=0)) == 2000
    # A place of one number is that number.
    alone, one = (np.asarray(frame_noise(jax.random.key(0), np.asarray(p), np.arange(2), (2,))) for p in ([5], [[5]]))
    assert np.array_equal(alone, one)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("color.txt", b"either/or\n", "cannot be a file name: it contains '/'"),
        ("color.txt", b"a\x00b\n", "cannot be a file name"),
        ("color.txt", b"x" * 300, "makes a file name of 308 bytes, above 255"),
        ("color.txt", b"\xff\xfe", "must be text in UTF-8"),
        ("color.txt", b"\n\n", "must contain a prompt, got none"),
        ("colours.txt", b"a red bird\n", "called after a dimension"),
    ],
)
def test_vbench_prompts_that_are_refused(name, text, sentence, tmp_path, capsys):
    (tmp_path / name).write_bytes(text)
    argv = ["vbench", "--workdir", "nowhere", "--prompts", str(tmp_path / name), "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
