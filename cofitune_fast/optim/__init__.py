"""Optimizers for a region of a model."""

from __future__ import annotations

from .masked_adamw import MaskedAdamW

__all__ = ["MaskedAdamW"]
