"""Planning: predict memory and time of a run from a model's configuration alone."""

from .plan import MemoryPlan
from .planner import fake_model, plan_memory

__all__ = ["MemoryPlan", "fake_model", "plan_memory"]
