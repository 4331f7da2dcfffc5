"""Kinds of unit, their number per layer, and the check of a name against known names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ..errors import CofituneError
from ..regions import Layout

NEURON = "ffn.neuron"  # row j of gate and up, column j of down
OUTPUT = "ffn.output"  # row j of down
HEAD = "attn.head"  # head_dim rows of q, head_dim columns of o, and a share in a key-value head
UNITS = (NEURON, OUTPUT, HEAD)


def unit_counts(layout: Layout) -> dict[str, int]:
    """Unit kind -> number of units per layer."""
    return {NEURON: layout.intermediate_size, OUTPUT: layout.hidden_size, HEAD: layout.num_heads}


def known(name: str, names: Iterable[str], what: str) -> str:
    """Return `name` if it is one of `names`, else raise CofituneError with the nearest one. what: e.g. "unit kind"."""
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise CofituneError(f"The {what} {name!r} is not known; {hint}Known are: {', '.join(names)}.")
