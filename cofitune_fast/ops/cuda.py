"""The compiled CUDA extension. It is loaded when first used; a failure to load is kept as a sentence."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch

from ._extension import load

INTERFACE = 2  # must equal the number compiled into csrc/bindings_cuda.cpp


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    module, reason = load("_native_cuda", "CUDA", INTERFACE, "with nvcc of CUDA 12.1 or later on the PATH",
                          "COFITUNE_CUDA")
    if module is not None:
        reason = module.device_error() or None
        if reason is None and torch.version.cuda is None:
            reason = f"torch {torch.__version__} is built without CUDA"
    return (None, reason) if reason else (module, None)


def load_error() -> str | None:
    """The reason why the CUDA extension cannot be used, as a sentence; None if it can."""
    return _load()[1]


def library() -> ModuleType:
    """The loaded extension. Call it only if `load_error()` is None."""
    module, reason = _load()
    if module is None:
        raise RuntimeError(reason)
    return module


def place(device: torch.device) -> tuple[int, int]:
    """Number and current stream of the device, as the kernels take them."""
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream
