"""Memory: frozen modules that cost nothing, gradients and states that do not stay, and what a run took."""

from .peak import PeakMemory
from .settings import MemorySettings

__all__ = ["MemorySettings", "PeakMemory"]
