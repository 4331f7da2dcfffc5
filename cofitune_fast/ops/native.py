"""The compiled CPU extension. It is loaded when first used; a failure to load is kept as a sentence."""

from __future__ import annotations

from functools import cache
from types import ModuleType

from ._extension import load

COST_WITHOUT = (
    "ops run their eager references; an optimizer step then takes about 85 times as long in float32 and 150 times in "
    "bfloat16 (33.6 M parameters, two AVX-512 cores, 2026-11-22)"
)
"""The price of running without the extension, shown by `cofitune env`; measured by benchmarks/reference_cost.py."""

INTERFACE = 5  # must equal the number compiled into csrc/bindings.cpp


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    return load("_native", "native", INTERFACE, "with a C++ compiler at hand", "COFITUNE_NATIVE")


def load_error() -> str | None:
    """The reason why the native extension cannot be used, as a sentence; None if it can."""
    return _load()[1]


def library() -> ModuleType:
    """The loaded extension. Call it only if `load_error()` is None."""
    module, reason = _load()
    if module is None:
        raise RuntimeError(reason)
    return module


def isa() -> str | None:
    """The instruction set in use: "avx512", "avx2" or "baseline"; None without the extension."""
    return None if load_error() else library().isa()
