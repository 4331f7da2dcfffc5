"""Optimizers for a region of a model."""

from __future__ import annotations

from .masked_adamw import MaskedAdamW
from .one_by_one import OneByOne
from .pull import Pull

__all__ = ["MaskedAdamW", "OneByOne", "Pull"]
