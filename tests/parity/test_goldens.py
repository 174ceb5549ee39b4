"""Every recorded array of every recorded experiment, reproduced."""

import pytest
from operations import check_update_prior, inputs_of, run_experiment
from recordings import Folder, folders


def pytest_generate_tests(metafunc):
    option = metafunc.config.getoption("goldens")
    root = metafunc.config.rootpath / "tests" / "goldens" if option is None else None
    found = folders(root if root is not None else _folder(option))
    if "experiment" in metafunc.fixturenames:
        cases = [
            pytest.param(f, name, id=f"{f.name}-{name}", marks=() if is_quick(f.name, name) else pytest.mark.slow)
            for f in found
            for name in f.meta["experiments"]
        ]
        metafunc.parametrize("folder, experiment", cases)
    elif "folder" in metafunc.fixturenames:
        metafunc.parametrize("folder", found, ids=[f.name for f in found])


# The quick tests compare the recordings of one flow of each family, but for those that combine two things of which each
# is compared alone; of the others, what is computed forward, and a plain inverse of those in REVERSED.
WHOLE = ("rope_positions", "starflow_image", "starflow_video", "tarflow_cond")
REVERSED = ("starflow_condall", "tarflow_uncond", "tarflow_vp")
COMBINED = (
    "long_i2v",
    "long_w4c1",
    "i2v_reverse_nocfg",
    "i2v_jacobi",
    "image_jacobi",
    "jacobi_nocfg",
    "nonsquare_jacobi",
    "process_denoising_score",
)


def is_quick(folder: str, experiment: str) -> bool:
    """Whether the quick tests compare this recording."""
    if folder in WHOLE:
        return not experiment.startswith(COMBINED)
    return experiment in ("forward", "bpd", "train") or (experiment == "reverse" and folder in REVERSED)


def _folder(option):
    from pathlib import Path

    return Path(option)


@pytest.fixture(scope="session")
def compared() -> dict[str, dict[str, set[str]]]:
    """Arrays compared so far: folder, experiment, names."""
    return {}


def test_experiment(folder: Folder, experiment: str, compared):
    checks = run_experiment(folder, experiment)
    assert checks, "nothing was compared"
    compared.setdefault(folder.name, {})[experiment] = {check.array for check in checks}
    failed = [f"{c.array}: {c.error:.2e} > {c.bar:.0e}" for c in checks if not c.passed]
    assert not failed, "; ".join(failed)


def test_every_array_was_compared(folder: Folder, compared):
    """No recorded array is passed over in silence."""
    done = compared.get(folder.name, {})
    if set(done) != set(folder.meta["experiments"]):
        pytest.skip("not every experiment of this folder was selected")
    names = set().union(*done.values()) | inputs_of(folder)
    if "update_prior/var_after" in folder.arrays:
        checks = check_update_prior(folder)
        assert all(check.passed for check in checks)
        names |= {check.array for check in checks}
    assert set(folder.arrays) - names == set()
