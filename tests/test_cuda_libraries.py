"""The versions of CUDA's libraries are those that are installed, and none is loaded to find them."""

import importlib.metadata
import json
import sys
from types import SimpleNamespace

import pytest

from starflow_jax.kernels.cuda_libraries import CudaLibraries, cuda_libraries, find_libraries, release


def packages(**versions):
    """Stands for `importlib.metadata.version`."""

    def installed(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    return installed


def plugin(runtime=12090, cudnn=91002):
    return SimpleNamespace(cuda_runtime_get_version=lambda: runtime, cudnn_get_version=lambda: cudnn)


@pytest.mark.parametrize(
    ("compiler", "expected"),
    [
        ("12.8.61", 12080),
        ("12.8.93", 12080),
        ("12.9.41", 12090),  # CUDA 12.9.0
        ("12.9.86", 12091),  # CUDA 12.9.1
        ("12.6.85", 12060),
        ("13.0.88.post1", 13000),
        ("12.8", 12080),
        ("", 0),
        ("unknown", 0),
        ("1e9", 0),
    ],
)
def test_the_release_of_a_compiler(compiler, expected):
    assert release(compiler) == expected


def test_the_package_of_the_compiler_says_its_release():
    """Rather than the plugin, which knows the runtime's, 12090 with CUDA 12.9.0 and 12.9.1."""
    twelve, thirteen = {"nvidia-cuda-nvcc-cu12": "12.9.86"}, {"nvidia-cuda-nvcc": "13.0.88"}
    find = {"environment": {}}
    assert find_libraries(plugin(), installed=packages(**twelve), **find) == CudaLibraries(12091, 91002)
    assert find_libraries(plugin(), installed=packages(**twelve, **thirteen), **find).toolchain == 13000


def test_an_installation_that_the_environment_names_comes_first(tmp_path):
    found = {"installed": packages(**{"nvidia-cuda-nvcc-cu12": "12.9.86"}), "environment": {"CUDA_ROOT": str(tmp_path)}}
    versions = tmp_path / "version.json"
    versions.write_text(json.dumps({"cuda": {"version": "12.8.1"}, "cuda_nvcc": {"version": "12.8.93"}}))
    assert find_libraries(plugin(), **found).toolchain == 12080
    for text in ("", "{", "[]", "{}", '{"cuda_nvcc": 1}', '{"cuda_nvcc": {"version": [1]}}', "\x00"):
        versions.write_text(text)
        assert find_libraries(plugin(), **found).toolchain == 12090  # the plugin's
    versions.unlink()
    assert find_libraries(plugin(), **found).toolchain == 12090


def test_what_cannot_be_loaded_has_no_version():
    def fails():
        raise RuntimeError("libcudnn.so.9 was not found")

    broken = SimpleNamespace(cudnn_get_version=fails)  # and no function for the runtime
    nothing = {"installed": packages(), "environment": {"CUDA_ROOT": "/nowhere"}}
    assert find_libraries(broken, **nothing) == CudaLibraries()


def test_only_a_plugin_that_jax_has_imported_is_asked(monkeypatch):
    """Nothing is imported to look for one."""
    for name in ("jax_cuda12_plugin._versions", "jax_cuda13_plugin._versions"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = set(sys.modules)
    cuda_libraries.cache_clear()
    assert cuda_libraries() == CudaLibraries() and set(sys.modules) == before
    monkeypatch.setitem(sys.modules, "jax_cuda12_plugin._versions", plugin(cudnn=90800))
    cuda_libraries.cache_clear()
    assert cuda_libraries().cudnn == 90800
    cuda_libraries.cache_clear()
