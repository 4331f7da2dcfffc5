"""The main job on one base: search, train the chosen region with and without protection, full SFT, checks, report."""

from .pipeline import Pipeline, PipelineSettings

__all__ = ["Pipeline", "PipelineSettings"]
