"""Captions are accounted for: every kind of file that contains one is read, and examples without one are counted."""

from __future__ import annotations

import json
import pickle

import pytest
from picture_files import encoded, picture, write_clip, write_json, write_tar

from starflow_jax.core.config import CaptionConfig, DataConfig, ExperimentConfig, FlowConfig, TextConfig, TrainConfig
from starflow_jax.data.decoding.bad_examples import BadExample
from starflow_jax.data.pipeline.caption_account import caption_account
from starflow_jax.data.pipeline.opening_notes import opening_notes
from starflow_jax.data.sources.caption_files import MAX_CAPTION_BYTES
from starflow_jax.data.sources.source_opening import open_source
from starflow_jax.training.encode_request import EncodeRequest
from starflow_jax.training.latent_encoding import open_encoding
from starflow_jax.training.loop.progress import Progress
from starflow_jax.training.loop.training_setup import Setup

PICTURE = encoded(picture(0))
FLOW = FlowConfig(
    family="starflow", rope=True, sos=True, channels=3, image_size=16, patch_size=4, width=20, num_blocks=1,
    layers_per_block=1, head_dim=20, text_dim=3, text_length=8,
)  # fmt: skip
TEXT = TextConfig(("a", "cat", "dog"))


def opened(path, split="train", *, source="images", captions=None, **fields):
    config = DataConfig(source=source, path=str(path), captions=captions or CaptionConfig(), **fields)
    return open_source(config, split, flow=FLOW, text=TEXT)


def collection_of(source):
    return source.components[0].source.collection


def found_in(path, **fields):
    """The captions of kind "caption" and their origins, by the name of the file."""
    folder = collection_of(opened(path, **fields))
    answers = {folder.files[index]: folder.captions(index) for index in range(len(folder))}
    return {name: (found.texts.get("caption", ()), found.origin) for name, found in answers.items()}


def write_pictures(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PICTURE)


@pytest.mark.parametrize(
    ("beside", "caption", "origin"),
    [
        ({"0.json": '{"id": 0, "width": 32}', "0.txt": "a cat"}, "a cat", "text file"),
        ({"0.json": '{"caption": null}', "0.txt": "a cat"}, "a cat", "text file"),
        ({"0.json": '{"caption": "  "}', "0.txt": "a cat"}, "a cat", "text file"),
        ({"0.json": '{"captions": {"a": []}, "caption": "a dog"}', "0.txt": "a cat"}, "a dog", "JSON file"),
        ({"0.json": '[{"bbox": [0, 1]}]', "0.txt": "a cat"}, "a cat", "text file"),
        ({"0.json": '{"text": "a cat"}'}, "a cat", "JSON file"),
        ({"0.json": '{"prompt": "a cat", "text": {"lang": "en"}}'}, "a cat", "JSON file"),
        ({"0.json": '"a cat"'}, "a cat", "JSON file"),
        ({"0.JSON": '{"caption": "a cat"}'}, "a cat", "JSON file"),
        ({"0.txt": "\n", "0.caption": "a cat"}, "a cat", ".caption file"),
        ({"0.png.txt": "a cat"}, "a cat", "text file"),
        ({"0.png.json": '{"caption": "a cat"}'}, "a cat", "JSON file"),
        ({"0.TXT": "a cat"}, "a cat", "text file"),
        ({"0.txt": "a cat", "0.TXT": "a dog"}, "a cat", "text file"),
        ({"0.txt": "\ufeffa cat\r\n"}, "a cat", "text file"),
        ({"metadata.jsonl": '{"file_name": "0.png", "text": "a cat"}'}, "a cat", "metadata.jsonl"),
        ({"metadata.csv": 'file_name,text\n0.png,"a cat, a dog"'}, "a cat, a dog", "metadata.csv"),
        ({"metadata.csv": "file_name,caption\r\n./0.png,a cat\r\n"}, "a cat", "metadata.csv"),
        (
            {"metadata.csv": "file_name,text\n0.png,csv", "metadata.jsonl": '{"file_name": "0.png", "text": "a"}'},
            "a",
            "metadata.jsonl",
        ),
        ({"0.txt": "a cat", "metadata.jsonl": '{"file_name": "0.png", "text": "x"}'}, "a cat", "text file"),
    ],
)
def test_every_kind_of_caption_file_is_read_and_an_empty_one_hides_no_other(tmp_path, beside, caption, origin):
    write_pictures(tmp_path, "0.png")
    for name, text in beside.items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert found_in(tmp_path) == {"0.png": ((caption,), origin)}


