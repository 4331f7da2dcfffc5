"""How nodes, scores and times are written in a terminal."""

from __future__ import annotations

from ..search import Candidate, Node


def scores_text(scores: dict[str, float]) -> str:
    """"Spec 0.612  Vers 0.534  Uni 1.146 ± 0.021"."""
    return (f"Spec {scores['spec']:.3f}  Vers {scores['vers']:.3f}  "
            f"Uni {scores['uni']:.3f} ± {scores['uni_se']:.3f}")


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def name(node: Node | Candidate) -> str:
    """The region, and by how much its learning rate differs from that of other nodes with the same region."""
    factor = f" ×{node.rate_factor:g}" if node.rate_factor != 1 else ""
    return f"{node.region}{factor}"


def rung_text(fraction: float) -> str:
    """"25 %" of the node's training."""
    return f"{100 * fraction:.3g} %"
