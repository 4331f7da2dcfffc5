"""The Triton kernels of kernels/, loaded when first used. A failure to load is kept as a sentence.

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
    """True if kernels run in Triton's interpreter, on any device: TRITON_INTERPRET=1 at the import of triton."""
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
    """The reason why no Triton kernel can run here, as a sentence; None if they can."""
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
    """Kinds of device that the kernels serve; "cpu" is one of them if they are interpreted."""
    return ("cuda", "cpu") if _interpreted() else ("cuda",)


def kernel(name: str) -> ModuleType:
    """Import kernels/NAME.py as cofitune_fast.kernels.NAME."""
    try:
        importlib.import_module(_PACKAGE)
    except ModuleNotFoundError:  # an editable install or a checkout: the folder stands beside the package
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(Path(__file__).parents[2] / "kernels")]
        sys.modules[_PACKAGE] = package
    return importlib.import_module(f"{_PACKAGE}.{name}")
