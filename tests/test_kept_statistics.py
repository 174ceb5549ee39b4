"""Stored statistics of real images are reused only for the same images and the same network."""

import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from starflow_jax.data import ArraySource
from starflow_jax.data.pipeline.content_digest import contents_digest
from starflow_jax.data.pipeline.readable_subset import Subset
from starflow_jax.data.sources.folders import Folder
from starflow_jax.data.sources.image_files import ImageSource
from starflow_jax.data.sources.mixture import Component, Mixture
from starflow_jax.evaluation.samples.features.feature_network import FeatureNetwork, named_function, network_fingerprint
from starflow_jax.evaluation.samples.features.network_fingerprint import fingerprint, fixed_images, matching_fingerprint
from starflow_jax.evaluation.samples.reference_statistics import reference_statistics
from starflow_jax.media import medium

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (200, 4, 4, 1)).astype(np.uint8)
NETWORK = FeatureNetwork("means", "1", lambda images: images.astype(float).mean(axis=2)[..., 0])


def array(images):
    return ArraySource("array", images, np.zeros(len(images), np.int32), 256, 1)


def changed(place):
    images = IMAGES.copy()
    images[place, 0, 0, 0] ^= 1
    return images


def test_every_picture_of_an_array_counts(tmp_path):
    """Training reads labels and some images; statistics cover all of them."""
    assert array(IMAGES).digest() == array(changed(1)).digest()
    assert (
        len({contents_digest(array(changed(place))) for place in range(200)} | {contents_digest(array(IMAGES))}) == 201
    )
    for images in (IMAGES, changed(1), IMAGES):
        found = reference_statistics(tmp_path, array(images), NETWORK, 64, (4, 4, 1))
        np.testing.assert_allclose(found.moments.mean, images.astype(float).mean(axis=(0, 2, 3)), rtol=1e-6)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupted_pass_goes_on(tmp_path):
    """The statistics of an interrupted pass are, bit for bit, those of one that was not interrupted."""
    images = RANDOM.integers(0, 256, (5000, 4, 4, 1)).astype(np.uint8)
    calls = []

    def network(most):
        def apply(batch):
            if len(calls) == most:
                raise KeyboardInterrupt
            calls.append(len(batch))
            means = batch.astype(np.float64).mean(axis=2)[..., 0]
            return means, np.concatenate([means, -means], axis=1) / 64  # features and logits

        return dataclasses.replace(NETWORK, apply=apply)

    def measured(folder, most=None):
        calls.clear()
        return reference_statistics(folder, array(images), network(most), 64, (4, 4, 1), store_seconds=0.0)

    whole = measured(tmp_path / "whole")
    assert len(calls) == 79 and len(list((tmp_path / "whole").iterdir())) == 1
    for most in (5, 20, 40):  # before the first group of vectors was stored, after it, and again
        with pytest.raises(KeyboardInterrupt):
            measured(tmp_path / "parts", most)
    found = measured(tmp_path / "parts")
    assert len(calls) == 79 - 16 - 32  # whole groups of 16 batches were stored
    for one, other in ((whole.moments, found.moments), (whole.classes, found.classes)):
        for name in (field.name for field in dataclasses.fields(one)):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(whole.features, found.features)
    assert [path.suffix for path in (tmp_path / "parts").iterdir()] == [".npz"]  # no parts are left
    # A damaged part is computed again.
    (tmp_path / "damaged").mkdir()
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path / "damaged", 40)
    for path in (tmp_path / "damaged").glob("*.partial/vectors-000000.npz"):
        path.write_bytes(path.read_bytes()[:-50])
    np.testing.assert_array_equal(measured(tmp_path / "damaged").features, whole.features)
    assert len(calls) == 79


def test_another_network_by_its_answers_alone(tmp_path):
    one = dataclasses.replace(NETWORK, fingerprint=network_fingerprint(NETWORK, (4, 4, 1)))
    double = dataclasses.replace(NETWORK, apply=lambda images: 2.0 * NETWORK.apply(images))
    other = dataclasses.replace(double, fingerprint=network_fingerprint(double, (4, 4, 1)))
    means = [
        reference_statistics(tmp_path, array(IMAGES), some, 64, (4, 4, 1)).moments.mean for some in (one, other, one)
    ]
    np.testing.assert_allclose(2.0 * means[0], means[1])
    np.testing.assert_array_equal(means[0], means[2])


def test_parts_of_sources_count():
    half = Subset(array(IMAGES), tuple(range(100)))
    sources = [
        half,
        Subset(array(IMAGES), tuple(range(1, 101))),
        Subset(array(changed(50)), tuple(range(100))),
        Mixture("both", (Component(array(IMAGES)), Component(array(changed(3)), 0.0))),
        Mixture("both", (Component(array(IMAGES)), Component(array(changed(4)), 0.0))),
        array(IMAGES),
    ]
    assert len({contents_digest(source) for source in sources}) == len(sources)
    assert contents_digest(half) == contents_digest(Subset(array(IMAGES.copy()), tuple(range(100))))


def test_a_picture_file_that_is_rewritten(tmp_path):
    """In place, with the same name and size."""
    for place in range(3):
        Image.fromarray(IMAGES[place, ..., 0]).save(tmp_path / f"{place}.bmp")

    def source():
        return ImageSource(Folder.scan(tmp_path, medium.IMAGES), None, (4, 4), 1, "1:1")

    before, kept = contents_digest(source()), source().digest()
    assert contents_digest(Subset(source(), (0, 1))) != before == contents_digest(source())
    Image.fromarray(IMAGES[9, ..., 0]).save(tmp_path / "1.bmp")
    os.utime(tmp_path / "1.bmp", (1, 1))
    assert source().digest() == kept and contents_digest(source()) != before


def test_fingerprints_agree_but_for_rounding():
    arrays = RANDOM.normal(size=(2, 50)) + 1.0, 100.0 * RANDOM.normal(size=(2, 7))
    own = fingerprint(*arrays)
    near = fingerprint(*(some * (1 + 1e-5 * RANDOM.normal(size=some.shape)) for some in arrays))
    assert matching_fingerprint(own, near) == near
    for other in (
        fingerprint(arrays[0], 1.01 * arrays[1]),
        fingerprint(arrays[0] + 0.05 * RANDOM.normal(size=(2, 50)), arrays[1]),
        fingerprint(arrays[0][::-1], arrays[1]),
        fingerprint(arrays[0]),
        [[float("nan")] * 4] * 2,
        [["1.0"] * 4] * 2,
        None,
        "fingerprint",
    ):
        assert matching_fingerprint(own, other) == own


@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 3, 3)])
def test_fixed_images_are_fixed(shape):
    pictures = fixed_images(shape)
    assert pictures.shape == (2, *shape) and pictures.dtype == np.uint8
    np.testing.assert_array_equal(pictures, fixed_images(shape))
    assert (pictures[1, :4, :3] == pictures[1, :1, :1]).all() and len(np.unique(pictures[0])) > 10


def test_a_function_imported_from_elsewhere_counts_with_its_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "kept_outer.py").write_text("from kept_inner import look\n")
    (tmp_path / "kept_inner.py").write_text("def look(images):\n    return images\n")
    _, before = named_function("kept_outer:look")
    assert named_function("kept_outer:look")[1] == before
    (tmp_path / "kept_inner.py").write_text("def look(images):\n    return images + 1\n")
    assert named_function("kept_outer:look")[1] != before
