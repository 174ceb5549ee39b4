"""Imports run one way, from the package that a line names to the packages of the lines above it.

The order is the one that CONTRIBUTING.md states. Imports inside functions and under `TYPE_CHECKING` count, too.
"""

from __future__ import annotations

import ast
import functools
import graphlib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# From the bottom to the top; packages of one line do not import each other.
ORDER = (
    ("core",),
    ("kernels", "sharding", "tensor_formats", "media"),
    ("costs", "nn"),
    ("flows",),
    ("solvers", "models"),
    ("porting",),
    ("data",),
    ("training",),
    ("sampling",),
    ("compression", "evaluation", "hub"),
    ("api", "reconstruction", "sweeps", "planning", "post_training", "reports", "diagnosis"),
    ("targets", "editing"),
    ("experiments",),
    ("demos", "studio"),
    ("cli",),
    ("__main__",),
)


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name without `starflow_jax.`; benchmarks are scripts, not modules."""
    found = {}
    for path in REPOSITORY.glob("starflow_jax/**/*.py"):
        found[_name(path.relative_to(REPOSITORY / "starflow_jax"))] = path
    for folder in ("kernels", "experiments"):
        for path in (REPOSITORY / folder).glob("**/*.py"):
            if "benchmarks" not in path.parts:
                found[_name(path.relative_to(REPOSITORY))] = path
    return found


def _name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} must not use relative imports"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, inner = name.partition(".")
            if package != "starflow_jax":
                continue
            if inner in known:
                found.add(inner)
            elif inner.rpartition(".")[0] in known:
                found.add(inner.rpartition(".")[0])
    return found - {""}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """For every module the modules that it imports."""
    known = modules()
    return {name: imported(path, known) for name, path in known.items() if name}


def test_packages_import_those_below_them_alone(graph):
    rank = {package: number for number, packages in enumerate(ORDER) for package in packages}
    wrong = []
    for module, targets in graph.items():
        package = module.partition(".")[0]
        assert package in rank, f"ORDER must name the package {package}"
        for target in targets:
            other = target.partition(".")[0]
            if other != package and rank[other] >= rank[package]:
                wrong.append(f"{module} imports {target}")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_cycle_of_files(graph):
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a cycle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("package", sorted({package for packages in ORDER for package in packages} - {"__main__"}))
def test_no_cycle_of_subpackages(graph, package):
    graph_of_parts: dict[str, set[str]] = {}
    for module, targets in graph.items():
        if module.partition(".")[0] == package and module != package:
            part = ".".join(module.split(".")[:2])
            others = {".".join(target.split(".")[:2]) for target in targets if target.startswith(f"{package}.")}
            graph_of_parts.setdefault(part, set()).update(others - {part})
    try:
        graphlib.TopologicalSorter(graph_of_parts).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a cycle of sub-packages: {' -> '.join(error.args[1])}")


def test_contributing_states_the_order():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| `")]
    levels = [", ".join(f"`{package}`" for package in packages) for packages in ORDER[:-1]]
    assert [row for row in rows if row in levels] == levels


def test_names_that_experiments_import_exist():
    """The type checker does not read `experiments/`, most of which no quick test runs."""
    known, missing = modules(), []
    for path in sorted(REPOSITORY.glob("experiments/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("starflow_jax."):
                continue
            module = node.module.removeprefix("starflow_jax.")
            if module.startswith("experiments.benchmarks"):
                continue
            for alias in node.names:
                if f"{module}.{alias.name}" in known:
                    continue
                if module not in known or alias.name not in names_of(known[module]):
                    missing.append(f"{path.relative_to(REPOSITORY)}: {node.module}.{alias.name}")
    assert not missing


@functools.cache
def names_of(path: Path) -> frozenset[str]:
    """Every name that a module binds at its top level, or lists in a table of deferred names."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.If | ast.Try | ast.With):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Name):
                    found.add(inner.id)
                elif isinstance(inner, ast.alias):
                    found.add(inner.asname or inner.name)
                elif isinstance(inner, ast.Dict):
                    found |= {key.value for key in inner.keys if isinstance(key, ast.Constant)}
    return frozenset(found)
