"""Saving memory: the frozen prefix and its cache, gradient release, optimizer states on the host, measured peak."""

from .peak import PeakMemory
from .settings import MemorySettings

__all__ = ["MemorySettings", "PeakMemory"]
