"""`make sanitize`: builds csrc under a sanitizer into build/, and runs on that build the tests that reach the kernels.

    python tests/native/sanitize.py [address] [thread]    both, if none is named

address is AddressSanitizer with UndefinedBehaviorSanitizer, and the checks of the C++ library on subscripts. They stop
at the first fault, and pytest with them. torch is not compiled for this: its memory is watched all the same, as the
sanitizer, loaded before everything else, serves every allocation of the process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPILER = os.environ.get("CXX", "g++")
TESTS = {
    "address": ["tests/native", "tests/ops", "tests/optim"],
    "thread": ["tests/native", "tests/ops", "-k", "thread"],  # the others do not start any
}

FLAGS = {
    "address": "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS",
    "thread": "-fsanitize=thread",
}
RUNTIME = {"address": "libasan.so", "thread": "libtsan.so"}
SETTINGS = {
    # Python keeps memory until the process ends, which is no leak of ours.
    "address": {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    # The barriers of OpenMP in torch are invisible here, and what it writes would look like a race.
    "thread": {"TSAN_OPTIONS": "halt_on_error=1 ignore_noninstrumented_modules=1"},
}


def library(name: str) -> str | None:
    """Where the compiler keeps a shared library; None if it has none of this name."""
    try:
        path = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return None
    return path if os.path.isabs(path) else None


def environment(sanitizer: str, runtime: str) -> dict[str, str]:
    # libstdc++ beside it, as the sanitizer looks for the throwing of exceptions there before Python loads it.
    preload = " ".join(filter(None, (runtime, library("libstdc++.so"))))
    return os.environ | SETTINGS[sanitizer] | {"LD_PRELOAD": preload, "COFITUNE_SANITIZER": sanitizer,
                                               "PYTHONPATH": "tests/native"}


def build(sanitizer: str) -> None:
    # setuptools takes CXXFLAGS for C++ in new versions and CFLAGS in old ones.
    flags = f"{FLAGS[sanitizer]} -g -fno-omit-frame-pointer"
    tools = {"CC": COMPILER, "CXX": COMPILER, "CFLAGS": flags, "CXXFLAGS": flags, "LDFLAGS": FLAGS[sanitizer]}
    print(f"{sanitizer}: building csrc ...", flush=True)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", f"--build-lib=build/{sanitizer}",
         f"--build-temp=build/{sanitizer}/objects"],
        cwd=ROOT, env=os.environ | tools | {"COFITUNE_NATIVE": "1", "COFITUNE_CUDA": "0", "COFITUNE_SYMBOLS": "1"},
        check=True)


def run(sanitizer: str) -> int:
    """The exit status of the tests; 0 where they cannot run, after saying why."""
    runtime = library(RUNTIME[sanitizer])
    if runtime is None:
        print(f"{sanitizer}: skipped, as {COMPILER} has no {RUNTIME[sanitizer]}; install GCC's sanitizers, or name a "
              "compiler that has them: make sanitize CXX=...")
        return 0
    env = environment(sanitizer, runtime)
    probe = subprocess.run([sys.executable, "-c", ""], env=env, capture_output=True, text=True)
    if probe.returncode:
        print(f"{sanitizer}: skipped, as Python does not start under it on this system: {probe.stderr.strip()}")
        return 0
    build(sanitizer)
    # --capture=sys: a sanitizer ends the process, and its report must not end with it.
    return subprocess.run([sys.executable, "-m", "pytest", "-p", "instrumented", "--capture=sys", *TESTS[sanitizer]],
                          cwd=ROOT, env=env).returncode


if __name__ == "__main__":
    sys.exit(max([run(sanitizer) for sanitizer in sys.argv[1:] or FLAGS]))