def test_a_caption_of_another_picture_is_not_taken(tmp_path):
    write_pictures(tmp_path, "0.png", "0.jpg", "1.png")
    (tmp_path / "0.png.txt").write_text("a cat")
    assert found_in(tmp_path) == {"0.png": (("a cat",), "text file"), "0.jpg": ((), ""), "1.png": ((), "")}


def test_a_named_key_is_the_only_one_that_is_read(tmp_path):
    write_pictures(tmp_path, "0.png", "1.png")
    write_json(tmp_path / "0.json", {"caption": "short", "long": ["a cat", "a dog"]})
    (tmp_path / "metadata.csv").write_text("file_name,text,long\n1.png,short,a long one\n")
    named = CaptionConfig(key="long")
    assert {texts for texts, _ in found_in(tmp_path, captions=named).values()} == {("a cat", "a dog"), ("a long one",)}
    assert {texts for texts, _ in found_in(tmp_path).values()} == {("short",)}


def test_paragraphs_are_one_caption_and_lines_are_alternatives_by_option(tmp_path):
    write_pictures(tmp_path, "0.png")
    (tmp_path / "0.txt").write_text("A cat sits.\n\nBehind it,  a dog.\n")
    assert found_in(tmp_path)["0.png"][0] == ("A cat sits. Behind it, a dog.",)
    alternatives = CaptionConfig(lines="alternatives")
    assert found_in(tmp_path, captions=alternatives)["0.png"][0] == ("A cat sits.", "Behind it, a dog.")
    with pytest.raises(ValueError, match="lines must be one of 'one', 'alternatives', got 'all'"):
        CaptionConfig(lines="all")


