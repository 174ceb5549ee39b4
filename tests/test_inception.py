"""FID's Inception against a recording of PyTorch, its reader, and the classifier of digits."""

import jax
import numpy as np
import pytest
from PIL import Image

from starflow_jax.data.sources.digits import digits
from starflow_jax.evaluation.samples.features.digit_classifier import digit_network
from starflow_jax.evaluation.samples.features.feature_network import extract_features, inception_network
from starflow_jax.evaluation.samples.features.inception import network_input
from starflow_jax.evaluation.samples.features.inception_weights import (
    abstract_inception,
    inception_params,
    read_inception,
)
from starflow_jax.nn.module_parameters import merge
from starflow_jax.tensor_formats.tensor_folders import write_tensors


def names_and_shapes():
    """What the published file holds, from the network's own parameters: every convolution and its batch norm."""
    found = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_inception()[1]):
        *folders, _ = (part.key for part in path)
        if folders[-1] == "conv" and len(leaf.shape) == 4:
            rows, columns, inputs, outputs = leaf.shape
            unit = ".".join(folders[:-1])
            found[f"{unit}.conv.weight"] = (outputs, inputs, rows, columns)
            found |= {f"{unit}.bn.{name}": (outputs,) for name in ("weight", "bias", "running_mean", "running_var")}
    return found


@pytest.fixture(scope="module")
def tensors():
    """The random weights that the recording was made with."""
    random, drawn = np.random.default_rng(7), {}
    for name, shape in sorted(names_and_shapes().items()):
        if name.endswith("running_var"):
            value = random.uniform(0.5, 1.5, shape)
        elif name.endswith("running_mean"):
            value = 0.2 * random.standard_normal(shape)
        elif name.endswith("bn.weight"):
            value = random.uniform(0.8, 1.6, shape)
        elif name.endswith("bias"):
            value = 0.2 * random.standard_normal(shape)
        else:
            value = random.standard_normal(shape, dtype=np.float32) * np.sqrt(2.0 / np.prod(shape[1:]))
        drawn[name] = np.asarray(value, np.float32)
    return drawn


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    write_tensors(path, tensors | {"Conv2d_1a_3x3.bn.num_batches_tracked": np.asarray([0])})
    return path


def test_the_network_has_the_published_size():
    shapes = names_and_shapes()
    assert len(shapes) == 472
    assert sum(np.prod(shape) for name, shape in shapes.items() if "running" not in name) == 23_850_960


def test_it_computes_what_pytorch_does(file, goldens_dir):
    """torchvision's module with the published differences of FID's, random weights, images of 96 x 96."""
    x = (2 * np.random.default_rng(8).random((2, 96, 96, 3)) - 1).astype(np.float32)
    definition, params = abstract_inception()[0], read_inception(file)
    features, logits = jax.jit(lambda params, x: merge(definition, params)(x))(params, x)
    with np.load(goldens_dir / "inception" / "fid.npz") as expected:
        for name, found in (("features", features), ("logits", logits)):
            np.testing.assert_allclose(found, expected[name], atol=1e-5 * np.abs(expected[name]).max(), rtol=0)


@pytest.mark.parametrize("shape", [(1, 20, 31, 3), (1, 400, 350, 1)])
def test_resizing(shape):
    images = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    scaled = images.astype(np.float32) / 127.5 - 1
    expected = jax.image.resize(scaled, (1, 299, 299, shape[3]), "bilinear", antialias=False)
    found = np.asarray(network_input(images))
    assert found.shape == (1, 299, 299, 3)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-4)
    # Pillow's bicubic filter for every channel, in floats.
    clean = np.asarray(network_input(images, "clean"))[0]
    for channel in range(shape[3]):
        image = Image.fromarray(images[0, ..., channel].astype(np.float32))
        resized = np.asarray(image.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
        np.testing.assert_allclose(clean[..., channel], (resized - 128) / 128, atol=1e-6)
    # TensorFlow's: pixel i of the new picture lies at i N / n of the old one.
    legacy = np.asarray(network_input(images, "tensorflow"))
    rows, columns = np.arange(299) * (shape[1] / 299), np.arange(299) * (shape[2] / 299)
    i, j = 100, 200
    top, left = int(rows[i]), int(columns[j])
    down, along = rows[i] - top, columns[j] - left
    four = (images[0, top : top + 2, left : left + 2, 0].astype(float) - 128) / 128
    value = (1 - down) * ((1 - along) * four[0, 0] + along * four[0, 1])
    value += down * ((1 - along) * four[1, 0] + along * four[1, 1])
    assert legacy[0, i, j, 0] == pytest.approx(value, abs=1e-5)


def test_other_files_are_refused_in_one_sentence(tensors, tmp_path):
    missing = {name: value for name, value in tensors.items() if not name.startswith("Mixed_7c.branch_pool")}
    first = {name: tensors[name] for name in list(tensors)[:3]}
    for bad, message in (
        (missing, "must contain Mixed_7c.branch_pool.bn.bias, Mixed_7c.branch_pool.bn.running_mean"),
        (tensors | {"AuxLogits.fc.weight": np.zeros((1008, 768))}, "got additionally AuxLogits.fc.weight"),
        (tensors | {"fc.weight": np.zeros((1000, 2048))}, "the weights of torchvision, whose network"),
        (tensors | {"fc.bias": np.zeros(7)}, r"fc.bias \[7\] for \[1008\]"),
        (tensors | {"Mixed_5b.branch1x1.bn.running_var": np.full(64, -1.0)}, "must not be negative"),
        (first, "and 469 more|and 466 more"),
    ):
        with pytest.raises(ValueError, match=message):
            inception_params(bad)
    (tmp_path / "no.pth").write_bytes(b"not a file of tensors")
    for path, message in (
        (tmp_path / "gone.pth", r"must be a file, got .*gone.pth"),
        (tmp_path / "no.pth", "an unknown format"),
    ):
        with pytest.raises(ValueError, match=message):
            read_inception(path)


@pytest.mark.slow
def test_as_a_feature_network_in_any_batch(file):
    network = inception_network(file)
    images = np.random.default_rng(3).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    whole, parts = extract_features(network, images, 3), extract_features(network, images, 2)
    assert whole.features.shape == (3, 2048) and whole.logits.shape == (3, 1008)
    np.testing.assert_allclose(whole.features, parts.features, atol=1e-5 * np.abs(whole.features).max())
    assert network.digest != inception_network(file, resize="tensorflow").digest


def test_the_classifier_of_digits_is_kept_and_knows_digits_it_never_saw(tmp_path):
    network = digit_network(tmp_path / "new" / "digits.safetensors")
    source = digits("test")
    images = np.rint(source.images * (255 / 16)).astype(np.uint8)
    seen = extract_features(network, images, 128)
    assert np.mean(seen.logits.argmax(axis=1) == source.labels) > 0.96
    assert seen.features.shape == (360, 64) and (seen.features.std(axis=0) > 0).all()
    # Enlarged by whole pixels, a digit is the same digit.
    larger = extract_features(network, images[:4].repeat(3, axis=1).repeat(3, axis=2), 4)
    np.testing.assert_allclose(larger.features, seen.features[:4], atol=1e-5)
    again = digit_network(tmp_path / "new" / "digits.safetensors")
    assert again.digest == network.digest
    with pytest.raises(ValueError, match="multiples of 8"):
        extract_features(network, np.zeros((1, 9, 8, 1), np.uint8), 1)
    write_tensors(tmp_path / "other.safetensors", {"x": np.zeros(2)})
    with pytest.raises(ValueError, match="must contain the digit classifier"):
        digit_network(tmp_path / "other.safetensors")
