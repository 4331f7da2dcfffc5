"""Sentences and table rows of an analysis, made from its figures alone."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from ..style.numbers import MISSING, NBSP, percent


def sentences(analysis: dict[str, Any]) -> list[str]:
    """Write two sentences for each fine-tuned model: where its weights moved, and where its answers become readable."""
    base, *others = analysis["models"]
    return [text for model in others for text in (_moved(model), _entered(model, base))]


def rows(analysis: dict[str, Any]) -> list[dict[str, str]]:
    """Make one row of texts per model, the base first."""
    base = analysis["models"][0]
    table = []
    for model in analysis["models"]:
        lens, direct, change = model["lens"], model["direct"], model["change"]
        table.append({
            "name": model["name"],
            "region": model["region"] or "",
            "change": percent(change["total"]) if change else MISSING,
            "attention_share": percent(_share(change, "attn")) if change else MISSING,
            "ffn_share": percent(_share(change, "ffn")) if change else MISSING,
            "nll": f"{lens['nll'][-1]:.3f}", "nll_se": f"±{NBSP}{lens['nll_se'][-1]:.3f}",
            "top1": percent(lens["top1"][-1]),
            "readable": _after(median_layer(model["readable"]["all"])),
            "gained": f"{sum(model['readable']['gained']['counts'])}" if model is not base else MISSING,
            "gained_readable": _after(median_layer(model["readable"]["gained"])) if model is not base else MISSING,
            "attention": f"{sum(direct['attention']):+.2f}", "ffn": f"{sum(direct['ffn']):+.2f}",
            "total": f"{direct['total']:+.2f}",
        })  # fmt: skip
    return table


def median_layer(part: dict[str, Any]) -> int | None:
    """Return the layer by which half of the readable tokens are readable; -1 is the embedding, None if none ever is."""
    whole = sum(part["counts"])
    totals = accumulate(part["counts"])
    return next((depth - 1 for depth, total in enumerate(totals) if 2 * total >= whole), None) if whole else None


def _moved(model: dict[str, Any]) -> str:
    change = model["change"]
    if not change["total"]:
        return f"{model['name']}: its weights are those of the base."
    cells = [(value or 0, role, layer) for role, row in change["relative"].items() for layer, value in enumerate(row)]
    value, role, layer = max(cells)
    parts = [f"{percent(_share(change, 'ffn'))} of the squared change in the FFNs",
             f"{percent(_share(change, 'attn'))} in attention"]
    if change["rest"]["share"]:
        parts.append(f"{percent(change['rest']['share'])} in embedding, head and norms")
    return (f"{model['name']} moved the weights by {percent(change['total'])} of their norm, {', '.join(parts)}; the "
            f"cell that moved furthest for its size is {role} of layer {layer} ({percent(value)}).")


def _entered(model: dict[str, Any], base: dict[str, Any]) -> str:
    nll = [f"{entry['lens']['nll'][-1]:.3f}{NBSP}±{NBSP}{entry['lens']['nll_se'][-1]:.3f}" for entry in (base, model)]
    text = f"{model['name']}: the NLL per token goes from {nll[0]} to {nll[1]}"
    gained = model["readable"]["gained"]
    if sum(gained["counts"]):
        text += (f"; the {sum(gained['counts'])} tokens that only training made right become readable "
                 f"{_after(median_layer(gained))} in the median, those that the base has right "
                 f"{_after(median_layer(base['readable']['all']))}")
    gains = [sum(model["direct"][key]) - sum(base["direct"][key]) for key in ("attention", "ffn")]
    return (f"{text}; the right token's lead changes by {gains[0]:+.2f} logits from attention and {gains[1]:+.2f} from "
            "FFNs.")


def _share(change: dict[str, Any], group: str) -> float:
    return sum(sum(row) for role, row in change["share"].items() if role.startswith(group))


def _after(layer: int | None) -> str:
    if layer is None:
        return MISSING
    return "in the embedding" if layer < 0 else f"after layer {layer}"
