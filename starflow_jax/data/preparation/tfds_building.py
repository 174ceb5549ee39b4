"""Data sets of TensorFlow Datasets by their names; those that are not prepared are downloaded and prepared first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starflow_jax.core.config.checks import check
from starflow_jax.data.sources.tfds import TfdsRecords


def open_data_set(
    name: str, data_dir: Path | None, splits: Sequence[tuple[str, str]], renamed: Mapping[str, str]
) -> dict[str, TfdsRecords]:
    """The records of every split of a data set, by the names of the splits.

    Args:
      name: such as "mnist" or "mnist:3.0.1".
      data_dir: the folder of prepared data sets; None for the one of the library.
      splits: (name, name in the data set); empty for all.
      renamed: features for `image`, `label` and `caption`.

    Raises:
      ValueError: there is no such data set, it cannot be prepared, or it lacks a split or a feature.
    """
    builder = _prepared(name, data_dir)
    folder = Path(builder.data_dir)
    wanted = splits or [(str(split), str(split)) for split in builder.info.splits]
    check(len(wanted) > 0, f"data set {name} must have a split, got none")
    return {
        split: TfdsRecords.open(folder, None, split, renamed=renamed, stored=stored, any_label=True)
        for split, stored in wanted
    }


def _prepared(name: str, data_dir: Path | None) -> Any:
    """The builder of a data set that is prepared; it is prepared here where it is not.

    Most data sets need TensorFlow for that, and nothing else does.
    """
    import tensorflow_datasets as tfds  # takes seconds

    folder = {} if data_dir is None else {"data_dir": str(data_dir)}
    try:
        builder = tfds.builder(name, **folder)
        if not builder.is_prepared():
            builder = tfds.builder(name, file_format="array_record", **folder)
            builder.download_and_prepare()
    except Exception as error:  # the library raises many kinds of errors
        if _lacks_tensorflow(error):
            raise ValueError(
                f"data set {name} is not prepared in {data_dir or 'the folder of TensorFlow Datasets'}, and preparing "
                "it needs TensorFlow: pip install 'starflow-jax[prepare]'"
            ) from error
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(f"data set {name} cannot be prepared: {first or type(error).__name__}") from error
    return builder


def _lacks_tensorflow(error: BaseException | None) -> bool:
    """Whether an error comes from the import of TensorFlow; the library wraps some of them in its own."""
    while error is not None:
        if "No module named 'tensorflow'" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
