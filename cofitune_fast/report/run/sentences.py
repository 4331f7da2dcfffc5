"""Sentences of a report, made from the numbers alone and in the same words whoever wins."""

from __future__ import annotations

import math
from dataclasses import replace

from ...artefacts.run import BASE
from ..differences import AHEAD, BEHIND, TIE, UNKNOWN, Difference, Entry, difference, paired_or_not, share
from ..headline import Headline, Tile
from ..style.numbers import MISSING, NBSP, byte_size, duration, finite, percent, score
from .verdict import base_row, cofitune_row, done, full_row

UNFINISHED = "The run is not finished yet: methods may still come, and what is said here may change."
NO_FULL_SFT = "no full SFT to compare with"


def headline(report: Entry) -> Headline:
    """Summarise the report in a title and a few sentences, from the numbers alone.

    It compares the last CoFiTune row with full SFT. Where full SFT's Uni is higher by more than the combined standard
    error, the title says that full SFT wins. Failed methods are not compared; a sentence reports each failure.
    """
    line = _of_the_done(report, done(report["methods"]))
    line = replace(line, sentences=[*failures(report), *line.sentences])
    if report["complete"]:
        return line
    sentences = [UNFINISHED, *line.sentences]
    return replace(line, title=f"So far: {line.title}", sentences=sentences, badge=f"not finished yet: {line.badge}")


def failures(report: Entry) -> list[str]:
    """Write a sentence for each method that failed, with its reason."""
    return [
        f"{_capital(row['name'])} failed: {(row['why'] or 'the report does not say why').rstrip('.')}."
        for row in report["methods"] if row["state"] == "failed"
    ]  # fmt: skip


def _of_the_done(report: Entry, methods: list[Entry]) -> Headline:
    ours, full, base = cofitune_row(methods), full_row(methods), base_row(methods)
    if ours is None or not finite(ours["uni"]):
        return _without_cofitune(methods)
    kept = _kept(report, ours, full, base)
    tiles = _tiles(report, ours, full, base)
    rest = [_interval(report, ours, full), _gain(ours, base), _against_base(ours, base),
            _strongest(methods, ours, full), _cost(report, ours, full)]
    if full is None or not finite(full["uni"]):
        failed = full_row(report["methods"])
        if full is None and failed is not None:
            missing = f"Without {failed['name']} there is nothing to compare {ours['name']} with."
            badge = f"{failed['name']} failed"
        else:
            missing, badge = "There is no full SFT in this report, so nothing is said about it.", NO_FULL_SFT
        return Headline(kept, [missing, *filter(None, rest)], UNKNOWN, badge, tiles)
    lead = paired_or_not(report, ours, full, "uni")
    verdict = _verdict(lead, ours, full)
    title, first = (verdict, kept) if lead.outcome == BEHIND else (kept, verdict)
    degree = "clearly" if lead.clear else "slightly"
    badge = {
        AHEAD: f"{degree} ahead of {full['name']}",
        BEHIND: f"{degree} behind {full['name']}",
        TIE: f"no measurable difference to {full['name']} in Uni",
        UNKNOWN: f"difference to {full['name']} not judged",
    }[lead.outcome]
    return Headline(title, [first, *filter(None, rest)], lead.outcome, badge, tiles)


def _verdict(lead: Difference, ours: Entry, full: Entry) -> str:
    """Say who leads in Uni and how sure that is, in the same words for both sides."""
    strength = (
        f"more than {'two standard errors' if lead.clear else 'one standard error but not two: a hint, no proof'}"
    )
    values = f"{score(ours['uni'])} against {score(full['uni'])}"
    wins = "wins here: it leads" if lead.clear else "is slightly ahead of"
    return {
        AHEAD: f"It leads {full['name']} by {lead} in Uni ({values}), {strength}.",
        BEHIND: f"{_capital(full['name'])} {wins} {ours['name']} by {lead} in Uni, {strength}.",
        TIE: f"In Uni it cannot be told apart from {full['name']}: {values}, "
        f"and the difference of {lead} is within its standard error.",
        UNKNOWN: f"In Uni {full['name']} and it stand at {score(full['uni'])} and {score(ours['uni'])}; "
        "without standard errors no winner is named.",
    }[lead.outcome]


def _interval(report: Entry, ours: Entry, full: Entry | None) -> str:
    """State the 95 % interval of the paired difference in Uni, where the report has it."""
    for pair in report["pairs"]:
        if full is not None and (pair["first"], pair["second"]) == (ours["name"], full["name"]):
            low, high = (f"{pair['uni'][end]:+.3f}".replace("-", "−") for end in ("low", "high"))
            return f"On the same items the difference in Uni has the 95{NBSP}% interval [{low}, {high}]."
    return ""


def _kept(report: Entry, ours: Entry, full: Entry | None, base: Entry | None) -> str:
    parts = []
    if base and finite(versatility := share(ours["vers"], base["vers"])):
        parts.append(_portion(versatility, "the base's versatility"))
    if full and finite(speciality := share(ours["spec"], full["spec"])):
        parts.append(_portion(speciality, _speciality_of(full)))
    trained = share(ours["trained_parameters"], report["base"]["parameters"])
    training = f", training {percent(trained)} of the weights" if finite(trained) else ""
    if not parts:
        return f"{ours['name']} reaches a Uni of {score(ours['uni'])}{training}."
    return f"{ours['name']} keeps {' and '.join(parts)}{training}."


