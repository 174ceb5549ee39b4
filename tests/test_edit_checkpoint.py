"""Chains that are kept in a folder, of posteriors in closed form: interrupted anywhere, they give the same draws."""

from __future__ import annotations

import dataclasses
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_editing import MEAN, SIZE, VISIBLE, posterior_of

from starflow_jax.editing.chains import run_part
from starflow_jax.editing.posterior_sampling import ChainOptions, sample_posterior
from starflow_jax.editing.resuming import ChainsStopped, chain_folder

REQUEST = {"seed": 1, "y": "[2] 1a2b", "moves": "mala", "sigma": None}
# Four parts of burn-in, of which two anneal, and three with draws, of which the last has more than are asked for.
OPTIONS = ChainOptions(chains=3, candidates=2, draws=5, thin=2, burn_in=16, part=2)
PARTS, MOVES = 7, 4
Y = ((MEAN + np.linspace(-1.0, 1.0, 8).reshape(2, 4)).reshape(2, *SIZE) * VISIBLE).astype(np.float32)


def sampled(kept=None, progress=None, *, exact=Y, **changes):
    """Draws, by default where the visible values are held once the measurement has been annealed."""
    posterior = posterior_of(Y, free=None if exact is None else jnp.asarray(~VISIBLE))
    options = dataclasses.replace(OPTIONS, **changes)
    return sample_posterior(posterior, jax.random.key(3), SIZE, options, exact=exact, progress=progress, kept=kept)


def assert_equal(found, expected):
    for field in dataclasses.fields(expected):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name), err_msg=field.name)


@pytest.fixture(scope="module")
def straight():
    return sampled()


def terminate(reports):
    """Sends SIGTERM in the first part of a call; `reports` receives the numbers of moves."""

    def progress(moves):
        reports.append(moves)
        if moves == MOVES:
            signal.raise_signal(signal.SIGTERM)

    return progress


@pytest.mark.parametrize(
    "options",
    [
        {},
        *(
            pytest.param({"exact": None, **options}, marks=pytest.mark.slow)
            for options in ({}, {"moves": "both"}, {"moves": "latent-hamiltonian"}, {"anneal": False}, {"burn_in": 0})
        ),
    ],
    ids=str,
)
def test_chains_that_are_stopped_after_every_part_give_the_same_draws(options, straight, tmp_path):
    expected = sampled(**options) if options else straight
    parts = 3 if "burn_in" in options else PARTS
    programs = run_part._cache_size()
    for made in range(1, parts + 1):
        reports: list[int] = []
        with pytest.raises(ChainsStopped) as stopped, chain_folder(tmp_path, REQUEST, 1) as folder:
            sampled(folder.chains(0), terminate(reports), **options)
        assert (stopped.value.stopped_by, stopped.value.parts, stopped.value.total) == (signal.SIGTERM, made, parts)
        # What was made before is reported at once.
        assert reports == ([MOVES] if made == 1 else [(made - 1) * MOVES, MOVES])
    with chain_folder(tmp_path, REQUEST, 1) as folder:
        assert_equal(sampled(folder.chains(0), **options), expected)
    assert run_part._cache_size() == programs
    assert len(list(tmp_path.glob("state-*"))) == 1 and len(list(tmp_path.glob("draws-*"))) == 3


class Killed(Exception):
    pass


@pytest.mark.parametrize("part", [2, 6])
def test_chains_that_are_killed_in_a_part_continue_from_the_last_writing(part, straight, tmp_path):
    def progress(moves):
        made.append(moves)
        if len(made) == part:
            raise Killed

    made: list[int] = []
    with pytest.raises(Killed), chain_folder(tmp_path, REQUEST, 1, seconds=0.0) as folder:
        sampled(folder.chains(0), progress)
    # As a process that is killed while it writes leaves them.
    (tmp_path / f".state-0000-000007.{'0' * 32}.safetensors").write_bytes(b"half")
    (tmp_path / "draws-0000-000007.safetensors").write_bytes(b"not named")
    made, part = [], 0
    with chain_folder(tmp_path, REQUEST, 1) as folder:
        assert not list(tmp_path.glob(".state*")) and not (tmp_path / "draws-0000-000007.safetensors").exists()
        assert_equal(sampled(folder.chains(0), made.append), straight)
    assert sum(made) == PARTS * MOVES and made[0] > 0


