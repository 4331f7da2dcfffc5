"""Importance of neurons, FFN outputs and attention heads, and the soft masks made from it."""

from .authors import import_authors_importance
from .compute import compute_importance
from .importance import Importance
from .normalize import PRESETS, Preset, combine

__all__ = ["PRESETS", "Importance", "Preset", "combine", "compute_importance", "import_authors_importance"]
