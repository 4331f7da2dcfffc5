"""Regions of a model: roles, region text, the proof that the rest stayed frozen, and deltas."""

from .delta import BaseInfo, DeltaInfo, load_delta, merge, read_delta, restore, save_delta
from .frozen import FrozenProof, FrozenSummary
from .region import DEFAULT_REGION, LayerSet, Region
from .roles import GROUPS, ROLES, Cell, Layout, resolve_layout
from .trainable import Trainable

__all__ = [
    "DEFAULT_REGION", "GROUPS", "ROLES", "BaseInfo", "Cell", "DeltaInfo", "FrozenProof", "FrozenSummary", "LayerSet",
    "Layout", "Region", "Trainable", "load_delta", "merge", "read_delta", "resolve_layout", "restore", "save_delta",
]  # fmt: skip
