"""Surveys a folder of images, and suggests an experiment with a flow of suitable size."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.data.decoding.bad_examples import BadExample
from starflow_jax.data.decoding.image_decoding import image_file_facts
from starflow_jax.data.sources.folders import Folder
from starflow_jax.data.sources.splits import named_entry, split_folder
from starflow_jax.media.medium import IMAGES

MAX_SURVEYED = 2000  # images whose headers and captions are read, evenly spaced over the folder
MAX_WORDS = 512  # words of a suggested vocabulary, the most frequent ones
_PUNCTUATION = ".,;:!?\"'()[]"
_SIDES = (16, 32, 64, 128)


@dataclasses.dataclass(frozen=True)
class FolderSurvey:
    """Statistics of a folder of images.

    Attributes:
      path: the folder; num_images: images of its training split.
      classes: names of the class folders, in the order of their labels.
      sides: shorter sides in pixels of the images that were surveyed, ascending.
      grey: whether all of these have one channel.
      captioned: share of these that have a caption.
      words: words of the captions in lower case, the most frequent first; longest: words of the longest caption.
      has_test: whether a folder of held-out images lies beside the training images.
    """

    path: Path
    num_images: int
    classes: tuple[str, ...]
    sides: tuple[int, ...]
    grey: bool
    captioned: float
    words: tuple[str, ...]
    longest: int
    has_test: bool

    def sizes(self) -> str:
        """A histogram of the shorter sides: "12 below 64 pixels, 88 from 64 to 127"."""
        edges = (0, *_SIDES, 256, 512, 1024, 2**31)
        counts, _ = np.histogram(self.sides, edges)
        bins = zip(edges[:-1], edges[1:], counts, strict=True)
        names = [(low, high, int(count)) for low, high, count in bins if count]
        return ", ".join(
            f"{count} from {low} pixels on" if high == edges[-1] else f"{count} from {low} to {high - 1} pixels"
            for low, high, count in names
        )


def survey_folder(path: Path) -> FolderSurvey:
    """Surveys the training images of a folder.

    The folder has the layout of data source "images": classes are the folders in it, captions are `.txt` or `.json`
    files beside the images, and folders `train` and `test` (or `val`) separate the splits.

    Raises:
      ValueError: no such folder, no images in it, or none that can be read.
    """
    root = split_folder(path, "train")
    folder = Folder.scan(root, IMAGES, above=root != path)
    rows = np.linspace(0, len(folder) - 1, min(len(folder), MAX_SURVEYED)).astype(int)
    sides, captions, grey = [], [], True
    problem = ""
    for row in map(int, rows):
        try:
            with folder.path(row).open("rb") as stream:
                size, is_grey = image_file_facts(stream, folder.key(row))
            sides.append(min(size))
            grey &= is_grey
            texts = [text for kind in folder.captions(row).texts.values() for text in kind]
        except (BadExample, OSError) as error:
            problem = problem or str(error)
            continue
        captions += [texts] if texts else []
    check(len(sides) > 0, f"data folder {path} contains no readable image: {problem}")
    words: collections.Counter[str] = collections.Counter()
    longest = 0
    for text in (text for texts in captions for text in texts):
        split = [word.strip(_PUNCTUATION) for word in text.lower().split()]
        words.update(word for word in split if word)
        longest = max(longest, len(split))
    has_test = named_entry(path, "test", "", Path.is_dir) is not None
    ordered = tuple(word for word, _ in sorted(words.items(), key=lambda entry: (-entry[1], entry[0])))
    return FolderSurvey(
        path=path,
        num_images=len(folder),
        classes=folder.classes,
        sides=tuple(sorted(sides)),
        grey=grey,
        captioned=len(captions) / len(sides),
        words=ordered,
        longest=longest,
        has_test=has_test,
    )


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A configuration and the reasons for its values.

    Attributes:
      values: nested mapping of an ExperimentConfig.
      reasons: a sentence for a field ("flow.image_size") or a group of fields ("train").
    """

    values: Mapping[str, Any]
    reasons: Mapping[str, str]


def suggest_config(survey: FolderSurvey, given: Mapping[str, Any] | None = None) -> Suggestion:
    """Suggests an experiment for a folder of images.

    A flow reads classes where the folder has at least two class folders (TARFlow), else captions where at least half
    of the images have one (STARFlow with a vocabulary of their words), else no condition (TARFlow).

    Args:
      survey: of the folder.
      given: nested values that are set already; they are not changed, and the suggested ones fit them.
    """
    given = given or {}
    flow_given, train_given = given.get("flow", {}), given.get("train", {})
    reasons = {"data.source": f"{survey.num_images} images; shorter sides: {survey.sizes()}."}
    condition = _condition(survey, flow_given, reasons)
    flow = _flow(survey, flow_given, condition, reasons)
    train = _train(survey, flow["width"], train_given, reasons)
    conditional = condition != "nothing"
    data: dict[str, Any] = {"source": "images", "path": str(survey.path), "noise": "gaussian", "noise_std": 0.05}
    reasons["data.noise"] = "Gaussian noise on pixels in [-1, 1] makes better samples than uniform dequantisation."
    if conditional:
        data["label_drop"] = 0.1
        reasons["data.label_drop"] = "One condition in ten is dropped, which guidance needs."
    sample = {"num": 64, "guidance": 1.0 if conditional else 0.0, "solver": "jacobi", "denoise": "score"}
    reasons["sample.denoise"] = "The training noise is removed by the score of the model."
    values: dict[str, Any] = {"name": survey.path.resolve().name or "images", "flow": flow, "data": data}
    values |= {"train": train, "sample": sample, "seed": 0}
    if condition == "captions":
        vocabulary = survey.words[:MAX_WORDS]
        values["text"] = {"vocabulary": vocabulary}
        reasons["text"] = f"The {len(vocabulary)} most frequent words of the captions; others are skipped."
    return Suggestion(_merged(values, given), reasons)


