"""The compiled CPU extension, loaded at its first use; a failure is remembered and explained, not raised at import."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

COST_WITHOUT = (
    "ops run their eager references; an optimizer step then takes about 20 times as long in float32 and 120 times in "
    "bfloat16 (33.6 M parameters, two AVX-512 cores, 2026-11-22)"
)
"""What doing without the extension costs, for `cofitune env`: measured by benchmarks/reference_cost.py."""

INTERFACE = 3  # must equal the number compiled into csrc/bindings.cpp


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    try:
        module = importlib.import_module("cofitune_fast._native")
    except ModuleNotFoundError:
        return None, (
            "the native extension is not built; with a C++ compiler at hand reinstall with COFITUNE_NATIVE=1, which "
            "shows the compiler's message"
        )
    except ImportError as error:
        return None, f"the native extension does not load ({error}); reinstall with COFITUNE_NATIVE=1"
    if module.INTERFACE != INTERFACE:
        return None, (
            f"the native extension was built from other sources (interface {module.INTERFACE}, expected {INTERFACE}); "
            "reinstall, or run python setup.py build_ext --inplace in the checkout"
        )
    return module, None


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
