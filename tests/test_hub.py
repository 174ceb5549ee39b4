"""Models on the Hugging Face Hub: addresses, what is copied, publishing and reading back, against a fake Hub."""

import argparse
import dataclasses
import json

import numpy as np
import pytest
from fake_hub import TOKEN, running
from random_flows import CLASSES, random_flow
from sweep_runs import params_of, write_run

import starflow_jax as sf
from starflow_jax.cli.dispatch import main
from starflow_jax.cli.options.stored import PublishedOption
from starflow_jax.cli.staging import run_staged
from starflow_jax.core.config import DataConfig
from starflow_jax.core.storage import hub_client
from starflow_jax.core.storage.copies import local_path, one_step
from starflow_jax.core.storage.hub_addresses import HubAddress, is_hub_address
from starflow_jax.core.storage.hub_copies import fetch_hub
from starflow_jax.core.storage.places import shown
from starflow_jax.core.storage.retries import Retries, StoreError
from starflow_jax.hub import upload
from starflow_jax.hub.model_opening import local_model
from starflow_jax.hub.published_folder import description, public_config
from starflow_jax.hub.publishing import PublishRequest, publication_outline, publish
from starflow_jax.hub.run_files import frozen_files, run_files

REPO = "tester/tiny-flow"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with running(tmp_path_factory.mktemp("hub")) as fake:
        yield fake


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    data = DataConfig(source="npz", path="/home/alice/photos", levels=16, label_drop=0.1)
    params = {step: params_of(random_flow(CLASSES, step)) for step in (2, 4)}
    folder = write_run(tmp_path_factory.mktemp("runs") / "tiny", CLASSES, data, params)
    (folder / "metrics.csv").write_text("step,loss,bits_per_dim\n2,1.5,3.25\n4,1.25,\n")
    return folder


@pytest.fixture(scope="module")
def published(hub, workdir):
    """The address of the run on the Hub, with its commit; shards are small."""
    done = publish(PublishRequest("mit", workdir, to=HubAddress(REPO), shard_size=1e-5, notes="Tiny pictures only."))
    assert set(done.files) == set(hub.files(REPO)) - {".gitattributes"}
    return done.address


@pytest.mark.parametrize(
    "text, expected",
    [
        ("hf://org/name", HubAddress("org/name")),
        ("hf://org/name@v1.0/vae/", HubAddress("org/name", "v1.0", "vae")),
        ("hf://org/name@refs/pr/3/a.pth", HubAddress("org/name", "refs/pr/3", "a.pth")),
        ("hf://org/name@a%2Fb", HubAddress("org/name", "a/b")),
    ],
)
def test_an_address_has_a_repository_a_revision_and_a_file(text, expected):
    assert HubAddress.parse(text) == expected and is_hub_address(text)
    assert HubAddress.parse(str(expected)) == expected
    assert not is_hub_address("hf://datasets/org/name/x.parquet") and not is_hub_address("gs://org/name")


