"""The comparison: base, full SFT, CoFiTune coarse and fine on the same data, and its report."""

from ..environment import environment
from .methods import Method, method_row
from .pipeline import Pipeline, PipelineSettings
from .progress import PipelineObserver, Quiet

__all__ = ["Method", "Pipeline", "PipelineObserver", "PipelineSettings", "Quiet", "environment", "method_row"]
