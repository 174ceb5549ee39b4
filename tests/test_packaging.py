"""`kernels/` and `experiments/` are subpackages of starflow_jax wherever it is imported from."""

import configparser
import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

REPORT = """
import sys
import starflow_jax, starflow_jax.kernels, starflow_jax.experiments
from starflow_jax import kernels, experiments
names = ("starflow_jax", "starflow_jax.kernels", "starflow_jax.experiments")
print(*(sys.modules[name].__spec__.origin for name in names), sep="\\n")
"""


def declared() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    return parser


def declared_folders() -> dict[str, str]:
    """Every declared package with its folder, relative to the repository."""
    options = declared()["options"]
    lines = options["package_dir"].strip().splitlines()
    mapped = dict([part.strip() for part in line.split("=")] for line in lines)
    names = options["packages"].split()
    return {name: _folder(name, mapped) for name in names}


def _folder(name: str, mapped: dict[str, str]) -> str:
    """The folder of a package: that of `package_dir`, or a folder inside of its parent's."""
    if name in mapped or "." not in name:
        return mapped.get(name, name)
    parent, _, last = name.rpartition(".")
    return f"{_folder(parent, mapped)}/{last}"


@pytest.mark.parametrize("name", ["kernels", "experiments"])
def test_mapped_folders_are_subpackages(name):
    module = importlib.import_module(f"starflow_jax.{name}")
    assert module.__name__ == f"starflow_jax.{name}"
    assert Path(module.__file__).parent.name == name


def test_every_package_on_disk_is_declared():
    folders = {path.parent for path in REPOSITORY.glob("starflow_jax/**/*.py")}
    on_disk = {folder.relative_to(REPOSITORY).as_posix() for folder in folders}
    assert on_disk <= set(declared_folders().values())


def test_every_declared_package_is_on_disk():
    missing = [f for f in declared_folders().values() if not (REPOSITORY / f / "__init__.py").is_file()]
    assert not missing


def test_only_one_top_level_name_is_declared():
    assert {name.split(".")[0] for name in declared_folders()} == {"starflow_jax"}


def test_versions_agree():
    assert importlib.import_module("starflow_jax").__version__ == declared()["metadata"]["version"]


def run_python(python, folder, code, **environment):
    """Runs code in `folder` and returns what it printed, line by line."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    finished = subprocess.run(
        [str(python), "-c", code],
        cwd=folder,
        env=inherited | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.split()


def test_a_checkout_works_without_installation():
    origins = run_python(sys.executable, REPOSITORY, REPORT)
    expected = [REPOSITORY / folder for folder in ("starflow_jax", "kernels", "experiments")]
    assert [Path(origin).parent for origin in origins] == expected


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository, because building leaves files behind."""
    copy = tmp_path_factory.mktemp("packaging") / "checkout"
    copy.mkdir()
    for name in ("starflow_jax", "kernels", "experiments"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(REPOSITORY / name, copy)
    return copy


def install(folder: Path, requirement: list[str]) -> tuple[Path, Path]:
    """Installs into a new environment that borrows this one's libraries; its interpreter and its packages."""
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages = Path(run_python(python, folder, "import sysconfig; print(sysconfig.get_path('purelib'))")[0])
    # A .pth file found through another one cannot be read: an editable install of this project in the
    # environment that runs the tests stays out of the way.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--ignore-installed"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, *offline, *requirement], check=True, timeout=300)
    return python, packages


@pytest.mark.slow
def test_wheel(checkout, tmp_path):
    python, packages = install(tmp_path / "environment", [str(checkout)])
    installed = {path.name for path in packages.iterdir()} - {"borrowed.pth", "__pycache__"}
    assert {name for name in installed if not name.endswith(".dist-info")} == {"starflow_jax"}

    origins = run_python(python, tmp_path, REPORT)
    inside = packages / "starflow_jax"
    assert [Path(origin).parent for origin in origins] == [inside, inside / "kernels", inside / "experiments"]

    # From the repository root the checkout is found first: everything must then come from there.
    origins = run_python(python, checkout, REPORT)
    expected = [checkout / folder for folder in ("starflow_jax", "kernels", "experiments")]
    assert [Path(origin).parent for origin in origins] == expected


@pytest.mark.slow
def test_editable_install(checkout, tmp_path):
    python, _ = install(tmp_path / "environment", ["--editable", str(checkout)])
    origins = run_python(python, tmp_path, REPORT)
    expected = [checkout / folder for folder in ("starflow_jax", "kernels", "experiments")]
    assert [Path(origin).parent for origin in origins] == expected
    find = "import importlib.util; print(importlib.util.find_spec('kernels'))"
    assert str(checkout) not in " ".join(run_python(python, tmp_path, find))
