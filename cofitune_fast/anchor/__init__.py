"""Behaviour anchor: texts that the base wrote, and its next-token distributions on them and on the task's rows."""

from .anchor import Anchor, open_anchor
from .reference import ReferenceSettings, TaskRow, task_rows
from .settings import NO_ANCHOR, AnchorSettings, without_later_defaults
from .store import AnchorRow, BaseRow

__all__ = ["NO_ANCHOR", "Anchor", "AnchorRow", "AnchorSettings", "BaseRow", "ReferenceSettings", "TaskRow",
           "open_anchor", "task_rows", "without_later_defaults"]
