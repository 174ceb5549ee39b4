"""Chains that are kept in a folder, of posteriors in closed form: interrupted anywhere, they give the same draws."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, random_flow
from storage_servers import BUCKET, server, skip_without
from sweep_runs import params_of, write_run
from test_editing import MEAN, SIZE, VISIBLE, posterior_of
from tqdm import tqdm

import starflow_jax as sf
from starflow_jax.cli.dispatch import main
from starflow_jax.cli.errors import CommandError
from starflow_jax.cli.options.outputs import check_new_folder
from starflow_jax.core.config import DataConfig
from starflow_jax.core.storage.addresses import Address
from starflow_jax.core.storage.store import open_store
from starflow_jax.editing.burn_in import first_state
from starflow_jax.editing.chain_request import chain_request
from starflow_jax.editing.chains import run_part
from starflow_jax.editing.operators import GivenOperator
from starflow_jax.editing.posterior_sampling import ChainOptions, sample_posterior
from starflow_jax.editing.request_values import same, summary
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
        assert stopped.value.stopped_by == signal.SIGTERM
        assert (stopped.value.moves, stopped.value.total) == (made * MOVES, parts * MOVES)
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
    assert (stopped.value.moves, stopped.value.total) == ((PARTS + 1) * MOVES, 2 * PARTS * MOVES)


def test_a_signal_ends_the_draws_before_the_first_moves_and_waits_for_moves(straight, tmp_path, monkeypatch, capsys):
    calls: list[int] = []

    def interrupted(*given):
        calls.append(len(calls))
        if len(calls) == 2:  # the first call finds the shapes alone
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the first draws went on")
        return first_state(*given)

    with monkeypatch.context() as patch:
        patch.setattr("starflow_jax.editing.posterior_sampling.first_state", interrupted)
        with pytest.raises(ChainsStopped) as stopped, chain_folder(tmp_path, REQUEST, 1) as folder:
            sampled(folder.chains(0))
    assert (stopped.value.stopped_by, stopped.value.moves) == (signal.SIGINT, 0) and not capsys.readouterr().err
    with pytest.raises(ChainsStopped), chain_folder(tmp_path, REQUEST, 2) as folder:
        sampled(folder.chains(0), terminate([]))
    assert "SIGTERM: the chains stop after the moves that are running, and are kept" in capsys.readouterr().err
    # A signal after the last moves of a group does not wait for those of the next one.
    with pytest.raises(ChainsStopped) as stopped, chain_folder(tmp_path, REQUEST, 2) as folder:
        assert_equal(sampled(folder.chains(0)), straight)
        signal.raise_signal(signal.SIGTERM)
        sampled(folder.chains(1))
    assert stopped.value.moves == PARTS * MOVES


def test_a_folder_that_can_no_longer_be_written_is_named_in_a_sentence(straight, tmp_path):
    path = tmp_path / "chains"
    with (
        pytest.raises(ValueError, match=r"checkpoint .*chains cannot be written: .*No such file"),
        chain_folder(path, REQUEST, 1) as folder,
    ):
        sampled(folder.chains(0), lambda moves: shutil.rmtree(path, ignore_errors=True))


def test_a_process_that_was_killed_in_its_first_writing_starts_again(tmp_path):
    (tmp_path / f".chains.{'0a' * 16}.json").write_text('{"request"')
    check_new_folder("--checkpoint", tmp_path, "chains.json")
    with pytest.raises(CommandError, match="which contains files"):
        check_new_folder("--out", tmp_path)
    with chain_folder(tmp_path, REQUEST, 1):
        assert [file.name for file in tmp_path.iterdir()] == ["chains.json"]


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
        ("infinite parts", "chains.json is no record of chains: .*inf is not of the type int"),
        ("a request of pairs", "chains.json is no record of chains: .* is not of the type dict"),
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
    elif damage == "infinite parts":
        path.write_text(changed(record, groups=[{**entry, "parts": float("inf")}]))
    elif damage == "a request of pairs":
        path.write_text(changed(record, request=[[1, 2]]))
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


# What follows is of a run: `starflow edit --checkpoint`, and `sf.restore`, with the same programs.
OF_RUN = ChainOptions(chains=3, candidates=2, draws=4, thin=1, burn_in=8, moves="latent-hamiltonian", leapfrog=2)
EDIT = ["edit", "inpaint", "digits.npz", "--workdir", "run", "--mask", "half:left", "--class", "1"]
EDIT += ["--chains", "3", "--candidates", "2", "--steps", "4", "--burn-in", "8"]
EDIT += ["--moves", "latent-hamiltonian", "--leapfrog", "2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a run on images, and images."""
    home = tmp_path_factory.mktemp("chains")
    write_run(home / "run", CLASSES, DataConfig(label_drop=0.1, levels=17), {4: params_of(random_flow(CLASSES))})
    images = np.random.default_rng(0).integers(17, size=(2, 4, 4, 1)).astype(np.uint8)
    np.savez(home / "digits.npz", image=images, levels=17)
    return home


@pytest.fixture(scope="module")
def run(home):
    return sf.from_pretrained(home / "run")


def stopped_and_continued(checkpoint, capsys, between=lambda: None):
    """Runs the command without an interruption and with one; compares the results."""
    assert main([*EDIT, "--out", "straight.npz"]) == 0
    kept = [*EDIT, "--out", "continued.npz", "--checkpoint", checkpoint]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tqdm, "update", lambda bar, moves: signal.raise_signal(signal.SIGTERM))
        assert main(kept) == 0
    assert "stopped by SIGTERM at move 4 of 12; a checkpoint is saved and the same command" in capsys.readouterr().err
    assert not Path("continued.npz").exists()
    between()
    assert main(kept) == 0
    straight, continued = np.load("straight.npz"), np.load("continued.npz")
    for array in straight.files:
        np.testing.assert_array_equal(continued[array], straight[array])


