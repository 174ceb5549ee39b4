"""The recorded T5 encoders (`NEIGHBOURS/*/captions.json`): ids, mask and states."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from recordings import relative_error
from safetensors.numpy import load_file

from starflow_jax.models.text import load_text_encoder

STATES_BAR = 1e-4


def pytest_generate_tests(metafunc):
    option = metafunc.config.getoption("goldens")
    root = metafunc.config.rootpath / "tests" / "goldens" if option is None else Path(option)
    found = [path.parent for path in sorted((root / "neighbours").glob("*/captions.json"))]
    metafunc.parametrize("recorded", found, ids=[path.name for path in found], indirect=True, scope="module")


@pytest.fixture(scope="module")
def recorded(request):
    folder = request.param
    captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
    return load_text_encoder(folder, captions["max_length"]), captions, load_file(folder / "io.safetensors")


def test_ids_and_mask(recorded):
    (encoder, _), captions, arrays = recorded
    ids = encoder.ids(captions["captions"])
    np.testing.assert_array_equal(ids, arrays["input_ids"])
    np.testing.assert_array_equal(encoder.tokenizer.mask(ids), arrays["attention_mask"])


def test_masked_states(recorded):
    (encoder, params), _, arrays = recorded
    states = jax.jit(encoder.encode)(params, arrays["input_ids"].astype(np.int32))
    assert relative_error(states, arrays["masked"]) <= STATES_BAR
