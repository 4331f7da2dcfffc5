"""Compilers and their reports for the tests of the CUDA extension."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from cases import FULL, GPU_ARCHITECTURES

ARCHS = " ".join(arch.removeprefix("sm_") for arch in GPU_ARCHITECTURES) if not FULL else ""  # "": setup.py's own
ROOT = Path(__file__).parents[2]
HOST = Path(__file__).parent / "host"
COMPILER = os.environ.get("CXX", "g++")


def load_extension(file: Path, package: str):
    """The module in a file that is not on the path, as PACKAGE._native_cuda: pybind11 knows modules by their name."""
    spec = importlib.util.spec_from_file_location(f"{package}._native_cuda", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(command: list, **options) -> str:
    """What a command prints; its failure is the test's."""
    done = subprocess.run([str(word) for word in command], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def compile_for_host(source: str, result: Path, *flags: str) -> Path:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not there")
    run([COMPILER, "-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing", "-fPIC",
         "-shared", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}", *flags, HOST / source, "-o", result])
    return result


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit: from the PATH, from beside nvcc, or from the triton package."""
    nvcc = shutil.which("nvcc")
    folders = [Path(nvcc).resolve().parent] if nvcc else []
    if spec := importlib.util.find_spec("triton"):
        folders.append(Path(spec.origin).parent / "backends" / "nvidia" / "bin")
    found = [shutil.which(name), *(shutil.which(name, path=str(folder)) for folder in folders)]
    return next(filter(None, found), None)


@dataclass(frozen=True)
class Build:
    """What COFITUNE_CUDA=1 gave: the folder with the extension, that with the objects, and what ptxas said."""

    libraries: Path
    objects: Path
    report: str


@dataclass(frozen=True)
class Kernel:
    """A kernel's resources on one architecture, and its machine code without operands."""

    registers: int
    local_bytes: int  # stack frame and spilled registers
    instructions: list[str]


def build_extension(folder: Path) -> Build:
    """The extension as COFITUNE_CUDA=1 builds it, for the architectures of this run."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on the PATH")
    ours = {"COFITUNE_NATIVE": "0", "COFITUNE_CUDA": "1", "COFITUNE_CUDA_ARCHS": ARCHS, "CFLAGS": "-O1 -g0",
            "NVCC_APPEND_FLAGS": "-Xptxas=-v"}
    report = run([sys.executable, "setup.py", "build_ext", "--build-temp", folder / "temp", "--build-lib",
                  folder / "lib"], cwd=ROOT, env={**os.environ, **ours})
    (objects,) = (folder / "temp").glob("sm-*")
    return Build(folder / "lib", objects, report)


def read_kernels(build: Build) -> dict[tuple[str, str], Kernel]:
    """All kernels by name, template arguments included, and architecture, such as "sm_90"."""
    cuobjdump, nvdisasm = tool("cuobjdump"), tool("nvdisasm")
    if not (cuobjdump and nvdisasm and shutil.which("c++filt")):
        pytest.skip("cuobjdump, nvdisasm or c++filt is not there")
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(nvdisasm).parent), os.environ["PATH"]])}
    resources = {}
    pattern = (r"Compiling entry function '(\S+)' for '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
               r"(\d+) bytes spill loads.*?Used (\d+) registers")
    for name, arch, frame, stores, loads, registers in re.findall(pattern, build.report, re.DOTALL):
        resources[name, arch] = int(registers), int(frame) + int(stores) + int(loads)
    kernels = {}
    for file in sorted(build.objects.glob("*.o")):
        listing = run([cuobjdump, "-sass", file], env=environment)
        for part in re.split(r"\n\s*code for (?=sm_)", listing)[1:]:
            for function in part.split("Function : ")[1:]:
                name, arch = function.split()[0], part.split()[0]
                instructions = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*(?:\.\w+)*)", function)
                kernels[_readable(name), arch] = Kernel(*resources.pop((name, arch)), instructions)
    assert kernels and not resources
    return kernels


@cache
def _readable(mangled: str) -> str:
    """Without types and namespaces: "masked_adamw_kernel<4, 0, 2>"."""
    name = run(["c++filt", mangled]).strip().removeprefix("void ")
    return re.sub(r"\(cofitune::(Storage|MaskMode|Pull)\)|cofitune::(cuda::)?", "", name).split("(")[0]
