"""cofitune_fast: fine-tune a small region of a chat model, held to the base's behaviour by an anchor.

The names here are loaded when first used, so that `import cofitune_fast` is quick.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers, editors and the documentation; the same names as in _HOMES
    from . import ops
    from .anchor import AnchorSettings, open_anchor
    from .data import encode_examples, read_examples
    from .errors import CofituneError
    from .importance import Importance, compute_importance
    from .integrations import ChunkedLoss, CoFiTuneCallback, DeltaCheckpoints, masked_adamw, protect, reference_model
    from .models import load_model
    from .optim import MaskedAdamW, Pull
    from .regions import (
        BaseInfo,
        FrozenProof,
        Region,
        apply,
        export_peft,
        load_delta,
        merge,
        push_to_hub,
        resolve_layout,
        save_delta,
    )
    from .scoring import read_suite, score_suite
    from .training import CoFiTuneTrainer, TrainOptions, train_region

__version__ = "0.1.0"

_HOMES = {
    "Region": "regions", "apply": "regions", "resolve_layout": "regions", "save_delta": "regions",
    "load_delta": "regions", "merge": "regions", "push_to_hub": "regions", "export_peft": "regions",
    "FrozenProof": "regions", "BaseInfo": "regions",
    "Importance": "importance", "compute_importance": "importance",
    "AnchorSettings": "anchor", "open_anchor": "anchor",
    "MaskedAdamW": "optim", "Pull": "optim",
    "load_model": "models",
    "read_examples": "data", "encode_examples": "data",
    "CoFiTuneTrainer": "training", "TrainOptions": "training", "train_region": "training",
    "read_suite": "scoring", "score_suite": "scoring",
    "protect": "integrations", "CoFiTuneCallback": "integrations", "masked_adamw": "integrations",
    "DeltaCheckpoints": "integrations", "ChunkedLoss": "integrations", "reference_model": "integrations",
    "CofituneError": "errors",
}
_ROOMS = ("ops",)

__all__ = [
    "AnchorSettings",
    "BaseInfo",
    "ChunkedLoss",
    "CoFiTuneCallback",
    "CoFiTuneTrainer",
    "CofituneError",
    "DeltaCheckpoints",
    "FrozenProof",
    "Importance",
    "MaskedAdamW",
    "Pull",
    "Region",
    "TrainOptions",
    "__version__",
    "apply",
    "compute_importance",
    "encode_examples",
    "export_peft",
    "load_delta",
    "load_model",
    "masked_adamw",
    "merge",
    "open_anchor",
    "ops",
    "protect",
    "push_to_hub",
    "read_examples",
    "read_suite",
    "reference_model",
    "resolve_layout",
    "save_delta",
    "score_suite",
    "train_region",
]


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
        if spec is not None and found and spec.origin is None and {Path(path).resolve() for path in found} == {folder}:
            sys.modules["kernels"] = None  # type: ignore[assignment]


_hide_kernels_folder()


if not TYPE_CHECKING:  # so that a type checker knows the names above and no others

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
