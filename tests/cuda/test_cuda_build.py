"""The CUDA extension builds, links and imports where there is no GPU, and its machine code is what was meant."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import types

import pytest
import torch
from cases import GPU_ARCHITECTURES as ARCHITECTURES
from cuda_harness import ROOT, load_extension

from cofitune_fast import ops
from cofitune_fast.errors import CofituneError
from cofitune_fast.ops import cuda

pytestmark = pytest.mark.slow  # nvcc takes a minute for all of it
WIDE = ("3", "4")  # bf16 and int8, by the numbers of csrc/include/cofitune/adamw_tensor.h: eight elements a thread
STORAGES, MODES, PULLS = ("0", "1", "2", "3", "4"), ("0", "1"), ("0", "1", "2")
ADAMW = [(storage, mode, pull) for storage in STORAGES for mode in MODES for pull in PULLS]


def adamw(kernels, arch, storage, mode, pull):
    return kernels[f"masked_adamw_kernel<{storage}, {mode}, {pull}>", arch]


def test_every_kernel_is_there_for_every_architecture(kernels):
    names = {f"masked_adamw_kernel<{', '.join(arguments)}>" for arguments in ADAMW}
    names |= {"grad_norm_kernel", "grad_norm_finish"}
    assert set(kernels) == {(name, arch) for name in names for arch in ARCHITECTURES}


def test_no_kernel_uses_local_memory(kernels):
    for (name, arch), kernel in kernels.items():
        assert kernel.local_bytes == 0, (name, arch)
        assert not {"LDL", "STL"} & {i.split(".")[0] for i in kernel.instructions}, (name, arch)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_registers_let_as_many_threads_run_as_the_memory_needs(kernels, arch):
    for storage, mode, pull in ADAMW:
        threads = (3 if storage in WIDE else 4) * 256 - (256 if pull != "0" else 0)
        assert adamw(kernels, arch, storage, mode, pull).registers <= 65536 // threads, (storage, mode, pull)
    assert kernels["grad_norm_kernel", arch].registers <= 64  # 1024 threads
    assert kernels["grad_norm_finish", arch].registers <= 64  # one block of 1024 threads


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_streams_are_moved_16_bytes_at_a_time(kernels, arch):
    """And what is narrower beside a stream of 16 bytes lies side by side: 8 bytes a thread."""
    # Loads and stores of 16 and of 8 bytes in the straight path: p, g, m, v, remainder in; p, m, v, remainder out.
    least = {"0": (4, 3, 0, 0), "1": (2, 2, 3, 2), "2": (2, 2, 2, 1), "3": (4, 3, 0, 0), "4": (2, 1, 2, 2)}
    for storage, mode, pull in ADAMW:
        code = adamw(kernels, arch, storage, mode, pull).instructions
        counts = [code.count(name) for name in ("LDG.E.128", "STG.E.128", "LDG.E.64", "STG.E.64")]
        assert all(a >= b for a, b in zip(counts, least[storage], strict=True)), (storage, mode, pull, counts)
    assert kernels["grad_norm_kernel", arch].instructions.count("LDG.E.128") >= 8


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_addresses_are_known_to_be_global(kernels, arch):
    """A generic access, which has to find out where it leads, is an LD or ST without a G."""
    for (name, on), kernel in kernels.items():
        if on == arch:
            assert not {"LD", "ST"} & {i.split(".")[0] for i in kernel.instructions}, name


def test_masked_adamw_does_no_arithmetic_in_double(kernels):
    for (name, arch), kernel in kernels.items():
        if name.startswith("masked_adamw"):
            families = {i.split(".")[0] for i in kernel.instructions}
            assert not {"DADD", "DMUL", "DFMA", "DSETP"} & families, (name, arch)


def test_the_bits_of_the_cpu_are_asked_for(build):
    """No product is fused into a sum, nothing is flushed to zero; division and root are rounded correctly."""
    commands = [line for line in build.report.splitlines() if "nvcc" in line and "-c" in line.split()]
    assert len(commands) == 3
    for command in commands:
        assert {"-fmad=false", "-prec-div=true", "-prec-sqrt=true", "-ftz=false"} <= set(command.split())


def test_it_imports_without_a_gpu_and_says_so(build):
    (file,) = (build.libraries / "cofitune_fast").glob("_native_cuda*.so")
    module = load_extension(file, "built")
    assert module.INTERFACE == cuda.INTERFACE
    if torch.cuda.is_available():
        assert module.device_error() == ""
        return
    assert "no CUDA device" in module.device_error() or "driver is too old" in module.device_error()
    with pytest.raises(RuntimeError, match=r"^no CUDA device can be used: .*\.$"):
        module.grad_norm([], [], [], [], [], 0, 1.0, 0, 0, 0, 0)


@pytest.fixture
def fresh_load(monkeypatch):
    cuda._load.cache_clear()
    yield lambda module: monkeypatch.setattr(importlib, "import_module", lambda name: module)
    cuda._load.cache_clear()


@pytest.mark.parametrize("interface, trouble, torch_cuda, words", [
    (0, "", "13.0", "built from other sources (interface 0"),
    (cuda.INTERFACE, "no CUDA device is visible", "13.0", "no CUDA device is visible"),
    (cuda.INTERFACE, "", None, "is built without CUDA"),
])
def test_what_is_in_the_way_is_explained(fresh_load, monkeypatch, interface, trouble, torch_cuda, words):
    fresh_load(types.SimpleNamespace(INTERFACE=interface, device_error=lambda: trouble))
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    assert words in cuda.load_error()
    assert words in ops.backends()["masked_adamw_"]["cuda"]
    with pytest.raises(CofituneError, match="the backend 'cuda' cannot run"):
        ops.grad_norm([torch.ones(2)], backend="cuda")
    with pytest.raises(RuntimeError):
        cuda.library()


def test_a_build_that_is_there_and_a_device_are_all_it_needs(fresh_load, monkeypatch):
    module = types.SimpleNamespace(INTERFACE=cuda.INTERFACE, device_error=lambda: "")
    fresh_load(module)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert cuda.load_error() is None and cuda.library() is module


def test_a_missing_build_says_how_to_get_it(fresh_load, monkeypatch):
    def refuse(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert "reinstall with COFITUNE_CUDA=1" in cuda.load_error()


def setup_py(tmp_path, wish: str, nvcc: str | None, torch_cuda: str | None) -> subprocess.CompletedProcess:
    """build_ext with a toolkit and a torch made for the purpose; the nvcc is a shell script of one command."""
    (tmp_path / "toolkit" / "bin").mkdir(parents=True)
    if nvcc is not None:
        (tmp_path / "toolkit" / "bin" / "nvcc").write_text(f"#!/bin/sh\n{nvcc}\n")
        (tmp_path / "toolkit" / "bin" / "nvcc").chmod(0o755)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text(f"cuda: Optional[str] = {torch_cuda!r}\n")
    environment = {**os.environ, "COFITUNE_NATIVE": "0", "COFITUNE_CUDA": wish, "PYTHONPATH": str(tmp_path),
                   "CUDA_HOME": str(tmp_path / "toolkit")}
    return subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--build-temp", str(tmp_path / "temp"),
                           "--build-lib", str(tmp_path / "lib")], cwd=ROOT, env=environment, capture_output=True,
                          text=True)


TRIED = "installing WITHOUT its CUDA kernels, as they did not build"


@pytest.mark.parametrize("wish, nvcc, torch_cuda, tried", [
    ("auto", "exit 1", "13.0", True), ("auto", "exit 1", None, False), ("auto", None, "13.0", False),
    ("0", "exit 1", "13.0", False),
])
def test_unasked_it_is_built_where_nvcc_and_a_cuda_torch_are(tmp_path, wish, nvcc, torch_cuda, tried):
    done = setup_py(tmp_path, wish, nvcc, torch_cuda)
    assert done.returncode == 0 and (TRIED in done.stderr) == tried, done.stderr


@pytest.mark.parametrize("nvcc, words", [("exit 1", "returned non-zero exit status 1"), (None, "nvcc is neither in")])
def test_asked_for_a_failure_is_an_error(tmp_path, nvcc, words):
    done = setup_py(tmp_path, "1", nvcc, None)
    assert done.returncode != 0 and words in done.stderr


def test_architectures_are_those_asked_for_or_those_nvcc_knows(tmp_path, monkeypatch):
    for index, (wish, expected) in enumerate([("", "80 90"), ("90", "90"), ("75,86", "75 86")]):
        folder = tmp_path / str(index)
        folder.mkdir()
        # Answers the questions of setup.py, then notes what it is to compile, and fails.
        script = ('case "$1" in --list-gpu-code) echo sm_80 sm_90;; --dryrun) ;; '
                  f'*) echo "$@" > {folder}/asked; exit 1;; esac')
        monkeypatch.setenv("COFITUNE_CUDA_ARCHS", wish)
        assert setup_py(folder, "1", script, None).returncode != 0
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in expected.split()]
        last = expected.split()[-1]
        codes.append(f"-gencode=arch=compute_{last},code=compute_{last}")
        assert [word for word in (folder / "asked").read_text().split() if "gencode" in word] == codes
