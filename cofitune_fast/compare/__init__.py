"""Compare methods x tasks x learning rates x seeds from one base, in a folder that resumes."""

from .comparison import Comparison, ComparisonSettings

__all__ = ["Comparison", "ComparisonSettings"]