def test_groups_that_are_done_are_read_and_what_is_short_is_written_once(straight, tmp_path):
    with chain_folder(tmp_path, REQUEST, 2) as folder:
        sampled(folder.chains(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "chains.json",
        "draws-0000-000007.safetensors",
        "state-0000-000007.safetensors",
    ]
    reports: list[int] = []
    with chain_folder(tmp_path, REQUEST, 2) as folder:
        assert_equal(sampled(folder.chains(0), reports.append), straight)
        assert reports == [PARTS * MOVES]
        with pytest.raises(ChainsStopped) as stopped:
            sampled(folder.chains(1), terminate([]))
    assert (stopped.value.parts, stopped.value.total) == (PARTS + 1, 2 * PARTS)


def changed(record, **entries):
    return json.dumps({**record, **entries})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated state", "state-0000-000007.safetensors is damaged: its checksum is not that in chains.json"),
        ("flipped bit", "draws-0000-000007.safetensors is damaged: its checksum is not that in chains.json"),
        ("no draws", "draws-0000-000007.safetensors cannot be read: No such file or directory"),
        ("truncated record", "chains.json is not JSON"),
        ("no groups", "chains.json is no record of chains"),
        ("groups of words", "chains.json is no record of chains"),
        ("more parts", "chains.json is damaged: 8 parts of 7"),
        ("fewer draws", "chains.json is damaged: draws are missing"),
        ("out of order", "chains.json is damaged: its parts are out of order"),
        ("other chains", "draws-0000-000007.safetensors is damaged: its arrays are not those of these chains"),
        ("other seed", r"holds chains of another request: seed=2 instead of 1"),
        ("other files", "checkpoint must be a new folder or one of chains"),
        ("in use", "is in use by another process, which runs chains in it"),
    ],
)
def test_what_cannot_be_continued_is_refused_in_a_sentence(damage, message, straight, tmp_path):
    with chain_folder(tmp_path, REQUEST, 1) as folder:
        sampled(folder.chains(0))
    path, draws = tmp_path / "chains.json", tmp_path / "draws-0000-000007.safetensors"
    record = json.loads(path.read_text())
    entry, options = record["groups"][0], {}
    if damage == "truncated state":
        state = tmp_path / "state-0000-000007.safetensors"
        state.write_bytes(state.read_bytes()[:-9])
    elif damage == "flipped bit":
        content = bytearray(draws.read_bytes())
        content[-20] ^= 4
        draws.write_bytes(content)
    elif damage == "no draws":
        draws.unlink()
    elif damage == "truncated record":
        path.write_text(path.read_text()[:-20])
    elif damage == "no groups":
        path.write_text(changed(record, groups=None))
    elif damage == "groups of words":
        path.write_text(changed(record, groups=[{**entry, "parts": "all"}]))
    elif damage == "more parts":
        path.write_text(changed(record, groups=[{**entry, "parts": 8}]))
    elif damage == "fewer draws":
        path.write_text(changed(record, groups=[{**entry, "draws": []}]))
    elif damage == "out of order":
        path.write_text(changed(record, groups=[{**entry, "draws": [*entry["draws"], *entry["draws"]]}]))
    elif damage == "other chains":
        options = {"burn_in": 8, "draws": 9}  # as many parts, of which others have draws
    elif damage == "other seed":
        path.write_text(changed(record, request={**REQUEST, "seed": 2}))
    elif damage == "other files":
        path.unlink()
    with pytest.raises(ValueError, match=message) as refused, chain_folder(tmp_path, REQUEST, 1) as folder:
        if damage == "in use":
            with chain_folder(tmp_path, REQUEST, 1):
                pytest.fail("two processes have one folder")
        sampled(folder.chains(0), **options)
    assert len(str(refused.value).splitlines()) == 1


def test_addresses_are_refused_in_python():
    with pytest.raises(ValueError, match="checkpoint must be"), chain_folder("s3://bucket/chains", REQUEST, 1):
        pass
