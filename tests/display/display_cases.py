"""A made-up race told to a display, event by event; no number in it was ever measured."""

from __future__ import annotations

from cofitune_fast.search import Candidate, Level, Node, Rung

LEVEL = Level("broad range", ("0%-50%", "50%-100%"), ("attn.q+attn.k+attn.v", "ffn.up+ffn.down"))
CANDIDATES = [Candidate(0, roles, layers) for layers in LEVEL.layers for roles in LEVEL.roles]
SECOND = [Candidate(1, role, "50%-100%", CANDIDATES[3].id) for role in ("ffn.up", "ffn.down")]


def node(candidate: Candidate, *unis: float, dropped: str | None = None) -> Node:
    """A node with one rung of 12 s per given Uni, at 0.25, 0.5 and 1; Spec is 0.3 below half of it, Vers the rest.

    The first node of the race was judged by the signal.
    """
    rungs = []
    for fraction, uni in zip((0.25, 0.5, 1.0), unis, strict=False):
        scores = {"spec": uni / 2 - 0.15, "vers": uni / 2 + 0.15, "knowledge": 0.7, "reasoning": 0.6,
                  "instruction": 0.5, "uni": uni}
        scores |= {f"{key}_se": 0.012 for key in list(scores)}
        if candidate == CANDIDATES[0]:
            scores = {"nll": 2 - uni, "drift": 0.01, "signal": uni - 2.01, "signal_se": 0.012}
        cost = {"seconds": 12.0, "tokens": 100, "flops": 1e9, "full_sft": 0.05, "loss": float("nan")}
        rungs.append(Rung(fraction, scores, cost))
    return Node(candidate.id, candidate.parent, candidate.level, "broad range", "label", str(candidate.region),
                candidate.roles, candidate.layers, 2e-4, candidate.rate_factor, 1000, None, rungs, dropped)


def race(display, until: int = 99) -> None:
    """All events of a search of two levels, or the first `until` of them."""
    a, b, c, d = CANDIDATES
    first = {one.id: node(one, uni) for one, uni in zip(CANDIDATES, (0.80, 0.90, 0.82, 0.95), strict=True)}
    half = {b.id: node(b, 0.90, 0.93), d.id: node(d, 0.95, 0.97)}
    reason = "at 25 % of its training behind ffn.up+ffn.down@50%-100% by 0.130 ± 0.020"

    def lose() -> None:
        first[c.id].dropped = reason
        display.drop(first[c.id])

    events = [
        lambda: display.stage("Search"),
        lambda: display.note("scoring the base (valid)"),
        lambda: display.level(LEVEL, CANDIDATES),
        lambda: display.rung(0.25, CANDIDATES),
        lambda: display.finish(first[a.id], first[a.id], True),
        lambda: display.start(b, 0.25),
        lambda: display.start(c, 0.25),
        lambda: display.finish(first[c.id], first[c.id], False),
        lambda: display.remaining(75.0),
        lambda: display.finish(first[b.id], first[b.id], False),
        lambda: display.start(d, 0.25),
        lambda: display.finish(first[d.id], first[d.id], False),
        lose,
        lambda: display.rung(0.5, [b, d]),
        lambda: display.start(d, 0.5),
        lambda: display.start(b, 0.5),
        lambda: display.finish(half[d.id], half[d.id], False),
        lambda: display.finish(half[b.id], half[d.id], False),
        lambda: display.level(Level("projection"), SECOND),
        lambda: display.rung(1.0, SECOND),
        lambda: display.start(SECOND[0], 1.0),
        lambda: display.finish(node(SECOND[0], 0.9, 0.91, 0.93), half[d.id], False),
        lambda: display.remaining(None),
        lambda: display.chosen(half[d.id], "It has the highest Uni."),
    ]
    for event in events[:until]:
        event()
