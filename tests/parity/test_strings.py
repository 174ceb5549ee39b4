"""Caption strings, bucket sizes and grid shapes against recordings of the PyTorch originals.

Every row of a recording is a test of its own; a folder without `misc_json` skips them all.
"""

import json
from pathlib import Path

import pytest

from starflow_jax.data.decoding.buckets import image_size
from starflow_jax.media import grid_columns
from starflow_jax.models.text import caption_prompts

FILES = {
    "caption_row": "preprocess_text.json",
    "size_row": "aspect_ratio_to_image_size.json",
    "grid_row": "dividable.json",
}


def recorded_rows(folder: Path, fixture: str) -> list:
    path = folder / "misc_json" / FILES[fixture]
    if not path.is_file():
        return []
    recording = json.loads(path.read_text(encoding="utf-8"))
    if fixture == "size_row":
        return recording["rows"]
    return list(recording.items()) if fixture == "grid_row" else recording


def pytest_generate_tests(metafunc):
    folder = Path(metafunc.config.getoption("goldens", default=None) or "tests/goldens")
    if not folder.is_dir():  # named relative to the repository, started elsewhere
        folder = metafunc.config.rootpath / folder
    for fixture in FILES:
        if fixture in metafunc.fixturenames:
            rows = recorded_rows(folder, fixture)
            reason = f"{folder / 'misc_json' / FILES[fixture]} is missing"
            absent = [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
            metafunc.parametrize(fixture, rows or absent, ids=range(len(rows)) if rows else None)


def test_captions(caption_row, shapes_unchecked):
    row = caption_row
    arguments = {
        "fps": row["fps"],
        "noise_std": row["noise_std"],
        "aspect_ratio": row["aspect_ratio"],
        "chat_template": row["use_template"],
        "strict": False,  # the reference stops at the shortest argument
    }
    if isinstance(row["noise_std"], str):
        # The reference reads a string character by character: an accident, refused here.
        with pytest.raises(ValueError, match="noise_std"):
            caption_prompts(row["text"], **arguments)
    elif isinstance(row["noise_std"], int):
        # The reference fails on a Python int: here it means the same as the float.
        arguments["noise_std"] = float(row["noise_std"])
        as_float = caption_prompts(row["text"], **arguments)
        arguments["noise_std"] = row["noise_std"]
        assert caption_prompts(row["text"], **arguments) == as_float
    else:
        assert caption_prompts(row["text"], **arguments) == row["out"]


def test_bucket_sizes(size_row):
    target_size, aspect_ratio, multiple, height, width = size_row
    assert image_size(target_size, aspect_ratio, multiple) == (height, width)


def test_grid_shapes(grid_row):
    count, columns = grid_row
    assert grid_columns(int(count)) == columns
