"""Parts for other people's loops and Trainers."""

from .reference import reference_model

__all__ = ["reference_model"]
