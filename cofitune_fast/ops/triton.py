"""The Triton kernels of kernels/, loaded when first used; what is missing is remembered and explained, not raised.

Importing this module does not import triton.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

OLDEST = (3, 4)
_PACKAGE = "cofitune_fast.kernels"


@cache
def _interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on tensors of any device: TRITON_INTERPRET=1 at triton's import."""
    if "triton" not in sys.modules and os.environ.get("TRITON_INTERPRET", "0") in ("", "0"):
        return False
    try:
        import triton
        import triton.language
    except ImportError:
        return False
    return not isinstance(triton.language.zeros, triton.JITFunction)


@cache
def load_error() -> str | None:
    """Why no Triton kernel can run here, in words; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install 'triton>=3.4'"
    if not (torch.cuda.is_available() or _interpreted()):
        return "no CUDA device is there"
    try:
        import triton
    except ImportError as error:
        return f"triton does not load ({error})"
    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
        return f"triton {triton.__version__} is too old; pip install 'triton>=3.4'"
    return None


def devices() -> tuple[str, ...]:
    """The kinds of device whose tensors the kernels serve; "cpu" is among them where they are interpreted."""
    return ("cuda", "cpu") if _interpreted() else ("cuda",)


def kernel(name: str) -> ModuleType:
    """The module kernels/NAME.py, as cofitune_fast.kernels.NAME."""
    try:
        importlib.import_module(_PACKAGE)
    except ModuleNotFoundError:  # an editable install or a checkout: the folder stands beside the package
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(Path(__file__).parents[2] / "kernels")]
        sys.modules[_PACKAGE] = package
    return importlib.import_module(f"{_PACKAGE}.{name}")
