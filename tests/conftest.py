"""Options and fixtures shared by all tests."""

import gc
import os
import sys
from importlib.metadata import version
from pathlib import Path

import jaxtyping
import pytest
from jaxtyping import install_import_hook

# A machine's accelerator would change rounding: the bars of these tests are float32 on a CPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests compile hundreds of tiny programs and hardly run them: a compiler that optimises little takes a third of
# the time. Set XLA_FLAGS (to nothing, say) to test what users run.
_QUICK_COMPILE = "--xla_backend_optimization_level=0"
if version("jax").startswith("0.10."):  # later versions do not know it, and XLA ends the process at an unknown flag
    _QUICK_COMPILE += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", _QUICK_COMPILE)
# Without the Python tracebacks that JAX writes into every operation, a tenth of the time is saved.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# Commands that tests start as processes must not write compiled programs to the user's folder.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")

# Packages and modules whose annotations, shapes included, are checked at every call while the tests run.
CHECKED = (
    "starflow_jax.flows",
    "starflow_jax.kernels",
    "starflow_jax.models",
    "starflow_jax.nn",
    "starflow_jax.sampling",
    "starflow_jax.solvers",
)

# pytest imports this file before any test, in every process of pytest-xdist: the hook is in place before the package.
assert not any(name.split(".")[0] == "starflow_jax" for name in sys.modules), (
    "starflow_jax was imported before the hook"
)
install_import_hook(CHECKED, "checked_shapes.check")


def pytest_addoption(parser):
    parser.addoption(
        "--goldens",
        default=None,
        metavar="DIR",
        help="folder of recordings of the PyTorch originals (default: tests/goldens)",
    )


@pytest.fixture(scope="session")
def goldens_dir(pytestconfig) -> Path:
    """The folder of recordings."""
    option = pytestconfig.getoption("goldens")
    return Path(option) if option else Path(__file__).parent / "goldens"


@pytest.fixture
def shapes_unchecked():
    """Calls the functions as users do, without the import hook's checks: for tests of the functions' own messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def temporary_registrations():
    """Removes the implementations that a test registers.

    Those of the package stay, whenever they were registered: their modules are imported only once in a process.
    """
    yield
    from starflow_jax.core import registries
    from starflow_jax.core.registry import Registry

    for registry in vars(registries).values():
        if isinstance(registry, Registry):
            for name in set(registry._entries) - set(registry._declared()):
                del registry._entries[name]


# Full collections during a test would visit millions of objects of compiled programs each time: a fifth of all time.
gc.set_threshold(10_000, 20, 1_000_000)


@pytest.fixture(scope="module", autouse=True)
def memory_is_bounded():
    """Collects the garbage of a module, and frees compiled programs when there are many.

    Every compiled program holds memory maps, of which the system allows a process some 65,000. What survives a
    collection is not visited by the next one.
    """
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_text().count("\n") > 12_000:
        import jax

        gc.unfreeze()
        jax.clear_caches()
    gc.collect()
    gc.freeze()


@pytest.fixture
def folder_of_copies(tmp_path, monkeypatch):
    """The folder of local copies of stores; a folder in use is published every tenth of a second."""
    monkeypatch.setenv("STARFLOW_STORAGE", str(tmp_path / "storage"))
    monkeypatch.setenv("STARFLOW_STORAGE_SECONDS", "0.1")
    return tmp_path / "storage"
