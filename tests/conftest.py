"""Options and fixtures shared by all tests."""

import atexit
import os
import shutil
import sys
import tempfile
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


def _share_compilations() -> None:
    """Sets a folder of compiled programs that all processes of this test session share, those that tests start too.

    Set JAX_COMPILATION_CACHE_DIR to a folder that lasts, to share them with later sessions as well.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="compiled-programs-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # in the process that made it: workers inherit it
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


_share_compilations()

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


@pytest.fixture(scope="module", autouse=True)
def programs_end_with_their_module():
    """Every compiled program holds memory maps, of which the system allows a process some ten thousands."""
    yield
    import gc

    import jax

    jax.clear_caches()
    gc.collect()
