"""Optimizers for a region of a model."""

from __future__ import annotations

from ..ops._adamw_call import MaskMode
from ..ops._storage import StorageName
from .masked_adamw import MaskedAdamW
from .one_by_one import OneByOne
from .pull import Pull

__all__ = ["MaskMode", "MaskedAdamW", "OneByOne", "Pull", "StorageName"]