@pytest.mark.parametrize(
    "text",
    ["hf://org", "hf://org/..", "hf://org/name/../x", "hf://or--g/name", "hf://org/.name", "hf://org/name@",
     "hf:/org/name", "hf://org/name@a..b", "hf://org/name?token=x", "hf://user:pw@org/name", "hf://org/na me",
     "hf://org/" + "n" * 99],
)  # fmt: skip
def test_a_bad_address_is_refused_before_any_call(text, capsys):
    with pytest.raises(ValueError, match="must be"):
        HubAddress.parse(text)
    assert main(["sample", "--model", text, "--out", "x.png"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("starflow: --model must be") and message.count("\n") == 1


def test_a_published_run_is_safetensors_with_a_card_and_without_the_paths_of_the_machine(hub, published):
    files = hub.files(REPO)
    shards = sorted(name for name in files if name.startswith("model-"))
    assert len(shards) > 1 and set(json.loads(files["model.safetensors.index.json"])["weight_map"].values()) == set(
        shards
    )
    assert set(hub.lfs) and all(files[name] in hub.lfs.values() for name in shards)
    assert b"alice" not in b"".join(files.values()) and b'"path": "photos"' in files["config.json"]
    card = files["README.md"].decode()
    assert card.startswith("---\nlicense: mit\nlibrary_name: starflow_jax\n")
    for text in (
        f"hf://{REPO}",
        "Tiny pictures only.",
        "loss 1.25 (step 4), bits/dim 3.25 (step 2)",
        "7,216",
        "3 classes",
    ):
        assert text in card
    assert json.loads(files["starflow.json"])["step"] == 4


def test_the_parameters_come_back_bit_for_bit_and_the_run_records_its_commit(hub, published, workdir):
    ours, theirs = sf.from_pretrained(workdir), sf.from_pretrained(f"hf://{REPO}")
    flat = [np.asarray(leaf) for leaf in _leaves(ours.params)]
    back = [np.asarray(leaf) for leaf in _leaves(theirs.params)]
    assert len(flat) == len(back) and all(a.tobytes() == b.tobytes() for a, b in zip(flat, back, strict=True))
    assert theirs.config.flow == ours.config.flow and theirs.step == ours.step == 4
    origin = json.loads((theirs.workdir / "origin.json").read_text())
    assert origin == {"from": str(published)} and published.revision == hub.branches[REPO, "main"]
    assert shown(theirs.workdir) == str(published)
    before = len(hub.requests)
    assert sf.from_pretrained(str(published)).workdir == theirs.workdir
    assert len(hub.requests) == before  # a commit never changes


def _leaves(tree):
    return [leaf for name in sorted(tree) for leaf in _leaves(tree[name])] if isinstance(tree, dict) else [tree]


def test_only_files_that_are_safe_for_everybody_are_copied_unless_one_is_named(hub):
    files = {"a.json": b"{}", "b.bin": b"b", "c.py": b"import os", "sub/d.txt": b"d", "checkpoints/1/params/d/0": b"x",
             "checkpoints/1/x.pkl": b"p"}  # fmt: skip
    hub.commit("tester/files", files)
    address = HubAddress("tester/files")
    copy = fetch_hub(address)
    names = {path.relative_to(copy.path).as_posix() for path in copy.path.rglob("*") if path.is_file()}
    assert names == {"a.json", "sub/d.txt", "checkpoints/1/params/d/0"}
    assert local_path("hf://tester/files/sub").joinpath("d.txt").read_bytes() == b"d"
    assert local_path("hf://tester/files/b.bin").read_bytes() == b"b"
    assert str(local_path("hf://tester/files/b.bin:0.5")).endswith("b.bin:0.5")
    for name, sentence in (
        ("c.py", "must end in"),
        ("nothing", "names nothing"),
        ("checkpoints/1/x.pkl", "must end in"),
    ):
        with pytest.raises(ValueError, match=sentence):
            local_path(f"hf://tester/files/{name}")


def test_names_that_leave_the_folder_are_refused(hub):
    hub.commit("tester/hostile", {"../../x.json": b"{}"})
    with pytest.raises(ValueError, match="names of files, or a commit, that cannot be read"):
        local_path("hf://tester/hostile")


def test_a_revision_is_pinned_and_a_branch_is_asked_again(hub):
    first = hub.commit("tester/moving", {"a.txt": b"1"})
    assert fetch_hub(HubAddress("tester/moving")).address.revision == first
    second = hub.commit("tester/moving", {"a.txt": b"2"})
    assert local_path("hf://tester/moving/a.txt").read_bytes() == b"2"
    assert local_path(f"hf://tester/moving@{first}/a.txt").read_bytes() == b"1"
    assert shown(local_path("hf://tester/moving/a.txt")) == f"hf://tester/moving@{second}/a.txt"


def test_without_a_network_the_last_copy_is_used_where_that_is_asked_for(hub, monkeypatch):
    import huggingface_hub

    hub.commit("tester/cached", {"a.txt": b"1"})
    local_path("hf://tester/cached")
    hub.commit("tester/unknown", {"a.txt": b"1"})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    assert local_path("hf://tester/cached/a.txt").read_bytes() == b"1"
    with pytest.raises(ValueError, match="is not in the cache of huggingface_hub"):
        local_path("hf://tester/unknown")
    assert len(hub.requests) == before


@pytest.fixture
def impatient(monkeypatch):
    """No call is repeated."""
    monkeypatch.setattr(hub_client, "Retries", lambda attempts: Retries(attempts=1))


def test_what_the_hub_refuses_is_one_sentence_with_code_2_and_never_the_token(hub, published, monkeypatch, capsys):
    hub.commit("tester/private", {"a.txt": b"1"})
    hub.private.add("tester/private")
    cases = [
        ("hf://tester/missing", TOKEN, "does not exist on the Hub, or it is private"),
        ("hf://tester/private", "", "does not exist on the Hub, or it is private"),
        (f"hf://{REPO}@no-such-branch", TOKEN, "has a revision that the repository does not have"),
        (f"hf://{REPO}/no/file.json", TOKEN, "names nothing in the repository"),
        (f"hf://{REPO}", "hf_wrongwrongwrong", "the token .* is not valid"),
    ]
    for address, token, sentence in cases:
        monkeypatch.setenv("HF_TOKEN", token)
        assert main(["info", "--workdir", address]) == 2
        output = capsys.readouterr()
        assert output.err.count("\n") == 1 and address in output.err
        with pytest.raises(ValueError, match=sentence):
            local_path(address)
        assert "hf_w" not in output.err + output.out and TOKEN not in output.err + output.out


def test_a_hub_that_is_not_reached_is_code_75(hub, impatient, capsys, monkeypatch):
    monkeypatch.setattr(hub, "down", True)
    assert main(["info", "--workdir", "hf://tester/down"]) == 75
    message = capsys.readouterr().err
    assert "hf://tester/down cannot be reached: status 503" in message and message.count("\n") == 1
    with pytest.raises(StoreError):
        local_path("hf://tester/down")


def test_the_hub_is_not_written_by_other_commands(hub, capsys):
    assert main(["sample", "--workdir", "x", "--out", "hf://tester/x/out.png"]) == 2
    assert "--out must be a path or the address of a store" in capsys.readouterr().err


def test_without_the_package_one_sentence_names_it(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert main(["info", "--workdir", "hf://org/name"]) == 2
    assert "pip install 'starflow-jax[hub]'" in capsys.readouterr().err


def test_what_a_second_publication_does_not_have_is_removed_in_one_commit(hub, workdir):
    to = HubAddress("tester/twice")
    publish(PublishRequest("mit", workdir, to=to, shard_size=1e-5, private=True))
    assert to.repo in hub.private
    commits = sum(repo == to.repo for repo, _ in hub.commits)
    publish(PublishRequest("apache-2.0", workdir, to=to, step=2, message="Again"))
    assert sum(repo == to.repo for repo, _ in hub.commits) == commits + 1
    assert sorted(name for name in hub.files(to.repo) if "safetensors" in name) == ["model.safetensors"]


def test_a_folder_is_written_without_a_network_and_a_dry_run_writes_nothing(workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    options = ["publish", "--workdir", str(workdir), "--license", "mit", "--out", str(tmp_path / "out")]
    options += ["--shard-size", "1e-5"]
    assert main([*options, "--dry-run", "--json", str(tmp_path / "plan.json")]) == 0
    planned = json.loads((tmp_path / "plan.json").read_text())["files"]
    assert not (tmp_path / "out").exists()
    assert main([*options, "--json", str(tmp_path / "done.json")]) == 0
    files = json.loads((tmp_path / "done.json").read_text())["files"]
    assert set(planned) == set(files) == {path.name for path in (tmp_path / "out").iterdir()}
    assert sum(files.values()) == pytest.approx(sum(planned.values()), rel=0.3) and len(files) > 6
    capsys.readouterr()
    assert main(options) == 2
    assert "must be an empty or a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--license", "M I T", "--out", "new"], "--license must be the identifier of a licence"),
        (["--license", "mit"], "give --to, an address on the Hub, or --out, a folder, or both"),
        (["--license", "mit", "--out", "new", "--private"], "--private goes with --to"),
        (["--license", "mit", "--to", "hf://a/b@c"], "must be hf://ORG/NAME without a revision"),
        (["--license", "mit", "--out", "new", "--step", "3"], "step must be one of the checkpoints"),
    ],
)
def test_a_bad_request_to_publish_is_one_sentence(workdir, tmp_path, monkeypatch, options, sentence, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["publish", "--workdir", str(workdir), *options]) == 2
    message = capsys.readouterr().err
    assert sentence in message and message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_uploaded_without_a_login(hub, workdir, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    before = len(hub.requests)
    request = PublishRequest("mit", workdir, to=HubAddress("tester/none"))
    for action in (publish, publication_outline):
        with pytest.raises(ValueError, match="is written with a login"):
            action(request)
    assert len(hub.requests) == before


def test_weights_on_the_hub_are_ported_with_their_commit(hub, published, workdir, tmp_path, capsys):
    config = tmp_path / "config.py"
    values = json.loads((workdir / "config.json").read_text())
    config.write_text(
        f"from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({values!r})\n"
    )
    file = f"hf://{REPO}@main/model.safetensors.index.json"
    # Of the shards that the index names, the folder of the repository has all.
    assert main(["port", "--from", f"hf://{REPO}", "--config", str(config), "--workdir", str(tmp_path / "run"),
                 "--json", str(tmp_path / "port.json")]) == 0  # fmt: skip
    assert str(published) in capsys.readouterr().err
    assert json.loads((tmp_path / "port.json").read_text())["from"] == str(published)
    assert json.loads((tmp_path / "run" / "origin.json").read_text())["from"] == str(published)
    assert local_path(file).name == "model.safetensors.index.json"


@pytest.fixture
def folder(hub, published, tmp_path):
    """The published model as a folder of this machine."""
    for name, data in hub.files(REPO).items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_a_published_folder_becomes_a_run_also_among_several(folder):
    seen = []
    arguments = argparse.Namespace(
        command="sweep", workdir=[PublishedOption(folder)], run=lambda given: seen.extend(given.workdir) or 0
    )
    assert run_staged(arguments, lambda field: f"--{field}") == 0
    assert [path.name for path in (seen[0] / "checkpoints").iterdir()] == ["4"]


def test_a_hostile_experiment_names_no_place_outside_and_no_impossible_size(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"data": config["data"] | {"path": "../../secret"}}))
    assert sf.load_run(local_model(folder).path)[0].data.path == "secret"
    for field, value in (("num_blocks", 1000), ("layers_per_block", 1000)):
        (folder / "config.json").write_text(json.dumps(config | {"flow": config["flow"] | {field: value}}))
        with pytest.raises(ValueError, match=rf"flow.{field} of .* is 1,000, and its weights have"):
            local_model(folder)
    (folder / "config.json").write_text(json.dumps(config | {"name": "\x1b]0;x"}))
    with pytest.raises(ValueError, match=r"name of .* must have printable characters"):
        local_model(folder)


