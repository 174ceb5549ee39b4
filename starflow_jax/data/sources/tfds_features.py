"""Which features of a data set of TensorFlow Datasets are the image, the class and the captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.data.sources.image_collection import DEFAULT_KIND, Captions


@dataclasses.dataclass(frozen=True)
class FeatureNames:
    """Names of features; those inside another one are written with a slash ("captions/text").

    Attributes:
      image: the image; label: the class, or None; texts: the texts, each a kind of captions.
      num_classes: number of classes, 0 where the data set does not state it; classes: their names.
    """

    image: str
    label: str | None
    texts: tuple[str, ...]
    num_classes: int
    classes: tuple[str, ...]

    def captions(self, record: Mapping[str, Any]) -> Captions:
        """The captions of a record. A single text feature is the caption; several keep their names."""
        names = {self.texts[0]: DEFAULT_KIND} if len(self.texts) == 1 else {}
        return {names.get(name, name): _texts(value_at(record, name)) for name in self.texts}


def feature_names(data_set: str, features: Mapping[str, Any], renamed: Mapping[str, str]) -> FeatureNames:
    """Finds the features of a data set.

    Args:
      data_set: its name, for messages; features: its features.
      renamed: the features for `image`, `label` and `caption`, where they have other names.

    Raises:
      ValueError: a feature is missing, or of another kind.
    """
    image = renamed.get("image", "image")
    found = _feature_at(features, image)
    check(
        _kind(found) == "Image",
        f"data set {data_set} must have an image feature called {image!r}, got {_described(features)}; "
        "data.features names another",
    )
    label, num_classes, classes = renamed.get("label", "label"), 0, tuple[str, ...]()
    found = _feature_at(features, label)
    check(
        "label" not in renamed or _is_whole(found),
        f"data set {data_set} must have a whole number called {label!r}, got {_described(features)}",
    )
    if _kind(found) == "ClassLabel":
        num_classes = int(found.num_classes or 0)
        classes = tuple(map(str, found.names)) if num_classes else ()
    texts = tuple(name for name in features if _is_text(features[name]))
    if "caption" in renamed:
        texts = (renamed["caption"],)
        check(
            _is_text(_feature_at(features, texts[0])),
            f"data set {data_set} must have a text called {texts[0]!r}, got {_described(features)}",
        )
    return FeatureNames(image, label if _is_whole(found) else None, texts, num_classes, classes)


def value_at(record: Any, name: str) -> Any:
    """The value of a feature in a record."""
    for part in name.split("/"):
        record = record[part]
    return record


def nested(name: str, value: Any) -> dict[str, Any]:
    """A nested dictionary with `value` for the feature `name`."""
    for part in reversed(name.split("/")):
        value = {part: value}
    return dict(value)


def _feature_at(features: Any, name: str) -> Any:
    """The feature of that name; None where there is none."""
    for part in name.split("/"):
        features = features.feature if _kind(features) == "Sequence" else features
        try:
            features = features[part]
        except (KeyError, TypeError):
            return None
    return features


def _kind(feature: Any) -> str:
    return type(feature).__name__


def _is_text(feature: Any) -> bool:
    return _kind(feature.feature if _kind(feature) == "Sequence" else feature) == "Text"


def _is_whole(feature: Any) -> bool:
    if _kind(feature) not in ("ClassLabel", "Scalar", "Tensor"):
        return False
    return feature.shape == () and np.issubdtype(feature.np_dtype, np.integer)


def _described(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({_kind(features[name])})" for name in features)


def _texts(values: Any) -> tuple[str, ...]:
    """A text, or each of a list of texts, without those that are blank."""
    several = values if isinstance(values, list | tuple | np.ndarray) and np.ndim(values) else [values]
    texts = (_text(value) for value in several)
    return tuple(text for text in texts if text.strip())


def _text(value: Any) -> str:
    value = value.item() if hasattr(value, "item") else value
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
