"""Sources in files: what is read is what the files hold, and what cannot be read is named."""

from __future__ import annotations

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from picture_files import encoded, frame_numbers, picture, write_clip, write_json, write_photos, write_tar
from PIL import Image, ImageOps

from starflow_jax.core.config import (
    CaptionConfig,
    DataConfig,
    ExperimentConfig,
    FlowConfig,
    TextConfig,
    TrainConfig,
)
from starflow_jax.data import train_loader
from starflow_jax.data.decoding.bad_examples import BadExample
from starflow_jax.data.decoding.image_decoding import Crop, decode_image, image_file_size
from starflow_jax.data.sources.captioning import Captioner
from starflow_jax.media.displayed_images import MAX_PIXELS
from starflow_jax.models.text.words import WordEncoder
from starflow_jax.training.step.inputs import batch_condition, check_source, first_frames, open_source, shortened

WORDS = ("a", "cat", "dog", "(extend)", "moving", "video", "8", "fps:", "in", "3:2")
TEXT = TextConfig(WORDS)
FLOW = FlowConfig(
    family="starflow", rope=True, sos=True, channels=3, image_size=16, patch_size=4, width=20, num_blocks=1,
    layers_per_block=1, head_dim=20, text_dim=len(WORDS), text_length=8,
)  # fmt: skip
READER = WordEncoder(WORDS, 8)


def opened(path, split="train", **fields):
    text = fields.pop("text", TEXT)
    source = open_source(DataConfig(path=str(path), **fields), split, flow=FLOW, text=text)
    check_source(source, FLOW, text)
    return source


