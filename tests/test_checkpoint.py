"""Checkpoints come back as they were, or say in one sentence why not."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from starflow_jax.config import DataConfig, ExperimentConfig, FlowConfig, TrainConfig, to_json
from starflow_jax.training.checkpoint import (
    Checkpoints,
    abstract_state,
    claim_workdir,
    load_run,
    read_config,
)

CONFIG = ExperimentConfig(
    name="test",
    flow=FlowConfig(
        family="tarflow",
        channels=1,
        image_size=8,
        patch_size=4,
        width=16,
        num_blocks=1,
        layers_per_block=1,
        head_dim=16,
        num_classes=10,
    ),
    data=DataConfig(),
    train=TrainConfig(steps=8, batch_size=4, lr=1e-3, ema=0.9),
)


def state_of(config, step, seed=0):
    """A state with random contents: nothing about it may be lost."""
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda leaf: jnp.asarray(rng.integers(0, 99, leaf.shape), leaf.dtype), abstract_state(config))
    return state.replace(step=jnp.asarray(step, jnp.int32))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


@pytest.fixture
def saved(tmp_path):
    """A run with checkpoints at steps 2, 4 and 6, of which two are kept."""
    workdir = tmp_path / "run"
    claim_workdir(workdir, CONFIG)
    with Checkpoints(workdir, keep=2) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(state_of(CONFIG, step, seed=step), {"next_index": 10 * step})
    return workdir


def test_the_last_ones_are_kept_and_come_back_exactly(saved):
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == ["4", "6"]
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest_step() == 6
        for step in (4, 6):
            state, loader = checkpoints.restore(abstract_state(CONFIG), step)
            assert_same(state, state_of(CONFIG, step, seed=step))
            assert loader == {"next_index": 10 * step}


def test_a_saved_state_may_be_overwritten_at_once(tmp_path):
    state = state_of(CONFIG, 1)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state, {})
        jax.jit(lambda s: jax.tree.map(lambda a: a * 0, s), donate_argnums=0)(state)
        restored, _ = checkpoints.restore(abstract_state(CONFIG))
    assert_same(restored, state_of(CONFIG, 1))


def test_load_run_gives_the_running_mean_or_the_parameters(saved):
    config, definition, params, step = load_run(saved)
    assert config == CONFIG and step == 6 and hash(definition) is not None
    expected = state_of(CONFIG, 6, seed=6)
    assert_same(params, expected.ema)
    assert_same(load_run(saved, ema=False)[2], expected.params)


def test_no_run_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"workdir .*nothing holds no training run"):
        load_run(tmp_path / "nothing")
    claim_workdir(tmp_path / "fresh", CONFIG)
    with pytest.raises(ValueError, match="holds no"):
        load_run(tmp_path / "fresh")
    assert not (tmp_path / "fresh" / "checkpoints").exists()


# the readers of the damaged arrays outlive the refusal, and complain where nobody hears them
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["truncate", "garble", "loader"])
def test_a_damaged_checkpoint_is_one_sentence(saved, damage):
    folder = saved / "checkpoints" / "6"
    if damage == "loader":
        (folder / "loader" / "metadata").write_text("{")
    else:
        for path in (folder / "state").rglob("*"):
            if path.is_file() and path.parent.name == "d":
                data = path.read_bytes()
                path.write_bytes(data[: len(data) // 2] if damage == "truncate" else b"\x00" * len(data))
    with pytest.raises(ValueError, match=r"checkpoint .*checkpoints/6 is damaged") as error:
        load_run(saved)
    assert "\n" not in str(error.value)


def test_a_workdir_belongs_to_one_configuration(tmp_path):
    claim_workdir(tmp_path / "run", CONFIG)
    slower = dataclasses.replace(CONFIG.train, lr=1e-4)
    with pytest.raises(ValueError, match=r"another config: config.train.lr is 0.001 there and 0.0001 here"):
        claim_workdir(tmp_path / "run", dataclasses.replace(CONFIG, train=slower))
    assert read_config(tmp_path / "run") == CONFIG
    chattier = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, log_every=1))
    claim_workdir(tmp_path / "run", chattier)
    assert read_config(tmp_path / "run") == chattier


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not empty and holds no training run"):
        claim_workdir(tmp_path / "other", CONFIG)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        claim_workdir(tmp_path / "file", CONFIG)
    values = json.loads(to_json(CONFIG)) | {"speed": 1}
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="is not a configuration: config has no field 'speed'"):
        claim_workdir(tmp_path / "newer", CONFIG)
