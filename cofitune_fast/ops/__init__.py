"""Fused operations: one file each, with schema, checks, eager reference and dispatch to the faster backends."""

from __future__ import annotations

from ._registry import backends
from .grad_norm import GradNorm, grad_norm
from .linear_kl import linear_kl
from .masked_adamw import masked_adamw_
from .unit_importance import unit_importance_

__all__ = ["GradNorm", "backends", "grad_norm", "linear_kl", "masked_adamw_", "unit_importance_"]
