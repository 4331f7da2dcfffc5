"""Behaviour anchor: texts that the base wrote, with its next-token distributions on them."""

from .anchor import Anchor, AnchorRow, open_anchor
from .settings import NO_ANCHOR, AnchorSettings

__all__ = ["NO_ANCHOR", "Anchor", "AnchorRow", "AnchorSettings", "open_anchor"]