def _portion(fraction: float, whole: str) -> str:
    return f"{percent(fraction)} of {whole}" if fraction < 1 else f"all of {whole} ({percent(fraction)})"


def _gain(ours: Entry, base: Entry | None) -> str:
    if base is None or not (finite(ours["spec"]) and finite(base["spec"])):
        return ""
    gain = difference(ours, base, "spec")
    ends = f"{score(base['spec'])} before, {score(ours['spec'])} after"
    return {
        AHEAD: f"Its speciality rises by {gain} over the base ({ends}).",
        TIE: f"Its speciality did not move beyond the standard error ({ends}).",
        BEHIND: f"Its speciality fell by {gain} below the base's ({ends}): this fine-tune did harm.",
        UNKNOWN: f"Its speciality: {ends}.",
    }[gain.outcome]


def _against_base(ours: Entry, base: Entry | None) -> str:
    """Say if fine-tuning does not raise Uni over the base; return "" if it does."""
    outcome = difference(ours, base, "uni").outcome if base else UNKNOWN
    values = f"({score(base['uni'])} against {score(ours['uni'])})" if base else ""
    if outcome == BEHIND:
        return (
            f"In Uni the untrained base is better than {ours['name']} {values}: "
            "the versatility lost outweighs the speciality gained."
        )
    if outcome == TIE:
        return f"In Uni {ours['name']} is within the standard error of the untrained base {values}."
    return ""


def _strongest(methods: list[Entry], ours: Entry, full: Entry | None) -> str:
    """Name a third method that scores higher than ours, so that a win over full SFT does not hide it."""
    known = (BASE, ours["name"], full["name"] if full else None)
    rivals = [row for row in methods if row["name"] not in known and finite(row["uni"])]
    top = max(rivals, key=lambda row: row["uni"], default=None)
    if top is None or top["uni"] <= ours["uni"]:
        return ""
    lead = difference(top, ours, "uni")
    weight = {TIE: "within the standard error", AHEAD: "beyond the standard error"}.get(lead.outcome, "not judged")
    values = f"{score(top['uni'])} against {score(ours['uni'])}"
    return f"{_capital(top['name'])} scores higher than {ours['name']} in Uni: {values}, {weight} ({lead})."


def _cost(report: Entry, ours: Entry, full: Entry | None) -> str:
    """State training time and memory beside full SFT's, and the time of the search."""
    parts = []
    if finite(ours["seconds"]):
        beside = f" ({full['name']}: {duration(full['seconds'])})" if full and finite(full["seconds"]) else ""
        parts.append(f"training took {duration(ours['seconds'])}{beside}")
    if finite(ours["peak_memory_bytes"]):
        memory = full["peak_memory_bytes"] if full else math.nan
        beside = f" ({full['name']}: {byte_size(memory)})" if full and finite(memory) else ""
        parts.append(f"peak memory was {byte_size(ours['peak_memory_bytes'])}{beside}")
    if (search := report["search"]) and finite(search["seconds"]):
        parts.append(f"the search before it took {duration(search['seconds'])}")
    return _capital("; ".join(parts)) + "." if parts else ""


def _tiles(report: Entry, ours: Entry, full: Entry | None, base: Entry | None) -> list[Tile]:
    tiles = []
    if base:
        tiles.append(Tile(percent(share(ours["vers"], base["vers"])), "of the base's versatility kept"))
    if full:
        tiles.append(Tile(percent(share(ours["spec"], full["spec"])), f"of {_speciality_of(full)} reached"))
    trained = share(ours["trained_parameters"], report["base"]["parameters"])
    tiles.append(Tile(percent(trained), "of the weights trained"))
    if full:
        lead = paired_or_not(report, ours, full, "uni")
        sign = "+" if lead.value >= 0 else "−"
        error = f", ±{NBSP}{lead.se:.3f}" if finite(lead.se) else ""
        value = f"{sign}{abs(lead.value):.3f}" if finite(lead.value) else MISSING
        tiles.append(Tile(value, f"Uni against {full['name']}{error}"))
    return [tile for tile in tiles if tile.value != MISSING]


def _without_cofitune(methods: list[Entry]) -> Headline:
    rows = [row for row in methods if finite(row["uni"])]
    if not rows:
        return Headline("No method has been scored yet.", [], UNKNOWN, "no scores")
    top = max(rows, key=lambda row: row["uni"])
    rivals = [row for row in rows if row is not top]
    if not rivals:
        title = f"{_capital(top['name'])} reaches a Uni of {score(top['uni'])}; nothing stands beside it."
        return Headline(title, badge="one method only")
    second = max(rivals, key=lambda row: row["uni"])
    lead = difference(top, second, "uni")
    clear = all(difference(top, row, "uni").outcome == AHEAD for row in rivals)
    title = (
        f"{_capital(top['name'])} has the highest Uni, {score(top['uni'])}, {lead} above {second['name']}."
        if clear
        else f"No method leads beyond the standard error; {top['name']} has the highest Uni, {score(top['uni'])}."
    )
    return Headline(title, ["This report holds no scored CoFiTune run."], UNKNOWN, "no CoFiTune run")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _speciality_of(full: Entry) -> str:
    return "full SFT's speciality" if full["name"] == "full SFT" else f"the speciality of {full['name']}"
