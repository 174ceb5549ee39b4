"""Checkpoints are restored exactly, or refused with one sentence."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from starflow_jax.core.config import DataConfig, ExperimentConfig, FlowConfig, TrainConfig, to_json
from starflow_jax.training.checkpoints.digests import digest
from starflow_jax.training.checkpoints.manager import Checkpoints, abstract_state
from starflow_jax.training.checkpoints.retention import NewestAndBest
from starflow_jax.training.checkpoints.run_loading import load_run
from starflow_jax.training.checkpoints.workdir import claim_workdir, read_config

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
    """A state with random contents, all of which must be restored."""
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda leaf: jnp.asarray(rng.integers(0, 99, leaf.shape), leaf.dtype), abstract_state(config))
    return state.replace(step=jnp.asarray(step, jnp.int32))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


@pytest.fixture
def saved(saved_once, tmp_path):
    """A run with checkpoints at steps 2, 4 and 6, of which two are retained."""
    return shutil.copytree(saved_once, tmp_path / "run")


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved") / "run"
    claim_workdir(workdir, CONFIG)
    with Checkpoints(workdir, CONFIG, write=True) as checkpoints:
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
    with Checkpoints(tmp_path, CONFIG, write=True) as checkpoints:
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
    with pytest.raises(ValueError, match=r"workdir .*nothing contains no training run"):
        load_run(tmp_path / "nothing")
    claim_workdir(tmp_path / "fresh", CONFIG)
    with pytest.raises(ValueError, match="contains no training run"):
        load_run(tmp_path / "fresh")
    assert not (tmp_path / "fresh" / "checkpoints").exists()


def test_inference_opens_the_parameters_and_nothing_else(saved):
    for name in ("opt_state", "rest", "params", "loader"):
        shutil.rmtree(saved / "checkpoints" / "6" / name)
    assert_same(load_run(saved)[2], state_of(CONFIG, 6, seed=6).ema)
    with pytest.raises(ValueError, match="checkpoints/6 is damaged: it has no params"):
        load_run(saved, ema=False)
    with Checkpoints(saved, CONFIG) as checkpoints, pytest.raises(ValueError, match="6 is damaged: it has no loader"):
        checkpoints.restore(abstract_state(CONFIG))


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def truncate(folder):
    for path in folder.rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# the reader threads of damaged arrays outlive the error and raise exceptions of their own
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda step: truncate(step / "ema"), "is damaged or of another model: its ema cannot be read"),
        (lambda step: [path.unlink() for path in (step / "ema").rglob("d/*")], "its ema cannot be read"),
        (lambda step: (step / "ema" / "_METADATA").write_text("{}"), "its ema cannot be read"),
        (lambda step: shutil.rmtree(step / "ema"), "is damaged: it has no ema"),
        (lambda step: shutil.rmtree(step / "digests"), "is not a starflow checkpoint, or is incomplete"),
        (lambda step: (step / "digests" / "metadata").write_text("[1]"), "is damaged: its digests are not a table"),
        (lambda step: (step / "config" / "metadata").write_bytes(b"\xff{"), "its config cannot be read"),
        (lambda step: (step / "config" / "metadata").write_text("{}"), "config does not match its checksum"),
        (lambda step: [shutil.rmtree(step), step.mkdir()], "is not a starflow checkpoint, or is incomplete"),
        (lambda step: [shutil.rmtree(step), step.write_text("")], "is a file"),
        (
            lambda step: [shutil.rmtree(step), (step.parent / "4").rename(step)],
            "has the name of another step; it is that of step 4",
        ),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused_by_one_sentence(saved, damage, sentence, capfd):
    damage(saved / "checkpoints" / "6")
    with pytest.raises(ValueError, match=rf"^checkpoint .*checkpoints/6 .*{sentence}") as error:
        load_run(saved)
    assert "\n" not in str(error.value)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_bit_may_change(saved):
    """The array format detects some flipped bits; only the checksum detects those inside the values."""
    message, rng = [], np.random.default_rng(1)
    for path in (saved / "checkpoints" / "6" / "ema").rglob("d/*"):
        whole = path.read_bytes()
        for bit in rng.integers(0, 8 * len(whole), 6):
            flip(path, int(bit))
            try:
                assert_same(load_run(saved)[2], state_of(CONFIG, 6, seed=6).ema)  # a bit that is never read
            except ValueError as error:
                message.append(str(error))
            path.write_bytes(whole)
    assert any("ema does not match its checksum" in text for text in message)


def test_a_checkpoint_of_another_run_is_refused(saved):
    wider = dataclasses.replace(CONFIG, flow=dataclasses.replace(CONFIG.flow, width=32))
    (saved / "config.json").write_text(to_json(wider))
    with pytest.raises(
        ValueError,
        match=r"6 is of another run: config\.flow\.width is 16 in the checkpoint and 32 in "
        r"this run",
    ):
        load_run(saved)


def test_every_bit_and_every_place_counts():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, jnp.bfloat16, np.int32, np.uint8, np.bool_):
        array = np.asarray(rng.integers(0, 2, (3, 5)), dtype)
        seen = {digest({"a": array}), digest({"b": array})}
        words = array.view(f"uint{8 * array.dtype.itemsize}")
        for bit in range(1 if dtype == np.bool_ else 8 * array.dtype.itemsize):
            changed = words.copy()
            changed[1, 2] ^= 1 << bit
            seen.add(digest({"a": changed.view(array.dtype)}))
        assert len(seen) == 2 + bit + 1
    ones = np.eye(4, dtype=np.float32)
    assert len({digest(np.roll(ones[0], shift)) for shift in range(4)}) == 4


def test_the_newest_and_the_best_stay():
    policy = NewestAndBest(2, 2, {10: 3.0, 20: 1.0, 30: 2.0, 40: 1.0, 60: 9.0})
    assert policy.retained([10, 20, 30, 40, 50, 60, 70]) == {20, 40, 60, 70}
    assert policy.retained([10]) == {10}
    assert NewestAndBest(1, 0, {}).retained([1, 2, 3]) == {3}


def test_the_best_stays_over_several_calls(tmp_path):
    config = dataclasses.replace(
        CONFIG, train=dataclasses.replace(CONFIG.train, keep=1, keep_best=1, best_metric="loss")
    )
    for steps in ((2, 4), (6, 8)):
        with Checkpoints(tmp_path, config, write=True) as checkpoints:
            for step in steps:
                loss = {2: 5.0, 4: float("nan"), 6: 1.0, 8: 2.0}[step]
                checkpoints.save(state_of(config, step), {}, metrics={"loss": loss}, wait=True)
        assert checkpoints.steps() == {4: [2, 4], 8: [6, 8]}[steps[-1]]


def test_a_workdir_belongs_to_one_configuration(tmp_path):
    claim_workdir(tmp_path / "run", CONFIG)
    slower = dataclasses.replace(CONFIG.train, lr=1e-4)
    with pytest.raises(
        ValueError,
        match=r"another configuration: config.train.lr is 0.001 in the folder and 0.0001 "
        r"in this call",
    ):
        claim_workdir(tmp_path / "run", dataclasses.replace(CONFIG, train=slower))
    assert read_config(tmp_path / "run") == CONFIG
    chattier = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, log_every=1))
    claim_workdir(tmp_path / "run", chattier)
    assert read_config(tmp_path / "run") == chattier


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not empty and contains no training run"):
        claim_workdir(tmp_path / "other", CONFIG)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        claim_workdir(tmp_path / "file", CONFIG)
    values = json.loads(to_json(CONFIG)) | {"speed": 1}
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="is not a configuration: config has no field 'speed'"):
        claim_workdir(tmp_path / "newer", CONFIG)
