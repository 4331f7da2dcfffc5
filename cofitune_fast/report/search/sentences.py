"""Sentences about a search, from the numbers alone: its choice, and how certain that is."""

from __future__ import annotations

from ..differences import AHEAD, BEHIND, TIE, UNKNOWN, Entry, difference
from ..headline import Headline, Tile
from ..style.numbers import MISSING, NBSP, finite, percent, score, score_with_error


def search_headline(search: Entry) -> Headline:
    """Summarise a search without methods: its choice, and whether that is better than the untrained base."""
    nodes = {node["id"]: node for node in search["nodes"]}
    chosen = nodes.get(search["chosen"])
    if chosen is None or not finite(chosen["uni"]):
        return Headline("The search has not chosen a region yet.", badge="no choice")
    gain = chosen["difference"] or {}
    outcome = _outcome(gain)
    badge = {
        AHEAD: "clearly better than the base", BEHIND: "clearly worse than the base",
        TIE: "no measurable difference to the base in Uni", UNKNOWN: "difference to the base not judged",
    }[outcome]  # fmt: skip
    ahead = f", {' '.join(interval(gain))} against the untrained base" if outcome != UNKNOWN else ""
    uni = score_with_error(chosen["uni"], chosen["uni_se"])
    title = f"The search chose {chosen['region'] or chosen['label']}: Uni {uni}{ahead}."
    sentences = [choice_sentence(search)]
    if outcome in (TIE, BEHIND):
        sentences.append("No training of any searched region is shown to pay in Uni." if outcome == TIE else
                         "In Uni the untrained base is better than what was chosen.")  # fmt: skip
    if search["test"]:
        now, before = (search["test"][name] for name in ("chosen", "base"))
        scores = [score_with_error(row["uni"], row["uni_se"]) for row in (now, before)]
        sentences.append(f"On the test part, which the search never saw: Uni {scores[0]}, the base {scores[1]}.")
    else:
        sentences.append("It was chosen on these very scores, so they flatter it somewhat; a test part would not.")
    tiles = [Tile(_signed(gain.get("value")), "Uni against the base"), Tile(str(len(nodes)), "regions tried")]
    if search["choice"] and finite(search["choice"]["probability_best"]):
        tiles.append(Tile(percent(search["choice"]["probability_best"]), "of resamples in which it is the best"))
    if finite(search["cost"]["full_sft"]):
        tiles.append(Tile(f"{search['cost']['full_sft']:.2f}", "full fine-tunings the search cost"))
    return Headline(title, sentences, outcome, badge, [tile for tile in tiles if tile.value != MISSING])


def choice_sentence(search: Entry) -> str:
    return search["choice"]["sentence"] if search["choice"] else search_sentence(search)


def search_sentence(search: Entry) -> str:
    """Say how certain the choice is: which regions are near the chosen one, and whether another one scored higher."""
    nodes = {node["id"]: node for node in search["nodes"] if finite(node["uni"])}
    chosen = nodes.pop(search["chosen"], None)
    if chosen is None or not nodes:
        return ""
    near = sum(difference(node, chosen, "uni").outcome == TIE for node in nodes.values())
    known = any(difference(node, chosen, "uni").outcome != UNKNOWN for node in nodes.values())
    top = max(nodes.values(), key=lambda node: node["uni"])
    sentences = []
    if known:
        others = f"{len(nodes)} other scored region{'' if len(nodes) == 1 else 's'}"
        verb = "lie" if near > 1 else "lies"
        call = ": the choice among them is a close call." if near else "."
        sentences.append(f"{near or 'None'} of the {others} {verb} within the standard error of the chosen one{call}")
    if top["uni"] > chosen["uni"]:
        sentences.append(
            f"The highest Uni, {score(top['uni'])}, is not that of the chosen region but of {top['label']}."
        )
    return " ".join(sentences)


def signal_text(node: Entry) -> str:
    """Format what an early rung was judged by as "NLL 1.234, KL 0.012", in nats a token; "" without it."""
    if not finite(node["signal"]):
        return ""
    return f"NLL {node['nll']:.3f}" + (f", KL {node['drift']:.3f}" if finite(node["drift"]) else "")


def interval(difference: Entry | None) -> tuple[str, str]:
    """Format a difference and its interval as ("+0.031", "[+0.012, +0.050]"), or as a dash."""
    if not difference or not finite(difference["value"]):
        return MISSING, ""
    low, high = difference["low"], difference["high"]
    ends = f"[{_signed(low)},{NBSP}{_signed(high)}]" if finite(low) and finite(high) else ""
    return _signed(difference["value"]), ends


def _outcome(difference: Entry) -> str:
    """Judge by the side of 0 on which the whole interval lies."""
    low, high = difference.get("low"), difference.get("high")
    if not (finite(low) and finite(high)):
        return UNKNOWN
    return AHEAD if low > 0 else BEHIND if high < 0 else TIE


def _signed(value: float | None) -> str:
    return f"{value:+.3f}".replace("-", "−") if finite(value) else MISSING
