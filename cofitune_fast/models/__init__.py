"""Models: loading, fingerprints, and the head on chosen positions."""

from .head import response_logits, select_positions
from .loading import LoadedModel, default_device, dtype_name, load_model

__all__ = ["LoadedModel", "default_device", "dtype_name", "load_model", "response_logits", "select_positions"]
