"""The behaviour anchor: text that the base itself wrote, and the distributions it must not drift from."""

from .anchor import Anchor, AnchorRow, open_anchor
from .settings import AnchorSettings

__all__ = ["Anchor", "AnchorRow", "AnchorSettings", "open_anchor"]
