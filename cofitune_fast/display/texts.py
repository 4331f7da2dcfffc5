"""Text formats of nodes, scores and times in a terminal."""

from __future__ import annotations

from ..search import Candidate, Node


def scores_text(scores: dict[str, float]) -> str:
    """Format scores as "Spec 0.612  Vers 0.534  Uni 1.146 ± 0.021", or what an early rung is judged by."""
    if "uni" not in scores:
        drift = f"  KL {scores['drift']:.4f}" if "drift" in scores else ""
        return f"NLL {scores['nll']:.3f}{drift}  signal {scores['signal']:.3f} ± {scores['signal_se']:.3f}"
    return (f"Spec {scores['spec']:.3f}  Vers {scores['vers']:.3f}  "
            f"Uni {scores['uni']:.3f} ± {scores['uni_se']:.3f}")


def short_scores(scores: dict[str, float]) -> str:
    """Format scores for a column under Spec, Vers and Uni; an early rung says what else it has."""
    if "uni" not in scores:
        drift = f"  KL {scores['drift']:.3f}" if "drift" in scores else ""
        return f"NLL {scores['nll']:.3f}{drift} ± {scores['signal_se']:.3f}"
    return f"{scores['spec']:.3f}  {scores['vers']:.3f}  {scores['uni']:.3f} ± {scores['uni_se']:.3f}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def name(node: Node | Candidate) -> str:
    """Return the region's text, with its rate factor if that is not 1."""
    factor = f" ×{node.rate_factor:g}" if node.rate_factor != 1 else ""
    return f"{node.region}{factor}"


def rung_text(fraction: float) -> str:
    """Format a fraction of a node's training as "25 %"."""
    return f"{100 * fraction:.3g} %"
