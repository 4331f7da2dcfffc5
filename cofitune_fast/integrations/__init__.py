"""Parts for other people's training loops and Trainers."""

from .callback import CoFiTuneCallback
from .protect import Protect, protect

__all__ = ["CoFiTuneCallback", "Protect", "protect"]
