"""Where a speciality enters: what training changed, read at every layer. Measures; report draws."""

from .measure import analyze
from .variants import Variant, find_variants

__all__ = ["Variant", "analyze", "find_variants"]