def test_the_command_continues_chains_after_sigterm_to_the_same_draws(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    stopped_and_continued("chains", capsys)


@pytest.mark.slow
def test_the_command_keeps_chains_in_a_bucket_and_another_machine_continues_them(home, tmp_path, monkeypatch, capsys):
    skip_without("s3")
    monkeypatch.chdir(home)
    Path("continued.npz").unlink(missing_ok=True)
    address = f"s3://{BUCKET}/chains"
    with server("s3", tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("STARFLOW_STORAGE", str(tmp_path / "a"))

        def move():
            names = open_store(Address.parse(address)).list()
            assert {"chains.json", "state-0000-000001.safetensors"} <= set(names)
            os.environ["STARFLOW_STORAGE"] = str(tmp_path / "b")

        stopped_and_continued(address, capsys, move)
        assert main([*EDIT, "--out", f"s3://{BUCKET}/x", "--checkpoint", f"s3://{BUCKET}/x/chains"]) == 2
        assert f"--out 's3://{BUCKET}/x'" in capsys.readouterr().err


@pytest.mark.slow
def test_groups_of_a_restoration_continue_and_every_changed_argument_is_refused_by_name(run, tmp_path):
    y = np.random.default_rng(1).uniform(-1.0, 1.0, (4, 4, 4, 1)).astype(np.float32)
    given = {"operator": sf.Mask(np.arange(4)[:, None] > 1), "options": OF_RUN, "seed": 3, "rows": 6, "cond": [1] * 4}
    straight = sf.restore(run, y, **given)
    with pytest.raises(ChainsStopped) as stopped:
        made: list[int] = []

        def progress(moves):
            made.append(moves)
            if len(made) == 5:  # the second part of the second group
                signal.raise_signal(signal.SIGINT)

        sf.restore(run, y, **given, progress=progress, checkpoint=tmp_path)
    assert (stopped.value.moves, stopped.value.total) == (20, 24)
    other = y.copy()
    other[3, 1, 3] += 1 / 127.5
    changes = {
        "y": {"y": other},
        "operator": {"operator": sf.Mask(np.arange(4)[:, None] > 2)},
        "cond": {"cond": [1, 1, 1, 2]},
        "leapfrog": {"options": dataclasses.replace(OF_RUN, leapfrog=3)},
        "seed": {"seed": np.int64(4)},
        "sigma": {"sigma": 0.5},
        "rows": {"rows": 3},
    }
    for name, change in changes.items():
        with pytest.raises(ValueError, match=f"another request: (.*, )?{name}=.* instead of"):
            sf.restore(run, **{"y": y, **given, **change}, checkpoint=tmp_path)
    # Numbers of NumPy are those of Python, and measurements may be rounded in another way.
    again = {**given, "seed": np.int64(3), "options": dataclasses.replace(OF_RUN, chains=np.int64(3))}
    for measured in (y, y * np.float32(1 + 2e-7)):
        continued = sf.restore(run, measured, **again, checkpoint=tmp_path)
        np.testing.assert_array_equal(continued.draws.x, straight.draws.x)


def test_the_request_of_chains_names_what_draws_depend_on(run):
    model, y = sf.distribution(run), np.zeros((2, 4, 4, 1), np.float32)
    mask = sf.Mask(np.arange(4)[:, None, None] > 1)

    def request(run=run, y=y, operator=mask, cond=None, options=OF_RUN):
        return chain_request(run, model, y, operator, cond, options, seed=np.int64(1))

    first = request()
    assert json.loads(json.dumps(first)) == request() == first
    other = dataclasses.replace(run, step=5, params=jax.tree.map(lambda leaf: leaf + 1e-6, run.params))
    found = {
        "y": request(y=y + 1e-6),
        "operator": request(operator=sf.Mask(~mask.visible)),
        "cond": request(cond=[1, 2]),
        "moves": request(options=dataclasses.replace(OF_RUN, moves="langevin")),
        "burn_in": request(options=dataclasses.replace(OF_RUN, burn_in=9)),
        "parameters run_step": request(run=other),
    }
    for names, changed_one in found.items():
        assert [name for name in sorted(first) if changed_one[name] != first[name]] == names.split()
    conditions = [request(cond=cond)["cond"] for cond in (None, "any", [1, 2], [2, 1], ["a", "b"], ["a", "c"])]
    assert len(set(conditions)) == len(conditions) and request(cond=np.asarray([1, 2]))["cond"] == conditions[2]
    functions = [request(operator=GivenOperator("f", function))["operator"] for function in (jnp.sin, jnp.tanh)]
    assert functions[0] != functions[1]


def test_arrays_of_requests_are_the_same_up_to_rounding_and_no_further():
    large = np.random.default_rng(0).uniform(-1, 1, (4, 256, 256, 3)).astype(np.float32)
    rounded, changed_one = large * (1 + 3e-7 * np.random.default_rng(1).standard_normal(large.shape)), large.copy()
    changed_one[2, 100, 7, 1] += 1 / 127.5
    first = summary("y", large)
    assert same(json.loads(json.dumps(summary("y", rounded))), first)
    others = [summary("y", changed_one), summary("z", large), summary("y", large[None]), None, {"of": 1, "sums": 2}]
    others += [{**first, "sums": first["sums"][:-1]}, {**first, "sums": [*first["sums"][:-1], float("inf")]}]
    assert not any(same(one, first) for one in others)
