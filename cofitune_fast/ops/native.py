"""The compiled CPU extension, loaded at its first use; a failure is remembered and explained, not raised at import."""

from __future__ import annotations

from functools import cache
from types import ModuleType

from ._extension import load

COST_WITHOUT = (
    "ops run their eager references; an optimizer step then takes about 85 times as long in float32 and 150 times in "
    "bfloat16 (33.6 M parameters, two AVX-512 cores, 2026-11-22)"
)
"""What doing without the extension costs, for `cofitune env`: measured by benchmarks/reference_cost.py."""

INTERFACE = 5  # must equal the number compiled into csrc/bindings.cpp


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    return load("_native", "native", INTERFACE, "with a C++ compiler at hand", "COFITUNE_NATIVE")


def load_error() -> str | None:
    """Why the native extension cannot be used, in words; None if it can."""
    return _load()[1]


def library() -> ModuleType:
    """The loaded extension; only to be called where `load_error()` is None."""
    module, reason = _load()
    if module is None:
        raise RuntimeError(reason)
    return module


def isa() -> str | None:
    """The instruction set in use: "avx512", "avx2" or "baseline"; None without the extension."""
    return None if load_error() else library().isa()
