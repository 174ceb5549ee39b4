"""Documents: links and navigation resolve, generated pages are complete, the site and the tutorials build."""

import dataclasses
import importlib.util
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from starflow_jax.cli.dispatch import COMMANDS
from starflow_jax.core import config
from starflow_jax.core.config import ExperimentConfig, TrainConfig
from starflow_jax.core.config.field_descriptions import field_descriptions

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
DOCUMENTS = [*REPOSITORY.glob("*.md"), *DOCS.glob("**/*.md")]
TUTORIALS = sorted(DOCS.glob("tutorials/*.ipynb"))
GENERATED = {DOCS / "reference" / name for name in ("commands.md", "configuration.md")}


@pytest.fixture(scope="module")
def pages():
    """The module that generates pages of the reference."""
    spec = importlib.util.spec_from_file_location("pages", DOCS / "_generate" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entries(node):
    """The files that a navigation names."""
    if isinstance(node, str):
        return [node]
    return [name for child in (node.values() if isinstance(node, dict) else node) for name in entries(child)]


def anchors(path):
    """The anchors of the headings of a document, as GitHub and MkDocs form them."""
    headings = re.findall(r"^#+ +(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (path.parent / name).resolve() if name else path
        assert file.exists() or file in GENERATED, f"{path.name} links to {target}"
        if anchor and file.suffix == ".md" and file not in GENERATED:
            assert anchor in anchors(file), f"{path.name} links to {target}"


def test_navigation_names_every_page():
    # hooks and extensions aside, the file is plain YAML
    named = entries(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert len(named) == len(set(named))
    pages = {path.relative_to(DOCS).as_posix() for path in [*DOCS.glob("**/*.md"), *TUTORIALS]}
    assert set(named) == pages | {path.relative_to(DOCS).as_posix() for path in GENERATED}


def configuration_classes():
    """The names of the dataclasses of `core/config` that an experiment file or a sweep holds."""
    found = set()
    for module in pkgutil.iter_modules(config.__path__):
        members = vars(importlib.import_module(f"{config.__name__}.{module.name}")).values()
        found |= {cls.__name__ for cls in members if inspect.isclass(cls) and dataclasses.is_dataclass(cls)}
    return {name for name in found if name.endswith(("Config", "Experiment")) or name.startswith("Sweep")}


def test_generated_pages_name_every_command_and_field(pages):
    commands, configuration = pages.commands_page(), pages.configuration_page()
    assert re.findall("^## `starflow (.*)`$", commands, re.MULTILINE) == list(COMMANDS)
    assert "`--workdir" in commands
    for cls in (ExperimentConfig, TrainConfig):
        section = configuration.split(f"## `{cls.__name__}`")[1].split("\n## ")[0]
        assert all(f"| `{field.name}` |" in section for field in dataclasses.fields(cls))
    # SourceConfig is the part that DataConfig and ComponentConfig share.
    assert set(re.findall(r"^## `(\w+)`", configuration, re.MULTILINE)) == configuration_classes() - {"SourceConfig"}


def test_every_field_is_described(pages):
    for _, cls in pages.CONFIGURATION:
        assert {field.name for field in dataclasses.fields(cls)} == set(field_descriptions(cls)), cls.__name__


def test_readme_is_short_and_keeps_its_commands():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    assert "pip install -e . && starflow demo" in text
    assert "pip install -e '.[test]' && pytest" in text


def test_tutorials_are_small_and_executed():
    assert len(TUTORIALS) == 9
    for path in TUTORIALS:
        assert path.stat().st_size < 300_000
        assert '"execution_count": null' not in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in ("index.html", "reference/api/index.html", "reference/commands/index.html"):
        assert (tmp_path / "site" / page).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_run(path, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    folder = tmp_path / "docs" / "tutorials"
    folder.mkdir(parents=True)
    for name in ("experiments", "tests"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    shutil.copy(path, folder)
    notebook = nbformat.read(folder / path.name, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(folder)}}).execute()