def test_of_a_published_average_no_other_parameters_are_read(folder, capsys):
    (folder / "starflow.json").write_text(description(4, True, {}))
    with pytest.raises(ValueError, match="holds the exponential moving average of the parameters alone"):
        local_model(folder, ema=False)
    assert main(["sample", "--model", str(folder), "--out", str(folder / "x.png"), "--no-ema"]) == 2
    assert "--no-ema" in capsys.readouterr().err
    (folder / "starflow.json").write_text(description(2**31, True, {}))
    with pytest.raises(ValueError, match=r"step of .* must be an integer from 0 to"):
        local_model(folder)


def test_of_a_run_only_what_is_read_again_is_published(tmp_path):
    kept = ["calibration.json", "checkpoints/4/params/d/0", "config.json", "inverse/checkpoints/90/ema/d/0",
            "inverse/config.json"]  # fmt: skip
    others = [".git/config", "wandb/run.txt", "profile/x.json", "eval.json", "train.log", "checkpoints/2/params/d/0",
              "checkpoints/4/opt_state/d/0", "checkpoints/4/.x/d", "checkpoints/notes.txt", "metrics.csv"]  # fmt: skip
    for name in [*kept, *others]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert run_files(tmp_path, 4) == kept
    assert frozen_files(tmp_path) == sorted(name for name in [*kept, *others] if name.endswith((".json", ".txt")))
    # The steps of the inverse are not those of the flow.
    assert one_step(kept, None) == one_step(kept, 4) == kept


