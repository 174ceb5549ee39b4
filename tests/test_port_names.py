"""`starflow port --names`: files of other implementations by a table of names, to a run and back."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import load_config
from starflow_jax.flows.parameters import abstract
from starflow_jax.porting import open_tensors
from starflow_jax.porting.name_table import read_name_table
from starflow_jax.porting.renaming import check_rows, renamed, written_as
from starflow_jax.porting.tensor_names import entries, flatten
from starflow_jax.tensor_formats.tensors import LazyTensor, LeftAside
from starflow_jax.training import load_run

EXPERIMENTS, DOCS = (Path(__file__).parent.parent / name for name in ("experiments", "docs"))
IMAGE = (f"{EXPERIMENTS / 'starflow_3b_t2i.py'}:tiny", [])
MOLECULE = (
    f"{EXPERIMENTS / 'chain_molecule.py'}:tiny",
    [f"--config.flow.{field}" for field in ("layers_per_block=2", "head_dim=4", "heads=4", "kv_heads=2")],
)
LAYER, THERE = "blocks.{block}.attn_blocks.{layer}", "flows.{block}.net.{layer}"
QKV = {
    f"{LAYER}.attention.qkv.{kind}": [f"{THERE}.attn.{part}.{kind}" for part in ("q", "k", "v")]
    for kind in ("weight", "bias")
}
IGNORED = {"ignore": ["*.steps", "flows.{block}.mask", "*.a*.{block}"]}
IMAGE_TABLE = QKV | IGNORED | {"blocks.0.proj_in.weight": "first", f"{LAYER}.mlp.main.0.bias": f"{THERE}.ff.0.bias"}
MOLECULE_TABLE = QKV | IGNORED | {
    "var": "prior",
    "blocks.{block}.proj_in.weight": {"from": "flows.{block}.input", "transpose": True},
    "blocks.{block}.token_embed.table": "flows.{block}.atom.weight",
    "blocks.{block}.proj_out.weight": {"from": ["flows.{block}.log_scale", "flows.{block}.mean"], "transpose": True},
    f"{LAYER}.attention.query_norm.weight": f"{THERE}.attn.q_norm.weight",
    f"{LAYER}.mlp.norm.modulation.weight": [f"{THERE}.ff.{part}.weight" for part in ("scale", "shift", "gate")],
    f"{LAYER}.mlp.gate_proj.weight": f"{THERE}.ff.w{{layer}}.weight",
}  # fmt: skip
# The rows of queries, keys and values.
ROWS = {IMAGE[0]: None, MOLECULE[0]: (16, 8, 8)}


def tensors_of(config, overrides):
    """Random tensors of a flow by the names of this project."""
    flow = load_config(config, [one.removeprefix("--config.") for one in overrides]).flow
    rng = np.random.default_rng(0)
    return {
        entry.name: rng.standard_normal(entry.torch_shape).astype(np.float32)
        for entry in entries(abstract(flow)[1], additions=True)
    }


def foreign(tensors, table, rows):
    """The tensors as another implementation has them, named one by one."""
    result = dict(tensors)
    for name, value in table.items():
        if name == "ignore":
            continue
        value, transpose = (value["from"], value["transpose"]) if isinstance(value, dict) else (value, False)
        parts = value if isinstance(value, list) else [value]
        for block, layer in itertools.product(range(8), range(8)):
            tensor = result.pop(name.format(block=block, layer=layer), None)
            if tensor is None:
                continue
            cuts = np.cumsum(rows)[:-1] if rows is not None and ".qkv." in name else len(parts)
            for part, piece in zip(parts, np.split(tensor, cuts), strict=True):
                held = np.ascontiguousarray(piece.T if transpose else piece)
                result[part.format(block=block, layer=layer)] = held
    return result


def write(path, value):
    path.write_text(json.dumps(value))
    return path


def same(found, expected):
    return set(found) == set(expected) and all(found[name].tobytes() == expected[name].tobytes() for name in expected)


@pytest.mark.parametrize(
    ("config", "table"), [(IMAGE, IMAGE_TABLE), (MOLECULE, MOLECULE_TABLE)], ids=["image", "atoms"]
)
def test_round_trip_is_bit_exact(config, table, tmp_path, capsys):
    tensors = tensors_of(*config)
    other = foreign(tensors, table, ROWS[config[0]])
    assert not same(other, tensors)
    extra = {"flows.0.steps": np.ones(3, np.float32), "flows.1.mask": np.ones(2, np.float32), "x.ab.7": np.ones(1)}
    held = {f"model.net.{name}": value for name, value in (other | extra).items()}
    save_file(held | {"optimizer.step": np.ones(1, np.float32)}, tmp_path / "a.safetensors")
    names = str(write(tmp_path / "names.json", table))
    run, report = str(tmp_path / "run"), tmp_path / "report.json"
    arguments = ["--config", config[0], "--workdir", run, "--names", names, "--json", str(report), *config[1]]
    assert main(["port", "--from", str(tmp_path / "a.safetensors"), "--weights", "model.net", *arguments]) == 0
    figures = json.loads(report.read_text())
    assert figures["renamed"] == len(set(tensors) - set(other))
    assert figures["ignored"] == sorted(extra) and figures["left_aside"] == 1
    assert f"renamed {figures['renamed']} tensors by {names}" in capsys.readouterr().out

    ported, _, params, _ = load_run(tmp_path / "run")
    flat = flatten(params)
    for entry in entries(abstract(ported.flow)[1], additions=True):
        value = flat[entry.path] if entry.layer is None else flat[entry.path][entry.layer]
        np.testing.assert_array_equal(entry.to_torch(np.asarray(value)), tensors[entry.name])

    back = str(tmp_path / "back.pth")
    assert main(["port", "--workdir", run, "--to-torch", back, "--names", names, "--json", str(report)]) == 0
    assert json.loads(report.read_text())["renamed"] == figures["renamed"]
    opened = {name: tensor.read() for name, tensor in open_tensors(back).items()}
    assert same(opened, other)


@pytest.fixture(scope="module")
def atoms():
    """The tensors of the flow of a molecule."""
    overrides = [one.removeprefix("--config.") for one in MOLECULE[1]]
    return entries(abstract(load_config(MOLECULE[0], overrides).flow)[1], additions=True)


def test_modulations_are_scale_shift_and_gate(atoms):
    entry = next(one for one in atoms if one.name.endswith(".mlp.norm.modulation.weight"))
    kernel = np.arange(16 * 3 * 16, dtype=np.float32).reshape(entry.shape)
    for index in range(3):
        np.testing.assert_array_equal(entry.to_torch(kernel)[16 * index : 16 * (index + 1)], kernel[:, index].T)
    np.testing.assert_array_equal(entry.from_torch(entry.to_torch(kernel)), kernel)


def test_the_documented_names_and_shapes_are_those_of_such_a_flow(atoms, tmp_path):
    """docs/targets.md: a table with every name, and a table of names as an example."""
    section = (DOCS / "targets.md").read_text(encoding="utf-8").split("### Checkpoints of other implementations")[1]
    rows = re.findall(r"^\| `([^`]+)` \| `\[([^`]+)\]` \|", section, re.MULTILINE)
    sizes = {"N": 12, "C": 16, "H": 4, "G": 2, "d": 4, "F": 32, "K": 3}
    documented = {name: tuple(eval(f"[{shape}]", {}, sizes)) for name, shape in rows}
    expected = {re.sub(r"blocks\.\d+", "blocks.{block}", one.name, count=1): one.torch_shape for one in atoms}
    expected = {re.sub(r"attn_blocks\.\d+", "attn_blocks.{layer}", name): shape for name, shape in expected.items()}
    assert len(documented) == len(rows) and documented == expected
    (example,) = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    written = written_as(read_name_table(write(tmp_path / "names.json", json.loads(example))), atoms)
    assert all(one.named for one in written)
    tensors = {part.name: LazyTensor(part.torch_shape, part.dtype, np.zeros) for one in written for part in one.parts}
    table = read_name_table(tmp_path / "names.json")
    assert {name: one.shape for name, one in renamed(table, tensors).tensors.items()} == {
        one.name: one.torch_shape for one in atoms
    }


def of_file(**shapes):
    """Tensors of zeros by name and shape; `_` stands for a dot."""
    return {
        name.replace("_", "."): LazyTensor(shape, np.dtype(np.float32), lambda shape=shape: np.zeros(shape, np.float32))
        for name, shape in shapes.items()
    }


FILE = of_file(q_0=(4, 2), k_0=(4, 2), q_1=(4, 2), k_1=(4, 3), one=(2,), x_1=(3, 3), k_01=(4, 2))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "names.json is not JSON"),
        ("[]", r"must contain a JSON object of names, got \[\]"),
        ('{"a": "one", "a": "x.1"}', "it contains the key 'a' twice"),
        ('{"a": 1}', "'a' must be a name of a tensor or a list of names, got 1"),
        ('{"a": []}', r"'a' must be a name of a tensor or a list of names, got \[\]"),
        ('{"a": ["one", 2]}', "'a' must be a name of a tensor or a list of names"),
        ('{"a": {"from": "one", "flip": true}}', "'a' must be a name, a list of names, or"),
        ('{"a": {"from": "one", "transpose": 1}}', "'a' must be a name, a list of names, or"),
        ('{"a": ""}', "a name must not be empty"),
        ('{"a.{layer}": "q.0"}', r"'q.0' must have the placeholders of 'a.{layer}', {layer}, got none"),
        ('{"a": ["one", "q.{i}"]}', r"'q.{i}' must have the placeholders of 'a', none, got {i}"),
        ('{"a.{}": "q.{}"}', r"'a.{}' must have braces around the names of placeholders alone"),
        ('{"a.{i}": "q.{i"}', r"'q.{i' must have braces"),
        ('{"a.{i}1{j}": "q.{i}.{j}"}', r"'a.{i}1{j}' must have more than digits between two placeholders"),
        ('{"a": "__metadata__"}', "'__metadata__' must be a name that a file of tensors can hold"),
        (r'{"a": "\ud800"}', "must be a name that a file of tensors can hold"),
        ('{"ignore": ["*{a}*5"]}', r"'\*{a}\*5' must have more than digits between a placeholder and \*"),
        ('{"ignore": ["*0{a}"]}', r"'\*0{a}' must have more than digits between a placeholder and \*"),
        ('{"ignore": "one"}', "'ignore' must be a list of names, got 'one'"),
        ('{"a": "no", "b.{i}": "q.{i}", "c": ["nor", "x"]}', "the file does not have: no, nor, x; the first one in"),
        ('{"a.{i}": ["q.{i}", "x.{i}"]}', "names parts of tensors that the file does not have: x.0"),
        ('{"a.{i}": ["q.{i}", "k.{i}"]}', r"parts of a.1 must agree .* q.1 float32 \(4, 2\), k.1 float32 \(4, 3\)"),
        ('{"a": {"from": "one", "transpose": true}}', r"one must have 2 axes to be transposed, got shape \(2,\)"),
        ('{"a.{i}": "q.{i}", "a.0": "one"}', r"has two entries that give a.0: 'a.{i}' and 'a.0'"),
        ('{"a": "one", "b": "one"}', "takes the tensor one of the file twice: 'a' and 'b'"),
        ('{"a": ["one", "one"]}', "takes the tensor one of the file twice: 'a' and 'a'"),
        ('{"one": "x.1"}', "gives one another tensor of the file, which has one of this name already"),
        ('{"a": "one", "ignore": ["o*e"]}', "both takes and ignores the tensor one"),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit_a_file_are_refused(text, sentence, tmp_path):
    path = tmp_path / "names.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        renamed(read_name_table(path), FILE)


def test_integers_are_decimal_and_names_that_are_not_mentioned_stay(tmp_path):
    table = read_name_table(write(tmp_path / "names.json", {"a.{i}": "k.{i}", "ignore": ["x.{n}", "*n*", "*.x"]}))
    found = renamed(table, FILE)
    assert set(found.tensors) == {"a.0", "a.1", "k.01", "q.0", "q.1"}
    assert (found.count, found.ignored) == (2, ("one", "x.1"))
    aside = renamed(table, FILE, None, [LeftAside("k.7", "x.Y"), LeftAside("other", "Z")]).unread
    assert aside == (LeftAside("a.7", "x.Y"), LeftAside("other", "Z"))
    assert set(renamed(table, {f"net.ema.{name}": value for name, value in FILE.items()}, "net.ema").tensors) == set(
        found.tensors
    )
    with pytest.raises(
        ValueError, match="--weights must be what names of the file begin with, such as 'net', got 'ema'"
    ):
        renamed(table, {f"net.{name}": value for name, value in FILE.items()}, "ema")


def test_a_table_that_is_too_large_is_refused(tmp_path):
    with (tmp_path / "names.json").open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ValueError, match=f"must have at most {2**26} bytes, got {2**26 + 1}"):
        read_name_table(tmp_path / "names.json")


WEIGHT = "blocks.0.attn_blocks.0.attention.qkv.weight"


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"blocks.{block}.nothing": "x.{block}", "var": "y"}, "tensors that the flow does not have: blocks.{block}"),
        ({"var": "x", "blocks.0.proj_in.bias": "x"}, "gives the name x to two tensors of the file"),
        ({"var": "blocks.0.proj_in.bias"}, "gives the name blocks.0.proj_in.bias to two tensors"),
        ({"var": "x", "blocks.{i}.proj_in.bias": "b.{i}", "blocks.1.proj_in.bias": "c"}, "has two entries that give"),
        ({"var": ["x", "y", "z", "a", "b"]}, "divides var into 5 parts, which must be equal, got 12 rows"),
        ({WEIGHT: ["qk", "v"]}, r"must divide .*qkv.weight into queries, keys and values, of 16 \+ 8 \+ 8 rows, got 2"),
        ({"blocks.0.proj_in.bias": {"from": "x", "transpose": True}}, "bias must have 2 axes to be transposed, got"),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit_a_flow_are_refused(table, sentence, atoms, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        written_as(read_name_table(write(tmp_path / "names.json", table)), atoms)


def test_parts_are_queries_keys_and_values(atoms, tmp_path):
    table = read_name_table(write(tmp_path / "names.json", {WEIGHT: ["q", "k", "v"]}))
    found = renamed(table, of_file(q=(8, 16), k=(16, 16), v=(8, 16)))
    with pytest.raises(ValueError, match=r"must have 16 \+ 8 \+ 8 rows, got 8 \+ 16 \+ 8: q, k, v"):
        check_rows(table, found.rows, atoms)
    check_rows(table, renamed(table, of_file(q=(16, 16), k=(8, 16), v=(8, 16))).rows, atoms)


def test_what_does_not_fit_is_named_as_in_the_file_and_nothing_is_written(tmp_path, capsys):
    tensors = foreign(tensors_of(*MOLECULE), MOLECULE_TABLE, ROWS[MOLECULE[0]])
    tensors["flows.7.input"] = np.zeros((3, 16), np.float32)
    tensors["flows.0.atom.weight"] = np.zeros((2, 16), np.float32)
    del tensors["flows.1.net.1.ff.w1.weight"]
    save_file(tensors, tmp_path / "a.safetensors")
    names = str(write(tmp_path / "names.json", MOLECULE_TABLE))
    arguments = ["port", "--from", str(tmp_path / "a.safetensors"), "--config", MOLECULE[0], *MOLECULE[1]]
    run = ["--workdir", str(tmp_path / "run")]
    assert main([*arguments, *run, "--names", names]) == 2
    printed = capsys.readouterr().err
    gate = "blocks.1.attn_blocks.1.mlp.gate_proj.weight (32, 16) (in the file: flows.1.net.1.ff.w1.weight)"
    assert f"missing in the file: {gate}" in printed
    assert "unexpected in the file: blocks.7.proj_in.weight (16, 3) (in the file: flows.7.input)" in printed
    assert "blocks.0.token_embed.table has shape (2, 16) in the file, (3, 16) in the model" in printed
    for more, sentence in (
        ([], "flow.pixel_map must be None for files of the PyTorch originals"),
        (
            ["--names", names, "--infer"],
            "--infer reads the tensors of the originals alone and does not go with --names",
        ),
        (["--names", str(write(tmp_path / "empty.json", {"var": "nothing"}))], "file does not have: nothing"),
    ):
        assert main([*arguments, *run, *more]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["port", "--assemble", "x", "--names", names]) == 2
    assert "--names does not go with --assemble" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_recordings_are_verified_with_renamed_weights(goldens_dir, tmp_path, capsys):
    folder, table = goldens_dir / "tarflow_uncond", QKV | {"var": "prior"}
    save_file(foreign(load_file(folder / "weights.safetensors"), table, None), tmp_path / "a.safetensors")
    names = ["--names", str(write(tmp_path / "names.json", table))]
    assert main(["port", "--verify", str(folder), "--from", str(tmp_path / "a.safetensors"), *names]) == 0
    assert main(["port", "--verify", str(folder), *names]) == 2
    assert "--names has the names of tensors of --from, which is missing" in capsys.readouterr().err
