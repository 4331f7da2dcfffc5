"""cofitune_fast: search the few modules worth fine-tuning, train only those, keep the model's versatility.

The names here are loaded when first used, so that `import cofitune_fast` is quick.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Region": "regions", "resolve_layout": "regions", "save_delta": "regions", "load_delta": "regions",
    "merge": "regions", "FrozenProof": "regions", "BaseInfo": "regions",
    "Importance": "importance", "compute_importance": "importance",
    "MaskedAdamW": "optim", "Pull": "optim",
    "load_model": "models",
    "read_examples": "data", "encode_examples": "data",
    "CoFiTuneTrainer": "training", "train_region": "training",
    "read_suite": "scoring", "score_suite": "scoring",
    "CofituneError": "errors",
}
_ROOMS = ("ops",)

__all__ = [*sorted(_HOMES), *_ROOMS, "__version__"]


def _hide_kernels_folder() -> None:
    """Let `import kernels` fail where it would find the bare folder of a checkout.

    Run from a checkout's root, kernels/ is importable under the name of the Hugging Face package for which transformers
    and bitsandbytes probe. None in sys.modules is Python's own sign for "no such package". An installed package comes
    before a bare folder, and so is found and left alone.
    """
    folder = Path(__file__).resolve().parents[1] / "kernels"
    if "kernels" not in sys.modules and folder.is_dir():
        spec = importlib.util.find_spec("kernels")
        found = None if spec is None else spec.submodule_search_locations
        if found and spec.origin is None and {Path(path).resolve() for path in found} == {folder}:
            sys.modules["kernels"] = None


_hide_kernels_folder()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    elif name in _ROOMS:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
