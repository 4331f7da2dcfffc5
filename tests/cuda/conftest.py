"""The CUDA extension without a GPU: built by nvcc for reading, and built by the host's compiler for running."""

from __future__ import annotations

import ctypes
import sysconfig

import pytest
import torch
from cuda_harness import HOST, Build, Kernel, build_extension, compile_for_host, load_extension, read_kernels

from cofitune_fast.ops import cuda
from cofitune_fast.ops._registry import OPERATIONS, Backend


@pytest.fixture(scope="session")
def build(tmp_path_factory) -> Build:
    return build_extension(tmp_path_factory.mktemp("cuda-build"))


@pytest.fixture(scope="session")
def kernels(build) -> dict[tuple[str, str], Kernel]:
    return read_kernels(build)


@pytest.fixture(scope="session")
def emulated_extension(tmp_path_factory):
    """The CUDA extension with an emulated device; `launches()` counts what was launched."""
    pybind11 = pytest.importorskip("pybind11")
    includes = (HOST, pybind11.get_include(), sysconfig.get_path("include"))
    file = compile_for_host("emulated.cpp", tmp_path_factory.mktemp("emulated") / "_native_cuda.so",
                            "-fvisibility=hidden", *(f"-I{folder}" for folder in includes))
    module = load_extension(file, "emulated")
    module.launches = ctypes.CDLL(str(file)).emulated_launches
    return module


@pytest.fixture
def emulated(emulated_extension, monkeypatch):
    """Under backend="cuda" CPU tensors run emulated."""
    monkeypatch.setattr(cuda, "library", lambda: emulated_extension)
    monkeypatch.setattr(cuda, "place", lambda device: (0, 0))
    for name in ("masked_adamw_", "grad_norm"):
        backends = OPERATIONS[name].backends
        monkeypatch.setitem(backends, "cuda", Backend(backends["cuda"].run, ("cuda", "cpu"), lambda: None))
    return emulated_extension


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request) -> torch.device:
    """Where tensors must lie for backend="cuda": on the CPU, where it is emulated, or on the GPU."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
        return torch.device("cpu")
    if cuda.load_error() is not None:
        pytest.skip(cuda.load_error())
    return torch.device("cuda")


@pytest.fixture(scope="session")
def probe(tmp_path_factory):
    """csrc/cuda's plain arithmetic, through ctypes."""
    return ctypes.CDLL(str(compile_for_host("probe.cpp", tmp_path_factory.mktemp("probe") / "probe.so")))
