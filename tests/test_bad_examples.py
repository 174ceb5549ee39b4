"""How a run reports examples that cannot be read, during training and at its end."""

import shutil

from picture_files import encoded, picture, write_photos
from test_same_data import config_of

from starflow_jax.data.decoding.bad_examples import MAX_NAMED, Skipped
from starflow_jax.training import train
from starflow_jax.training.loop.metrics import read_metrics


def test_bad_examples_are_counted_in_every_row_and_named_at_the_end(tmp_path, capfd):
    """A bad header is found when the folder is opened, a truncated file only when it is read."""
    photos = tmp_path / "photos"
    write_photos(photos, {"cat": [(16, 16)] * 6}, captions=False)
    (photos / "cat" / "half.png").write_bytes(encoded(picture(0, 200, 200))[:300])
    (photos / "cat" / "none.png").write_text("no picture")
    config = config_of(photos, aspect_ratios=("1:1",))
    result = train(config, tmp_path / "run", progress=True)
    counts = [row["bad_examples"] for row in read_metrics(tmp_path / "run" / "metrics.csv")]
    assert len(counts) == 2 and 0 <= counts[0] <= counts[1] == result.metrics["bad_examples"] > 0
    assert {name.rpartition("/")[2] for name in result.bad} == {"half.png", "none.png"}
    output = capfd.readouterr().err.splitlines()
    assert ["none.png: " in line for line in output if "1 files cannot be used and are skipped" in line] == [True]
    assert f"  bad examples {counts[1]:.0f}  " in output[-1]

    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")  # a resumed run continues the count
    assert train(config, tmp_path / "run", progress=False).metrics["bad_examples"] == counts[1]


def test_what_others_skipped_is_added():
    first, second = Skipped(), Skipped()
    first.add(3, [("a", "broken")])
    second.add(5, [("a", "gone"), ("b", "broken")])
    second.name({str(number): "broken" for number in range(200)})
    first.merge(second)
    assert (first.tried, first.bad) == (8, 3)
    assert first.reasons["a"] == "broken" and len(first.reasons) == MAX_NAMED
