"""Parts for other people's training loops and Trainers."""

from .callback import CoFiTuneCallback
from .protect import Protect, protect
from .reference import reference_model

__all__ = ["CoFiTuneCallback", "Protect", "protect", "reference_model"]
