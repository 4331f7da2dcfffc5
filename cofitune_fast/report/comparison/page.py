"""Content of a comparison's page: its pictures by name, and the values of its template."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..flips import GROUPS as FLIPPED
from ..style.numbers import percent, score
from .changes import COSTS, change_rows, resolution_sentences
from .losses import cost, losses
from .planes import plane, styles_of
from .rows import FIGURES, MEASURES, chosen_rows, equal_rows, figures_of, gaps, verdict_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[dict[str, Any]], "Figure | None"]
KINDS: dict[str, tuple[Callable[..., Any], str]] = {
    "vers": (partial(plane, measure="vers"), "Speciality against versatility, a curve for each method"),
    "instruction": (partial(plane, measure="instruction_likelihood"),
                    "Speciality against instruction likelihood, a curve for each method"),
    "lost": (losses, "What each method loses at equal speciality, with intervals"),
    "cost": (cost, "Training time against what is lost at equal speciality"),
}  # fmt: skip


def comparison_pictures(content: dict[str, Any]) -> dict[str, tuple[Draw, str]]:
    """Return {name of the PNG: (drawing, description for readers who cannot see it)}."""
    return {
        f"{kind}-{slug}": (partial(draw, task=task), f"{text}, on {task}")
        for task, slug in slugs(content).items() for kind, (draw, text) in KINDS.items()
    }  # fmt: skip


def slugs(content: dict[str, Any]) -> dict[str, str]:
    """Return a unique name for each task, for use in file names and ids."""
    plain = {task: re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-") for task in content["tasks"]}
    twice = {slug for slug in plain.values() if not slug or list(plain.values()).count(slug) > 1}
    return {task: f"{slug or 'task'}-{place}" if slug in twice else slug
            for place, (task, slug) in enumerate(plain.items(), 1)}  # fmt: skip


def comparison_values(content: dict[str, Any]) -> dict[str, Any]:
    """Return the template's values besides those that all pages share."""
    styles = styles_of(content)
    return {
        "colors": {name: look.color for name, look in styles.items()},
        "figures": FIGURES,
        "flipped": FLIPPED,
        "cost_titles": COSTS,
        "measures": MEASURES,
        "gaps": gaps(content),
        "tasks": [_task(content, task, slug) for task, slug in slugs(content).items()],
    }


def _task(content: dict[str, Any], task: str, slug: str) -> dict[str, Any]:
    verdicts = [verdict for verdict in content["verdicts"] if verdict["task"] == task]
    judged = {key: verdict for key in MEASURES if (verdict := verdict_of(content, task, key))}
    first = next(iter(judged.values()), None)
    return {
        "name": task,
        "pictures": {kind: f"{kind}-{slug}" for kind in KINDS},
        "shown": figures_of(content, task),
        "rows": chosen_rows(content, task),
        "kept": _kept(content, task),
        "equal": equal_rows(content, task),
        "changes": (changes := change_rows(content, task)),
        "flipped": [group for group in FLIPPED if any(group in row.flips for row in changes)],
        "resolution": resolution_sentences(content, task),
        "judged": list(judged),
        "rivals": first["rivals"] if first else [],
        "target": f"{score(first['target']['value'])} [{score(first['target']['low'])}, "
                  f"{score(first['target']['high'])}]" if first else "",
        "reference": first["reference"] if first else None,
        "tolerance": percent(first["tolerance"]) if first else "",
        "summaries": [verdict["sentence"] for verdict in verdicts],
        "sentences": [row["sentence"] for verdict in verdicts for row in verdict["rows"]],
    }


def _kept(content: dict[str, Any], task: str) -> list[tuple[str, str, str]]:
    """List (method, rate with the best Uni, rate with the best Vers at the reference's Spec) where the two rates
    differ.
    """
    rows = zip(chosen_rows(content, task, "uni"), chosen_rows(content, task, "equal_spec"), strict=True)
    return [(one.name, one.rate, other.rate) for one, other in rows if one.rate != other.rate]
