"""Memory: what a run needs, and what it took."""

from .peak import PeakMemory
from .planner import MemoryPlan, fake_model, plan_memory

__all__ = ["MemoryPlan", "PeakMemory", "fake_model", "plan_memory"]
