"""The networks of a measurement: the feature network, and the network of images and captions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.request_errors import RequestError, require
from starflow_jax.data import Source
from starflow_jax.data.sources.mixture import example_spec
from starflow_jax.evaluation.samples.features.chunk_folder import DIGIT_FILE, check_folder, stored_plan
from starflow_jax.evaluation.samples.features.digit_classifier import digit_network
from starflow_jax.evaluation.samples.features.feature_network import (
    FeatureNetwork,
    extract_features,
    inception_network,
    named_network,
    network_fingerprint,
)
from starflow_jax.evaluation.samples.features.network_fingerprint import matching_fingerprint
from starflow_jax.evaluation.samples.metrics.metric import metric_spec
from starflow_jax.evaluation.samples.sample_quality_request import SampleQualityRequest
from starflow_jax.sharding.layout import Layout
from starflow_jax.training.distributed.agreement import on_first_process

DIGITS = "digits"  # the classifier of digits that is trained here, as the name of a feature network


def open_feature_network(
    request: SampleQualityRequest, config: ExperimentConfig, layout: Layout | None, reference: Source
) -> FeatureNetwork:
    """The feature network of a request, tried on images of the reference's shape, with its fingerprint.

    The fingerprint is the stored one of the request's folder where they agree up to rounding.

    Raises:
      RequestError: no network, or one that does not read these images or lacks logits that a metric needs.
      ValueError: see `check_folder`, `digit_network`, `inception_network`, `named_network` and `extract_features`.
    """
    network = _open(request, config, layout, reference)
    shape = tuple(reference[0]["image"].shape)
    if network.channels is not None and shape[2] not in network.channels:
        raise RequestError("{features} {0} reads 1 or 3 channels, got images of {1}", network.name, shape[2])
    output = extract_features(network, np.zeros((2, *shape), np.uint8), 2)
    for name in request.sample_metrics:
        if metric_spec(name).needs == "logits" and output.logits is None:
            raise RequestError("{metrics} {0} needs logits, and {1} returns only features", name, network.name)
    stored = stored_plan(request.folder).get("features_of_fixed_pictures")
    fingerprint = matching_fingerprint(network_fingerprint(network, shape), stored)
    return dataclasses.replace(network, fingerprint=fingerprint)


def _open(
    request: SampleQualityRequest, config: ExperimentConfig, layout: Layout | None, reference: Source
) -> FeatureNetwork:
    name = config.data.traits.feature_network if request.features is None else request.features
    if name is None:
        raise RequestError("{features} must name the feature network, got none; see --help")
    require(
        request.resize is None or not (name == DIGITS or ":" in name),
        "{resize} requires Inception weights, got {features} {0}",
        name,
    )
    height, width, channels = example_spec(reference)["image"][0]
    check_folder(request.folder)
    if name == DIGITS:
        require(
            channels == 1 and not height % 8 and not width % 8,
            "{features} digits reads grey images with sides that are multiples of 8, got images of {0} x {1} x {2}",
            height,
            width,
            channels,
        )
        path = request.folder / DIGIT_FILE
        on_first_process(lambda: (digit_network(path), None)[1], str(path))
        return digit_network(path)
    if ":" in name and not Path(name).exists():
        return named_network(name)
    return inception_network(Path(name), resize=request.resize or "half-pixel", layout=layout)
