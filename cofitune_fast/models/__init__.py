"""Models: loading, fingerprints, and the head on chosen positions."""

from .checkpoint import checkpoint_fingerprint
from .head import Head, logits_at, select_positions
from .loading import LoadedModel, default_device, dtype_name, load_model
from .quantized import load_quantized, quantization

__all__ = [
    "Head", "LoadedModel", "checkpoint_fingerprint", "default_device", "dtype_name", "load_model", "load_quantized",
    "logits_at", "quantization", "select_positions",
]
