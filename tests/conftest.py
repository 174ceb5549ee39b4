"""Options and fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

# A machine's accelerator would change rounding: the bars of these tests are float32 on a CPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests compile hundreds of tiny programs and hardly run them: a compiler that optimises little takes a third of
# the time. Set XLA_FLAGS (to nothing, say) to test what users run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")


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
