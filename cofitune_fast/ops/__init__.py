"""Fused operations: one file each, with schema, checks, eager reference and dispatch to the faster backends."""

from __future__ import annotations

from ._registry import backends
from .grad_norm import GradNorm, grad_norm
from .linear_kl import linear_kl
from .masked_adamw import masked_adamw_
from .softmax import log_sum_exp, scaled_softmax_
from .unit_importance import unit_importance_

__all__ = [
    "GradNorm", "backends", "grad_norm", "linear_kl", "log_sum_exp", "masked_adamw_", "scaled_softmax_",
    "unit_importance_",
]
