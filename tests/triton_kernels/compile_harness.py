"""Compiles Triton kernels for GPUs that are not there, and reads the result: vector accesses, registers, spills, FP64.

In a test file ask at the top, for all kernels and variants, so that one subprocess compiles everything together:

    from compile_harness import ARCHITECTURES, compiled, request

    COPY = request("copy", "copy_kernel", {"source": "*fp32:16", "size": "i64:16", "mask": None, "WIDTH": 1024},
                   num_warps=4)

    @pytest.mark.parametrize("arch", ARCHITECTURES)
    def test_copy_is_vectorized(arch):
        result = compiled(COPY, arch)
        assert result.loads_128 and not result.local_bytes and not result.uses_f64

The first word is the file in kernels/, the second the @triton.jit function in it. Every argument is named: a text is
its type at run time ("*u8", "i32", "fp32"), with ":16" where the address or the number is divisible by 16; anything
else (a number, True, None) is its value at compile time. Further options are those of a launch (num_warps, num_stages,
enable_fp_fusion).

A kernel decorated in a process with TRITON_INTERPRET=1 cannot be compiled, hence the subprocess.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cases import GPU_ARCHITECTURES as ARCHITECTURES

_requests: list[dict[str, Any]] = []


@dataclass(frozen=True)
class Compiled:
    """One kernel on one architecture. Accesses to global memory are counted as they stand in the machine code."""

    registers: int
    local_bytes: int  # stack frame and spilled registers, per thread
    shared_bytes: int
    ptx: str
    sass: str = field(repr=False)

    def accesses(self, operation: str) -> Counter[int]:
        """Width in bits -> number of global loads ("LDG") or stores ("STG") of that width."""
        found = re.findall(rf"\b{operation}((?:\.\w+)*)", self.sass)
        return Counter(next((int(w) for w in re.findall(r"\.[US]?(\d+)\b", m)), 32) for m in found)

    @property
    def loads_128(self) -> int:
        return self.accesses("LDG")[128]

    @property
    def stores_128(self) -> int:
        return self.accesses("STG")[128]

    @property
    def instructions(self) -> int:
        return len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", self.sass, re.MULTILINE))

    @property
    def uses_f64(self) -> bool:
        return bool(re.search(r"\b(?:add|sub|mul|fma|div|rcp|sqrt|neg|cvt|mov|ld|st)\b[\w.:]*\.f64", self.ptx))

    @property
    def uses_approximation(self) -> bool:
        """Whether some float32 operation flushes denormals, is not correctly rounded, or contracts two roundings."""
        return bool(re.search(r"\.ftz|\.approx|\.full|\bfma\.rn\.f32", self.ptx))


def request(file: str, kernel: str, arguments: dict[str, Any], **options: Any) -> int:
    """Ask for a kernel to be compiled; the answer is for `compiled`."""
    _requests.append({"file": file, "kernel": kernel, "arguments": arguments, "options": options})
    return len(_requests) - 1


def compiled(number: int, arch: str) -> Compiled:
    """What became of request `number` on one of `ARCHITECTURES`."""
    return Compiled(**_compile_all(len(_requests))[number][arch])


@cache
def _compile_all(count: int) -> list[dict[str, dict[str, Any]]]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run([sys.executable, __file__], input=json.dumps(_requests[:count]), capture_output=True,
                          text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _compile(file: str, kernel: str, arguments: dict[str, Any], options: dict[str, Any], arch: str) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from cofitune_fast.ops import triton as loader

    function = getattr(loader.kernel(file), kernel)
    assert set(arguments) == set(function.arg_names), sorted(set(arguments) ^ set(function.arg_names))
    signature, values, attributes = {}, {}, {}
    for position, name in enumerate(function.arg_names):
        if isinstance(arguments[name], str):
            signature[name], aligned = arguments[name].removesuffix(":16"), arguments[name].endswith(":16")
            attributes |= {(position,): [["tt.divisibility", 16]]} if aligned else {}
        else:
            signature[name], values[(position,)] = "constexpr", arguments[name]
    result = triton.compile(ASTSource(function, signature, values, attributes),
                            target=GPUTarget("cuda", int(arch.removeprefix("sm_")), 32), options=options)
    return {**_read_cubin(result.asm["cubin"]), "ptx": result.asm["ptx"]}


def _read_cubin(cubin: bytes) -> dict[str, Any]:
    import tempfile

    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        sass = subprocess.run([knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name], capture_output=True,
                              text=True, check=True).stdout
    used = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", sass)}
    return {"registers": used["REG"], "local_bytes": used["STACK"] + used["LOCAL"], "shared_bytes": used["SHARED"],
            "sass": sass}


def _main() -> None:
    from concurrent.futures import ProcessPoolExecutor

    import triton  # noqa: F401, and the next: before the fork, once for all

    import cofitune_fast.ops  # noqa: F401

    requests = json.load(sys.stdin)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        waiting = [{arch: pool.submit(_compile, **one, arch=arch) for arch in ARCHITECTURES} for one in requests]
        json.dump([{arch: future.result() for arch, future in one.items()} for one in waiting], sys.stdout)


if __name__ == "__main__":
    _main()
