"""Build of the optional native extensions, folders outside cofitune_fast/, and the README that a package index shows.

COFITUNE_NATIVE is about the CPU kernels, COFITUNE_CUDA about the CUDA ones: =0 leaves them out; =1 makes a failed build
an error; otherwise a failure is printed, the package installs without them, and each op uses the next backend that
can run (`cofitune env` says so). Unless =1, the CUDA kernels are only built where nvcc and a torch with CUDA are found.
COFITUNE_CUDA_ARCHS, such as "90" or "80 90", replaces the GPU architectures they are compiled for.
COFITUNE_SYMBOLS=1 keeps the symbols for debuggers, profilers and sanitizers, seven times the size.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

ARCHITECTURES = ("80", "90", "100")  # of those that nvcc knows; for what comes after them PTX of the last one
FLAGS = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",  # every instruction set gives the same bits
    "-fno-wrapv",  # with Python's own -fwrapv some loops do not become vector loops, and take twice as long
    "-fno-math-errno",  # lets sqrtf become an instruction
    "-fno-trapping-math",  # lets a choice between two values become a blend
    "-fvisibility=hidden",
    "-pthread",
]
KEEP_SYMBOLS = os.environ.get("COFITUNE_SYMBOLS") == "1"
DEBUG_FLAGS = [] if KEEP_SYMBOLS else ["-g0"]  # Python's own flags may hold -g
STRIP = [] if KEEP_SYMBOLS or sys.platform != "linux" else ["-Wl,--strip-all"]
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fmad=false",  # with the three below: the bits of the CPU
    "-prec-div=true",
    "-prec-sqrt=true",
    "-ftz=false",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "--threads=0",
]


class Native(Extension):
    """An extension that may be missing: `wish` is its environment variable, `kernels` are compiled by nvcc."""

    def __init__(self, name: str, *, what: str, wish: str, kernels: list[str], **options: list[str]):
        super().__init__(
            name, depends=[*kernels, *sorted(glob("csrc/**/*.*h", recursive=True))], language="c++",
            include_dirs=["csrc", "csrc/include"], extra_compile_args=[*FLAGS, *DEBUG_FLAGS],
            extra_link_args=["-pthread", *STRIP], **options,
        )
        self.what, self.wish, self.kernels = what, os.environ.get(wish, "auto"), kernels
        self.failed = False


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin" if home else None)


def torch_has_cuda() -> bool:
    """Read from torch's files: an isolated build cannot import what is installed, but sees where it lies."""
    for folder in (*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        version = Path(folder, "torch", "version.py")
        if version.is_file():
            return re.search(r"^cuda\b.*=\s*['\"]", version.read_text(), re.MULTILINE) is not None
    return False


class Nvcc:
    def __init__(self) -> None:
        path = find_nvcc()
        if path is None:
            raise RuntimeError("nvcc is neither in CUDA_HOME/bin nor, without CUDA_HOME, on the PATH")
        self.path = path
        wished = os.environ.get("COFITUNE_CUDA_ARCHS", "").replace(",", " ").replace(";", " ").split()
        known = set(self._ask("--list-gpu-code").split())
        self.architectures = wished or [a for a in ARCHITECTURES if f"sm_{a}" in known]

    def _ask(self, *arguments: str) -> str:
        return subprocess.run([self.path, *arguments], check=True, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT).stdout

    def flags(self) -> list[str]:
        """The code of each architecture, and the last one's PTX."""
        last = self.architectures[-1]
        targets = [(a, f"sm_{a}") for a in self.architectures] + [(last, f"compute_{last}")]
        return [*NVCC_FLAGS, *(f"-gencode=arch=compute_{a},code={code}" for a, code in targets)]

    def library_folders(self, source: str) -> list[str]:
        """Where the static CUDA runtime lies, as nvcc itself would tell the linker."""
        line = re.search(r"LIBRARIES=(.*)", self._ask("--dryrun", "-c", source))
        return re.findall(r'-L([^"\s]+)', line[1]) if line else []


def version() -> str:
    """The package's version, whose one place is cofitune_fast/__init__.py."""
    return re.search(r'^__version__ = "(.+)"$', Path("cofitune_fast/__init__.py").read_text("utf-8"), re.MULTILINE)[1]


def readme_for_an_index(readme: str, version: str, repository: str | None) -> str:
    """The README with its relative links and pictures made absolute, as an index has none of the files they name.

    They lead to the tag of the version. Without a repository, `Repository` under project.urls, the text stays as it is.
    """
    if repository is None:
        return readme

    def absolute(link: re.Match[str]) -> str:
        form = "raw" if link["picture"] else "blob"
        return f"{link['picture']}[{link['text']}]({repository.rstrip('/')}/{form}/v{version}/{link['path']})"

    return re.sub(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?![a-z]+:|#)(?P<path>[^)\s]+)\)", absolute, readme)


class OptionalBuild(build_ext):
    """Compiles the extensions; if one fails says why and goes on without it, unless it was asked for."""

    def build_extensions(self) -> None:
        super().build_extensions()
        self.extensions = [extension for extension in self.extensions if not extension.failed]

    def build_extension(self, extension: Native) -> None:
        try:
            self._build(extension)
        except Exception as error:
            if extension.wish == "1":
                raise
            print(f"cofitune_fast: installing WITHOUT its {extension.what}, as they did not build: {error}",
                  file=sys.stderr)
            extension.failed = True

    def _build(self, extension: Native) -> None:
        import pybind11

        extension.include_dirs.append(pybind11.get_include())
        if extension.kernels:
            nvcc = Nvcc()
            extension.library_dirs += nvcc.library_folders(extension.kernels[0])
            folder = Path(self.build_temp, "sm-" + "-".join(nvcc.architectures))
            folder.mkdir(parents=True, exist_ok=True)
            for kernel in extension.kernels:
                result = str(folder / Path(kernel).with_suffix(".o").name)
                if newer_group([kernel, "setup.py", *extension.depends], result):
                    self.spawn([nvcc.path, *nvcc.flags(), "-Icsrc/include", "-c", kernel, "-o", result])
                extension.extra_objects.append(result)
        super().build_extension(extension)


def main() -> None:
    native = Native(
        "cofitune_fast._native", what="native CPU kernels", wish="COFITUNE_NATIVE",
        sources=["csrc/bindings.cpp", *sorted(glob("csrc/cpu/*.cpp"))], kernels=[],
    )
    cuda = Native(
        "cofitune_fast._native_cuda", what="CUDA kernels", wish="COFITUNE_CUDA", sources=["csrc/bindings_cuda.cpp"],
        kernels=sorted(glob("csrc/cuda/*.cu")), libraries=["cudart_static", "rt", "dl", "pthread"],
    )
    wanted = [native] if native.wish != "0" else []
    if cuda.wish == "1" or (cuda.wish != "0" and find_nvcc() and torch_has_cuda()):
        wanted.append(cuda)
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = Path("README.md").read_text(encoding="utf-8")
    setup(
        version=version(),
        long_description=readme_for_an_index(readme, version(), project.get("urls", {}).get("Repository")),
        long_description_content_type="text/markdown",
        packages=[*find_packages(include=["cofitune_fast", "cofitune_fast.*"]), "cofitune_fast.kernels"],
        package_dir={"cofitune_fast.kernels": "kernels"},
        package_data={
            "cofitune_fast": ["py.typed", "anchor/prompts.txt", "demo/**/*.jsonl", "demo/**/*.yaml", "demo/**/*.json",
                              "demo/**/*.md", "report/**/*.html", "report/**/*.css", "report/**/*.j2"],
            "cofitune_fast.kernels": ["*.md"],
        },
        include_package_data=False,
        ext_modules=wanted,
        cmdclass={"build_ext": OptionalBuild},
    )


if __name__ == "__main__":  # as the build's frontends run it
    main()
