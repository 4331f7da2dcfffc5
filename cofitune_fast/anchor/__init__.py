"""The behaviour anchor: text that the base itself wrote, and the distributions it must not drift from."""

from .anchor import Anchor, AnchorRow, open_anchor
from .settings import NO_ANCHOR, AnchorSettings

__all__ = ["NO_ANCHOR", "Anchor", "AnchorRow", "AnchorSettings", "open_anchor"]
