"""Behaviour anchor: texts that the base wrote, with its next-token distributions on them."""

from .anchor import Anchor, AnchorRow, open_anchor
from .settings import AnchorSettings

__all__ = ["Anchor", "AnchorRow", "AnchorSettings", "open_anchor"]