def test_a_repository_of_somebody_else_or_a_public_one_is_not_written(hub, workdir, published):
    hub.commit("tester/theirs", {"config.json": b"{}", "model.safetensors": b"x"})
    hub.commit("tester/fresh", {".gitattributes": b"", "README.md": b"made by the page"})
    before = dict(hub.branches)
    request = PublishRequest("mit", workdir, to=HubAddress("tester/theirs"))
    with pytest.raises(ValueError, match=r"it holds other files, such as 'config\.json'"):
        publish(request)
    for repo in (REPO, "tester/fresh"):
        with pytest.raises(ValueError, match="is a public repository"):
            publish(dataclasses.replace(request, to=HubAddress(repo), private=True))
    assert hub.branches == before
    upload.check_repository(HubAddress("tester/fresh"), private=False, revision="new")
    upload.check_repository(HubAddress("tester/nothing"), private=True, revision=None)


def test_an_error_of_the_client_does_not_show_the_token(hub):
    def fails():
        raise ValueError(f"Illegal header value 'Bearer {TOKEN}'")

    with pytest.raises(ValueError) as caught:
        hub_client.called("hf://a/b", fails, Retries(attempts=1))
    assert TOKEN not in str(caught.value) and "hf://a/b" in str(caught.value)


def test_paths_of_one_machine_are_cut_and_addresses_on_the_hub_kept(workdir):
    config = sf.load_run(workdir)[0]
    assert public_config(config).data.path == "photos" and public_config(config).flow == config.flow
    for path, public in (
        ("s3://bucket/a/x", "x"),
        ("../..", "data"),
        ("a/x", "a/x"),
        ("hf://org/name", "hf://org/name"),
    ):
        data = dataclasses.replace(config.data, path=path, class_names=("/a", "..", "c"))
        found = public_config(dataclasses.replace(config, data=data)).data
        assert (found.path, found.class_names) == (public, data.class_names)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "run"])
def test_samples_of_a_published_model_are_the_same_bits(hub, workdir, tmp_path, form):
    to = f"hf://tester/round-{form}"
    assert main(["publish", "--workdir", str(workdir), "--license", "mit", "--form", form, "--to", to]) == 0
    common = ["--num", "6", "--seed", "3", "--batch", "6"]
    assert main(["sample", "--workdir", str(workdir), "--out", str(tmp_path / "a.npz"), *common]) == 0
    assert main(["sample", "--model", to, "--out", str(tmp_path / "b.npz"), *common]) == 0
    first, second = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
