"""The comparison: CoFiTune's own pipeline on one task, and methods x tasks x rates x seeds from one base."""

from ..environment import environment
from .catalogue import CATALOGUE, NamedMethod, read_methods
from .comparison import Comparison, ComparisonSettings
from .methods import Method, method_row
from .pipeline import Pipeline, PipelineSettings
from .progress import PipelineObserver, Quiet
from .recipe import Recipe, refuse_unknown
from .run_method import WORK, run_method

__all__ = ["CATALOGUE", "WORK", "Comparison", "ComparisonSettings", "Method", "NamedMethod",
           "Pipeline", "PipelineObserver", "PipelineSettings", "Quiet", "Recipe", "environment", "method_row",
           "read_methods", "refuse_unknown", "run_method"]