def test_tables_of_hugging_face(tmp_path):
    """One table for all splits, one in a folder below that overrides it, and rows that name one file several times."""
    write_pictures(tmp_path, "train/0.png", "train/sub/1.png", "test/0.png")
    lines = [
        {"file_name": "train/0.png", "text": "a cat"},
        {"file_name": "train/0.png", "text": "a dog"},
        {"file_name": "train/sub/1.png", "text": "outer"},
        {"file_name": "test/0.png", "text": "held out"},
        {"file_name": "train/gone.png", "text": "x"},
        {"file_name": "../../../etc/passwd", "text": "x"},
        {"text": "of no file"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{broken\n")
    (tmp_path / "train" / "sub" / "metadata.csv").write_text("file_name,text\n1.png,inner\n")
    assert found_in(tmp_path) == {
        "0.png": (("a cat", "a dog"), "metadata.jsonl"),
        "sub/1.png": (("inner",), "metadata.csv"),
    }
    assert found_in(tmp_path, split="test") == {"0.png": (("held out",), "metadata.jsonl")}
    notes = " ".join(opening_notes(opened(tmp_path)))
    assert "1 rows of metadata name no file here, such as gone.png" in notes
    assert "2 lines of" in notes and "the first in line 7" in notes


def test_a_table_without_a_column_of_captions_is_named(tmp_path):
    write_pictures(tmp_path, "0.png")
    (tmp_path / "metadata.csv").write_text("file_name,beschreibung\n0.png,eine Katze\n")
    source = opened(tmp_path)
    assert (
        "no column of captions among beschreibung, file_name; data.captions.key names one" in opening_notes(source)[0]
    )
    assert found_in(tmp_path, captions=CaptionConfig(key="beschreibung"))["0.png"][0] == ("eine Katze",)


def test_tars_fall_through_to_the_member_that_has_a_caption(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        [
            {"jpg": PICTURE, "json": b'{"caption": null}', "txt": b"a cat"},
            {"json": b'{"prompt": "a dog"}', "jpg": PICTURE},
            {"png": PICTURE, "caption": b"a\n\ncat"},
            {"png": PICTURE},
        ],
    )
    source = opened(tmp_path, source="tars")
    tars = collection_of(source)
    said = [tars.captions(index) for index in range(4)]
    assert [found.origin for found in said] == ["text file", "JSON file", ".caption file", ""]
    assert [found.texts.get("caption", ()) for found in said] == [("a cat",), ("a dog",), ("a cat",), ()]
    assert caption_account(source).sentence() == (
        "captions: 3 of 4 examples have one (1 in a text file, 1 in a JSON file, 1 in a .caption file); 1 HAVE NONE "
        f"and are read with the empty caption, such as {tmp_path / 'a.tar'}/003"
    )


def test_damaged_caption_files_are_bad_examples_and_counted(tmp_path):
    write_pictures(tmp_path, "0.png", "1.png", "2.png", "3.png")
    (tmp_path / "0.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "1.json").write_text('{"caption": 3}')
    (tmp_path / "2.txt").write_text("x" * (MAX_CAPTION_BYTES + 1))
    (tmp_path / "3.txt").write_text("a cat")
    source = opened(tmp_path)
    for index, reason in enumerate(("not UTF-8", "must be text", "more than 1048576 bytes")):
        with pytest.raises(BadExample, match=reason):
            collection_of(source).captions(index)
    account = caption_account(source)
    assert (account.with_caption, account.missing, account.damaged) == (1, 0, 3)


def test_a_kind_without_a_weight_is_no_caption(tmp_path):
    write_pictures(tmp_path, "0.png")
    write_json(tmp_path / "0.json", {"captions": {"original": "a cat", "synthetic": None}})
    account = caption_account(opened(tmp_path, captions=CaptionConfig(kinds=(("synthetic", 1.0),))))
    assert account.kinds == ("original",)
    with pytest.raises(ValueError, match="none of 1 examples has one; those found are of kinds without a weight: orig"):
        account.check_any()


def test_every_bucket_is_counted_once(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(encoded(picture(number, 20, 20 + 20 * (number % 2))))
    (tmp_path / "1.txt").write_text("a cat")
    account = caption_account(opened(tmp_path, aspect_ratios=("1:1", "2:1")))
    assert (account.examples, account.read, account.with_caption, account.missing) == (5, 5, 1, 4)


def test_a_run_that_reads_text_and_finds_none_is_refused(tmp_path):
    write_pictures(tmp_path, "0.png", "1.png")
    train = TrainConfig(steps=1, batch_size=2, lr=1e-3)
    config = ExperimentConfig("any", FLOW, DataConfig(source="images", path=str(tmp_path)), train, text=TEXT)
    with pytest.raises(ValueError, match="data must have captions for a flow that reads text, and none of 2 examples"):
        Setup.from_config(config)
    (tmp_path / "1.txt").write_text("a cat")
    setup = Setup.from_config(config)
    assert setup.captions is not None and not setup.captions.complete  # reported under --quiet, too
    sentence = setup.captions.sentence()
    assert sentence.startswith("captions: 1 of 2 examples have one (1 in a text file); 1 HAVE NONE")
    assert setup.config.data.captions.lines == "one"


def test_latents_are_not_written_without_the_captions_that_the_flow_reads(tmp_path):
    write_pictures(tmp_path / "data", "cat/0.png", "cat/1.png")
    train = TrainConfig(steps=1, batch_size=2, lr=1e-3)
    config = ExperimentConfig("any", FLOW, DataConfig(source="images", path=str(tmp_path / "data")), train, text=TEXT)
    request = EncodeRequest(config=config, out=tmp_path / "out")
    with pytest.raises(ValueError, match="data must have captions for a flow that reads text, and none of 2 examples"):
        open_encoding(request)
    (tmp_path / "data" / "cat" / "1.txt").write_text("a cat")
    assert (
        open_encoding(request).notes[0].startswith("captions: 1 of 2 examples have one (1 in a text file); 1 HAVE NONE")
    )


def test_missing_captions_are_reported_where_progress_is_not(capsys):
    progress = Progress("any", 1, enabled=False)
    progress.remark("nothing is missing")
    progress.remark("captions: 1 HAVE NONE", always=True)
    assert capsys.readouterr().err == "any: captions: 1 HAVE NONE\n"


def test_captions_of_clips_are_counted(tmp_path):
    write_clip(tmp_path / "0.mp4", 4)
    write_clip(tmp_path / "1.mp4", 4)
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.mp4,a cat\n")
    account = caption_account(opened(tmp_path, source="videos", frames=2))
    assert (account.counts, account.missing) == ({"metadata.csv": 1}, 1)


def test_collections_with_tables_go_to_worker_processes(tmp_path):
    write_pictures(tmp_path, "0.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a cat"}\n')
    source = pickle.loads(pickle.dumps(opened(tmp_path)))
    assert source[0]["caption"] == "a cat"
