"""Metrics of generated images: the declaration of a registered metric, and the computation of metrics.

A metric is a function of the statistics of two sets of images, generated and real, that gives numbers by name. One file
of this package defines it and registers it in `core.registries.METRICS`:

    @METRICS.register("fid", title="FID", better="lower", columns=(Column("fid", "FID", ".3f"),))
    def fid(samples: FeatureStatistics, real: FeatureStatistics) -> dict[str, float]: ...

`starflow evaluate --metrics NAME` then computes it, and the table, the CSV file, the JSON file and the plot show it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from starflow_jax.core.config.checks import check
from starflow_jax.core.registries import METRICS
from starflow_jax.evaluation.samples.features.feature_statistics import FeatureStatistics

Needs = Literal["features", "logits", "captions"]
Better = Literal["lower", "higher"]


@dataclasses.dataclass(frozen=True)
class Column:
    """A number of a metric, as tables and plots show it.

    Attributes:
      key: its name in the numbers that the metric gives; title: of the column of the table.
      format: of the numbers in the table.
      error: the key of its standard deviation or standard error, shown as a further column and as error bars, or None.
      error_title: of that column.
    """

    key: str
    title: str
    format: str
    error: str | None = None
    error_title: str = ""


@dataclasses.dataclass(frozen=True)
class MetricSpec:
    """The declaration of a registered metric.

    Attributes:
      title: of its panel in the plot.
      columns: the numbers that the metric gives.
      needs: "features" of both sets of images; "logits" also of a classifier; "captions": scores of pairs of generated
        images and captions (`FeatureStatistics.pair_scores`), which real images do not have.
      better: which direction is better, for the plot; None where neither is.
    """

    title: str
    columns: tuple[Column, ...]
    needs: Needs = "features"
    better: Better | None = None

    def __post_init__(self) -> None:
        check(self.needs in get_args(Needs), f"needs must be one of {get_args(Needs)}, got {self.needs!r}")
        allowed = (*get_args(Better), None)
        check(self.better in allowed, f"better must be one of {allowed}, got {self.better!r}")
        check(len(self.columns) > 0, "columns must contain at least one column, got none")


def metric_spec(name: str) -> MetricSpec:
    """The declaration of the metric of a name; imports the module that registers it.

    Raises:
      ValueError: no metric has this name, or it declares something that is not allowed.
    """
    return MetricSpec(**METRICS.details(name))


def in_table_order(names: Iterable[str]) -> list[str]:
    """The names of metrics in the order of the table's columns: by name, metrics of captions last."""
    return sorted(names, key=lambda name: (metric_spec(name).needs == "captions", name))


def compute_metrics(samples: FeatureStatistics, real: FeatureStatistics, names: Sequence[str]) -> dict[str, float]:
    """The numbers of metrics of generated images against real images, by the keys of their columns.

    Args:
      names: registered metrics; those of captions come last in the result.

    Raises:
      ValueError: a metric that needs logits or pair scores that the statistics do not have, or too few images.
    """
    values: dict[str, float] = {}
    for name in sorted(names, key=lambda name: metric_spec(name).needs == "captions"):
        spec = metric_spec(name)
        check(
            spec.needs != "logits" or samples.classes is not None,
            f"the {spec.title} needs a network that returns logits, got only features",
        )
        check(
            spec.needs != "captions" or samples.pair_scores is not None,
            f"the {spec.title} needs scores of pairs of images and captions, got only features",
        )
        values |= METRICS.get(name)(samples, real)
    return values