def _merged(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`values` overridden by those of `given`, recursively."""
    result = dict(values)
    for name, value in given.items():
        inner = result.get(name)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        result[name] = _merged(inner, value) if both else value  # type: ignore[arg-type]
    return result


def _condition(survey: FolderSurvey, given: Mapping[str, Any], reasons: dict[str, str]) -> str:
    """The condition of the flow: "classes", "captions" or "nothing"."""
    if given.get("text_dim") or (given.get("family") == "starflow" and survey.words):
        return "captions"
    if len(survey.classes) > 1:
        reasons["flow.num_classes"] = f"One class for each of the folders {', '.join(survey.classes[:8])}" + (
            ", and so on." if len(survey.classes) > 8 else "."
        )
        return "classes"
    if survey.captioned >= 0.5 and survey.words:
        reasons["flow.text_length"] = (
            f"{survey.captioned:.0%} of the images have a caption, the longest of {survey.longest} words."
        )
        return "captions"
    reasons["flow.family"] = "There are neither class folders nor captions: the flow is unconditional."
    return "nothing"


def _flow(survey: FolderSurvey, given: Mapping[str, Any], condition: str, reasons: dict[str, str]) -> dict[str, Any]:
    quartile = int(np.quantile(survey.sides, 0.25))
    cap = 64 if survey.num_images < 20_000 else 128
    fitting = [side for side in _SIDES if side <= min(quartile, cap)]
    size = given.get("image_size", fitting[-1] if fitting else max(quartile // 4 * 4, 4))
    shortest = size if isinstance(size, int) else min(size)
    reasons["flow.image_size"] = (
        f"Three quarters of the images are at least {quartile} pixels wide and high, and {survey.num_images} images "
        f"can train at most {cap}."
    )
    patch = given.get("patch_size", max(shortest // 16, 1))
    reasons["flow.patch_size"] = f"Patches of {patch} x {patch} pixels make {(shortest // patch) ** 2} tokens an image."
    width, blocks, layers = (
        (128, 4, 2) if survey.num_images < 2_000 else (256, 6, 4) if survey.num_images < 50_000 else (512, 8, 6)
    )
    width = given.get("width", width)
    reasons["flow.width"] = f"The model size is chosen for {survey.num_images} images."
    flow: dict[str, Any] = {"channels": 1 if survey.grey else 3, "image_size": size, "patch_size": patch}
    flow |= {"width": width, "num_blocks": blocks, "layers_per_block": layers}
    flow |= {"head_dim": 64 if width % 64 == 0 else width}
    if survey.num_images < 2_000:
        flow["dropout"] = 0.1
        reasons["flow.dropout"] = "So few images would be memorised without dropout."
    if condition != "captions":
        classes = {"num_classes": len(survey.classes)} if condition == "classes" else {}
        return {"family": "tarflow"} | flow | classes
    text = {"text_dim": min(len(survey.words), MAX_WORDS), "text_length": min(max(survey.longest, 1), 64)}
    starflow = {"family": "starflow", "rope": True, "sos": True, "order": "L2R", "scale": "softplus"}
    return starflow | {"soft_clip": 4.0, "final_norm": True, "cond_top_only": True} | flow | text


def _train(survey: FolderSurvey, width: int, given: Mapping[str, Any], reasons: dict[str, str]) -> dict[str, Any]:
    count = survey.num_images
    fitting = min(count, 32 if count < 2_000 else 64 if count < 50_000 else 256)
    batch = given.get("batch_size", 2 ** (fitting.bit_length() - 1))
    epochs = 1_000 if count < 2_000 else 300 if count < 50_000 else 100
    num_steps = min(max(epochs * count // batch, 2_000), 300_000)
    rounding = 10 ** max(len(str(num_steps)) - 2, 0)
    steps = given.get("steps", num_steps // rounding * rounding)
    reasons["train.steps"] = f"Training covers every image about {max(steps * batch // count, 1)} times."
    lr = {128: 5e-4, 256: 3e-4}.get(width, 1e-4 if width > 256 else 5e-4)
    interval = max(min(steps // 10, 2_000), 1)
    train: dict[str, Any] = {"steps": steps, "batch_size": batch, "lr": lr, "warmup": steps // 50, "grad_clip": 1.0}
    train |= {"skip_after": None, "ema": 0.999, "log_every": max(min(steps // 20, 100), 1)}
    return train | {"checkpoint_every": interval, "sample_every": interval}