def reasons(source, count=200):
    """What is skipped, by the last part of its name, in so many rows of training; and their labels."""
    loader = train_loader(source, 10, seed=0)
    labels = np.concatenate([next(loader)["label"] for _ in range(count // 10)])
    found = {**source.skipped.reasons, **loader.skipped.reasons}
    return {name.rpartition("/")[2]: reason for name, reason in found.items()}, set(labels.tolist())


def test_pictures_are_scaled_to_cover_and_cropped():
    wide = picture(0, 32, 64)
    for place, columns in ((0.0, slice(0, 32)), (0.5, slice(16, 48)), (1.0, slice(32, 64))):
        found = decode_image(io.BytesIO(encoded(wide)), "w", Crop((32, 32), 3, place))
        np.testing.assert_array_equal(found, wide[:, columns])
    mirrored = decode_image(io.BytesIO(encoded(wide)), "w", Crop((32, 64), 3, 0.5, flip=True))
    np.testing.assert_array_equal(mirrored, wide[:, ::-1])
    small = decode_image(io.BytesIO(encoded(picture(1, 60, 90))), "s", Crop((20, 30), 3))
    assert np.abs(small.astype(int) - picture(1, 20, 30)).max() <= 5


def test_a_large_jpeg_read_at_a_fraction_of_its_size_looks_the_same():
    large = encoded(picture(3, 640, 800), "JPEG")
    found = decode_image(io.BytesIO(large), "j", Crop((64, 64), 3)).astype(int)
    whole = np.asarray(Image.open(io.BytesIO(large)).resize((64, 64), Image.Resampling.BOX, (80, 0, 720, 640)), int)
    assert np.abs(found - whole).max() <= 4


def test_every_kind_of_pixel_becomes_eight_bits():
    rgb = picture(5)
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    for name, image, expected in (
        ("16 bits", deep, grey[..., None].repeat(3, axis=2)),
        ("grey", Image.fromarray(grey), grey[..., None].repeat(3, axis=2)),
        ("alpha", Image.fromarray(np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])), rgb),
        ("palette", Image.fromarray(rgb).quantize(255), rgb),
        ("cmyk", Image.fromarray(rgb).convert("CMYK"), rgb),
    ):
        buffer = io.BytesIO()
        image.save(buffer, "TIFF" if name == "cmyk" else "PNG")
        found = decode_image(io.BytesIO(buffer.getvalue()), name, Crop(rgb.shape[:2], 3))
        assert np.abs(found.astype(int) - expected).max() <= (12 if name == "palette" else 1), name
    one = decode_image(io.BytesIO(encoded(rgb)), "one", Crop(rgb.shape[:2], 1))
    np.testing.assert_array_equal(one[..., 0], grey)


@pytest.mark.parametrize("turn", range(1, 9))
def test_photos_are_turned_as_the_camera_says(turn):
    image = Image.fromarray(picture(7, 40, 64))
    exif = Image.Exif()
    exif[0x0112] = turn
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, quality=95)
    rows, columns = image_file_size(io.BytesIO(buffer.getvalue()), "p")
    assert (rows, columns) == ((64, 40) if turn > 4 else (40, 64))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))), int)
    found = decode_image(io.BytesIO(buffer.getvalue()), "p", Crop((rows, columns), 3)).astype(int)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_pictures_are_named_and_others_stand_in(tmp_path):
    write_photos(tmp_path, {"cat": [(20, 20)] * 6, "dog": [(20, 20)] * 6}, captions=False)
    jpeg = encoded(picture(1, 400, 400), "JPEG")
    header = b"P6 %d %d 255\n" % (2**14, 2**14)
    for name, data in (
        ("empty.png", b""),
        ("half.jpg", jpeg[: len(jpeg) // 2]),
        ("text.png", b"not a picture"),
        ("other.jpg", header + b"0" * 100),
        ("huge.png", huge_png()),
    ):
        (tmp_path / "cat" / name).write_bytes(data)
    (tmp_path / "cat" / "notes.md").write_text("no picture, and nobody said so")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "dog" / "folder.png").mkdir()
    source = opened(tmp_path, source="images", text=None)
    assert len(source) == 17 and source.num_classes == 2
    found, labels = reasons(source)
    assert set(found) == {"empty.png", "half.jpg", "text.png", "other.jpg", "huge.png"}
    assert "truncated" in found["half.jpg"] and "not an image" in found["empty.png"]
    assert f"more than {MAX_PIXELS}" in found["huge.png"]
    assert labels == {0, 1}
    with pytest.raises(BadExample, match=r"half\.jpg"):
        source[list(source.components[0].source.collection.files).index("cat/half.jpg")]


def huge_png() -> bytes:
    """A header that promises 2^27 pixels in a few bytes."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 2**14, 2**13, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_buckets_hold_what_fits_them_best_and_give_one_shape_each(tmp_path):
    sizes = {"cat": [(30, 30), (20, 30), (40, 60), (30, 20)], "dog": [(16, 24), (31, 30), (90, 160)]}
    write_photos(tmp_path / "train", sizes)
    index = tmp_path / "index.json"
    fields = {"source": "images", "aspect_ratios": ("1:1", "3:2", "2:3", "21:9"), "index": str(index)}
    source = opened(tmp_path, **fields)
    shapes = {part.source.bucket: (part.source.size, len(part.source)) for part in source.components}
    # 16 pixels squared, sides multiples of the patch's 4; 16:9 is nearer to 3:2 than to 21:9; no bucket is empty
    assert shapes == {"1:1": ((16, 16), 2), "3:2": ((12, 20), 4), "2:3": ((20, 12), 1)}
    loader = train_loader(source, 4, seed=0)
    kinds = {loader.peek(ahead).shapes for ahead in range(40)}
    assert len(kinds) == 3
    turns = np.bincount([loader.rows(ahead).component for ahead in range(70)])
    np.testing.assert_array_equal(turns, [20, 40, 10])  # as many batches as a bucket has examples
    written = tmp_path / "index-train.json"
    known = json.loads(written.read_text())
    assert known["facts"][0] == [30, 30]
    # The index is what is read the next time, until the files are others.
    known["facts"][0] = [20, 30]
    written.write_text(json.dumps(known))
    assert len(opened(tmp_path, **fields).components[0].source) == 1
    (tmp_path / "train" / "cat" / "9.png").write_bytes(encoded(picture(9)))
    assert len(opened(tmp_path, **fields).components[0].source) == 3


def test_classes_of_the_test_split_are_those_of_training(tmp_path):
    write_photos(tmp_path / "train", {"ant": [(20, 20)], "bee": [(20, 20)], "cow": [(20, 20)]}, captions=False)
    write_photos(tmp_path / "val", {"cow": [(20, 20)], "elk": [(20, 20)]}, captions=False)
    source = opened(tmp_path, "test", source="images", text=None)
    assert [int(source[index]["label"]) for index in range(2)] == [2, -1]
    assert source.num_classes == 3


def test_captions_beside_pictures(tmp_path):
    write_photos(tmp_path, {"cat": [(20, 20)] * 3, "dog": [(20, 20)] * 12}, captions=False)
    cat = tmp_path / "cat"
    (cat / "0.txt").write_text("A cat, unseen before!\n\na dog\n")
    write_json(cat / "1.json", {"captions": {"original": "a dog", "synthetic": ["a cat", "cat"]}})
    (cat / "2.txt").write_bytes("un café".encode("latin-1"))
    write_json(tmp_path / "dog" / "0.json", {"captions": [1]})
    (tmp_path / "dog" / "1.json").write_text("{")
    kinds = (("caption", 1.0), ("synthetic", 0.5))
    source = opened(tmp_path, source="images", captions=CaptionConfig(kinds=kinds, lines="alternatives"))
    collection = source.components[0].source.collection
    assert collection.read(0, captions=True).captions == {"caption": ("A cat, unseen before!", "a dog")}
    # Words that are not known are left out, and punctuation does not hide those that are.
    message = {READER.words(source.components[0].source.draw(0, np.random.default_rng(i))["text"]) for i in range(20)}
    assert message == {"a cat", "a dog"}
    # Of the kinds that are there one has no weight, and so is never chosen.
    message = {READER.words(source.components[0].source.draw(1, np.random.default_rng(i))["text"]) for i in range(20)}
    assert message == {"a cat", "cat"}
    found, _ = reasons(source)
    assert "not UTF-8 (at byte 6)" in found["2.png"]
    assert "not JSON" in found["1.png"] and "must be text" in found["0.png"]


def test_kinds_of_captions_are_drawn_by_weight_and_wrapped():
    kinds = (("original", 0.1), ("synthetic", 0.9), ("absent", 5.0))
    captioner = Captioner(READER, CaptionConfig(kinds, fps=True, aspect=True, noise_level=True), 0.3, 8.0)
    rng = np.random.default_rng(0)
    message = [
        captioner.choose({"original": ("o",), "synthetic": ("s", "t"), "other": ("x",)}, rng) for _ in range(2000)
    ]
    assert message.count("o") == pytest.approx(200, abs=45) and message.count("s") == pytest.approx(900, abs=80)
    assert "x" not in message
    assert captioner.choose({"other": ("x",)}, rng) == captioner.choose({}, rng) == ""
    prompt = captioner.prompt("a cat", "3:2", extended=True)
    assert prompt == "Noise Level 300:\nA video with 8 fps:\n(extend) a cat\n\n in a 3:2 aspect ratio.\n"
    assert READER.words(captioner.ids(prompt)) == "a video 8 fps: (extend) a cat in"  # as many as L = 8


def test_a_dropped_caption_has_the_states_of_the_empty_one():
    train = TrainConfig(steps=1, batch_size=2, lr=1e-3)
    config = ExperimentConfig("any", FLOW, DataConfig(label_drop=0.5), train, text=TEXT)
    ids = READER.ids(["a cat"] * 64)
    states = np.asarray(batch_condition(jax.random.key(0), {"text": ids, "label": np.zeros(64, np.int32)}, config))
    dropped = ~states.any(axis=(1, 2))
    assert 15 < dropped.sum() < 49
    np.testing.assert_array_equal(states[~dropped], np.asarray(READER.states(ids))[~dropped])
    given = {"text_states": states, "label": np.zeros(64, np.int32)}
    np.testing.assert_array_equal(batch_condition(jax.random.key(1), given, config), states)


def test_clips_are_sampled_at_the_rate_from_anywhere_in_the_video(tmp_path):
    write_clip(tmp_path / "long.mp4", 24)
    (tmp_path / "long.txt").write_text("a cat moving")
    write_clip(tmp_path / "short.mp4", 6)
    write_clip(tmp_path / "again.mkv", 24)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "long.mp4").read_bytes()[:600])
    source = opened(tmp_path, source="videos", frames=4, fps=4.0, drop_first=0.5, crop="random")
    part = source.components[0].source
    assert {name.rpartition("/")[2] for name in source.skipped.reasons} == {"cut.mp4", "short.mp4"}
    assert [part.folder.files[place] for place in part.indices] == ["again.mkv", "long.mp4"]
    starts, kinds = set(), set()
    for seed in range(30):
        example = part.draw(1, np.random.default_rng(seed))
        numbers = frame_numbers(example["image"])
        np.testing.assert_array_equal(np.diff(numbers), [2, 2, 2])  # 4 of the video's 8 frames a second
        starts.add(int(numbers[0]))
        kinds.add(READER.words(example["text"]))
    assert min(starts) <= 2 and max(starts) >= 14
    assert kinds == {"a cat moving", "(extend) a cat moving"}
    np.testing.assert_array_equal(part[1]["image"], part[1]["image"])
    # as many frames are read for a stage of training on shorter clips
    few = train_loader(shortened(source, 2), 2, seed=0)
    assert next(few)["image"].shape == (2, 2, 16, 16, 3)
    still = {"image": np.zeros((5, 16, 16, 3)), "label": np.zeros(5)}
    assert first_frames(still, 2)["image"].shape == (5, 16, 16, 3)


def test_every_frame_of_a_video_can_be_found(tmp_path):
    from starflow_jax.media.clip_reading import frames_at, video_facts

    for name in ("a.mp4", "a.mkv", "a.gif"):
        write_clip(tmp_path / name, 20)
        facts = video_facts(tmp_path / name)
        assert (facts.height, facts.width) == (32, 32)
        assert facts.fps == pytest.approx(8.0, rel=0.05) and facts.seconds == pytest.approx(2.5, rel=0.05)
        for number in range(20):
            (frame,) = frames_at(tmp_path / name, [number / facts.fps], facts.fps)
            assert frame_numbers(frame[None]) == [number], (name, number)
        with pytest.raises(ValueError, match="it ends"):
            frames_at(tmp_path / name, [0.0, 3.0], facts.fps)


def test_tar_shards(tmp_path):
    pixels = [picture(number, 20, 20) for number in range(6)]
    examples = [
        {"png": encoded(one), "json": json.dumps({"caption": "a dog"}).encode(), "cls": str(number).encode()}
        for number, one in enumerate(pixels)
    ]
    examples[0].pop("json")
    examples[0]["txt"] = b"a cat\n"
    write_tar(tmp_path / "train-0.tar", examples[:4], folder="../../up/")
    write_tar(tmp_path / "train-1.tar", examples[4:])
    write_tar(tmp_path / "test.tar", examples[:1])
    source = opened(tmp_path, source="tars")
    part = source.components[0].source
    assert len(source) == 6 and source.num_classes == 6 and len(opened(tmp_path, "test", source="tars")) == 1
    assert [READER.words(part[index]["text"]) for index in (0, 1)] == ["a cat", "a dog"]
    for index, one in enumerate(pixels):
        expected = decode_image(io.BytesIO(encoded(one)), "p", Crop((16, 16), 3))
        np.testing.assert_array_equal(part[index]["image"], expected)
        assert part[index]["label"] == index
    # what a cut shard still holds is read, and the cut is said
    data = (tmp_path / "train-0.tar").read_bytes()
    (tmp_path / "train-0.tar").write_bytes(data[: data.index(b"002.png") + 700])
    cut = opened(tmp_path, source="tars")
    assert len(cut) == 4 and "it ends inside ../../up/002.png" in cut.skipped.reasons[str(tmp_path / "train-0.tar")]
    (tmp_path / "train-1.tar").write_bytes(b"no tar at all" * 100)
    assert len(opened(tmp_path, source="tars")) == 2
    (tmp_path / "train-0.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="contains no image in 2 tar files"):
        opened(tmp_path, source="tars")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data set that TensorFlow Datasets writes itself, without TensorFlow."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")

    class Tiny(tfds.core.GeneratorBasedBuilder):
        """Seven images of two shapes."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": enumerate(examples)}

        def _generate_examples(self):
            raise AssertionError("_split_generators gives the examples; the base class only wants the name")

    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(num_classes=3),
         "description": tfds.features.Text()}
    )  # fmt: skip
    examples = [
        {"image": io.BytesIO(encoded(picture(number, 20, 20 + 10 * (number % 2)))), "label": number % 3,
         "description": "a cat"}
        for number in range(7)
    ]  # fmt: skip
    Tiny(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def test_tfds(prepared):
    for path, dataset in ((prepared / "tiny" / "1.0.0", None), (prepared, "tiny")):
        source = opened(path, source="tfds", dataset=dataset, aspect_ratios=("1:1", "3:2"))
        assert [len(part.source) for part in source.components] == [4, 3] and source.num_classes == 3
        part = source.components[0].source
        np.testing.assert_array_equal(
            part[1]["image"], decode_image(io.BytesIO(encoded(picture(2, 20, 20))), "p", Crop((16, 16), 3))
        )
        assert part[1]["label"] == 2 and READER.words(part[1]["text"]) == "a cat"
    with pytest.raises(ValueError, match="data set tiny must have the split 'test', got train"):
        opened(prepared, "test", source="tfds", dataset="tiny")
    with pytest.raises(ValueError, match="contains no data set of TensorFlow Datasets"):
        opened(prepared, source="tfds")


@pytest.mark.parametrize("source", ["images", "videos", "tars", "tfds", "latents"])
def test_folders_without_data_are_refused_in_a_sentence(tmp_path, source):
    frames = 4 if source == "videos" else 0
    noise = {"noise": "gaussian", "noise_std": 0.1}
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ValueError, match=str(tmp_path)) as error:
            opened(path, source=source, frames=frames, **noise)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"source": "images"}, "path requires source 'idx', 'images', 'latents', 'npz'"),
        ({"source": "videos", "path": "p"}, "frames must be above 0 for source 'moving_digits' or 'videos'"),
        ({"source": "images", "path": "p", "frames": 3}, "frames must be above 0 for"),
        ({"source": "images", "path": "p", "aspect_ratios": ("3x2",)}, "aspect_ratios must be 'width:height'"),
        ({"source": "images", "path": "p", "aspect_ratios": ("1:1", "1:1")}, "every bucket once, got 1:1 again"),
        ({"source": "images", "path": "p", "flip": 1.5}, "flip must be at most 1, got 1.5"),
        ({"source": "images", "path": "p", "drop_first": 0.5}, "drop_first requires source 'latents' or 'videos'"),
        ({"source": "images", "path": "p", "dataset": "x"}, "dataset requires source 'tfds'"),
        ({"source": "digits", "flip": 0.5}, "flip requires source 'images'"),
        ({"source": "digits", "crop": "random"}, "crop requires source 'images'"),
        ({"source": "latents", "path": "p"}, "noise must be 'gaussian' for latents, got 'uniform'"),
        ({"source": "mixture"}, "mixture requires source 'mixture', got source='mixture' and 0 sources"),
        ({"threads": 1, "workers": 1}, "threads or workers must be 0"),
    ],
)
def test_configurations_that_say_nothing_sensible(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        DataConfig(**fields)


def test_other_shapes_need_a_flow_that_takes_them(tmp_path):
    write_photos(tmp_path, {"cat": [(20, 20), (20, 30)]})
    source = opened(tmp_path, source="images", aspect_ratios=("1:1", "3:2"))
    learned = dataclasses.replace(FLOW, rope=False)
    with pytest.raises(ValueError, match=r"flow.rope, flow.channels and flow.patch_size must fit the images"):
        check_source(source, learned, TEXT)
    grey = dataclasses.replace(FLOW, channels=2)
    with pytest.raises(ValueError, match=r"flow.channels must be 1 \(grey\) or 3 \(RGB\) to read images, got 2"):
        open_source(DataConfig(source="images", path=str(tmp_path)), "train", flow=grey)
    with pytest.raises(ValueError, match=r"text must be None for digits-train, which has no captions"):
        check_source(open_source(DataConfig(), "train"), dataclasses.replace(FLOW, channels=1, image_size=8), TEXT)
