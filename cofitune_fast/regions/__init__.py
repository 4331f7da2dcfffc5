"""Regions of a model: roles, region text, the proof that the rest stayed frozen, and deltas."""

from .cells import GROUPS, ROLES, Block, Cell, Part, part_name, whole_name
from .delta import BaseInfo, DeltaInfo, load_delta, read_delta, restore, save_delta
from .frozen import FrozenProof, FrozenSummary
from .hub import push_to_hub
from .layout import Layout, resolve_layout, tensors_named
from .merging import merge
from .parts import detach as detach_parts
from .parts import trained_parameters
from .peft_export import PeftExport, export_peft
from .region import DEFAULT_REGION, LayerSet, Region, apply
from .summary import layout_summary
from .trainable import Trainable

__all__ = [
    "DEFAULT_REGION", "GROUPS", "ROLES", "BaseInfo", "Block", "Cell", "DeltaInfo", "FrozenProof", "FrozenSummary",
    "LayerSet", "Layout", "Part", "PeftExport", "Region", "Trainable", "apply", "detach_parts", "export_peft",
    "layout_summary", "load_delta", "merge", "part_name", "push_to_hub", "read_delta", "resolve_layout", "restore",
    "save_delta", "tensors_named", "trained_parameters", "whole_name",
]  # fmt: skip
