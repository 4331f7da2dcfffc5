"""Build of the optional native extension, and the folders outside cofitune_fast/ that are installed with it.

COFITUNE_NATIVE=0 leaves the extension out; =1 makes a failed build an error; otherwise a failure is printed, the
package installs without it, and every op uses its eager reference (`cofitune env` says so).
"""

from __future__ import annotations

import os
import sys
from glob import glob

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

WISH = os.environ.get("COFITUNE_NATIVE", "auto")
FLAGS = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",  # every instruction set gives the same bits
    "-fno-math-errno",  # lets sqrtf become an instruction
    "-fno-trapping-math",  # lets a choice between two values become a blend
    "-fvisibility=hidden",
    "-pthread",
]


class OptionalBuild(build_ext):
    """Compiles the extension; if that fails says why and goes on, unless COFITUNE_NATIVE=1."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            self._without(error)

    def build_extension(self, extension: Extension) -> None:
        import pybind11

        extension.include_dirs.append(pybind11.get_include())
        super().build_extension(extension)

    def _without(self, error: Exception) -> None:
        if WISH == "1":
            raise error
        print(f"cofitune_fast: installing WITHOUT its native CPU kernels, as they did not build: {error}",
              file=sys.stderr)
        self.extensions = []


native = Extension(
    "cofitune_fast._native",
    sources=["csrc/bindings.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
    depends=sorted(glob("csrc/**/*.h", recursive=True)),
    include_dirs=["csrc", "csrc/include"],
    language="c++",
    extra_compile_args=FLAGS,
    extra_link_args=["-pthread"],
)

setup(
    packages=[*find_packages(include=["cofitune_fast", "cofitune_fast.*"]), "cofitune_fast.kernels"],
    package_dir={"cofitune_fast.kernels": "kernels"},
    package_data={
        "cofitune_fast": ["demo/**/*.jsonl", "demo/**/*.yaml", "demo/**/*.json", "demo/**/*.md",
                          "report/**/*.html", "report/**/*.css", "report/**/*.j2"],
        "cofitune_fast.kernels": ["*.md"],
    },
    include_package_data=False,
    ext_modules=[] if WISH == "0" else [native],
    cmdclass={"build_ext": OptionalBuild},
)
