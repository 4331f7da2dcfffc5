"""Analysis of the changes by training at every layer. This room measures, and `report` draws."""

from .measure import analyze
from .variants import Variant, find_variants

__all__ = ["Variant", "analyze", "find_variants"]
