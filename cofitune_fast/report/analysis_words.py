"""What an analysis says in sentences and rows, from its figures alone."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from .numbers import MISSING, NBSP, percent


def sentences(analysis: dict[str, Any]) -> list[str]:
    """Two sentences for each fine-tuned model: where its weights moved, and where its answers become readable."""
    base, *others = analysis["models"]
    return [text for model in others for text in (_moved(model, analysis), _entered(model, base, analysis["layers"]))]


def rows(analysis: dict[str, Any]) -> list[dict[str, str]]:
    """One row of texts per model, the base first."""
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
    """The layer by which half of the readable tokens are readable; -1 is the embedding, None if none ever is."""
    whole = sum(part["counts"])
    totals = accumulate(part["counts"])
    return next((depth - 1 for depth, total in enumerate(totals) if 2 * total >= whole), None) if whole else None


def half_gain_layer(model: dict[str, Any], base: dict[str, Any]) -> int | None:
    """The first layer from which on at least half of the last layer's difference in NLL to the base is there; -1 is the
    embedding, None without a gain."""
    gains = [old - new for old, new in zip(base["lens"]["nll"], model["lens"]["nll"], strict=True)]
    if gains[-1] <= 0:
        return None
    below = [depth for depth, gain in enumerate(gains) if gain < gains[-1] / 2]
    return max(below, default=-1)  # depth d is the state after layer d - 1, and the one behind the last below counts


def _moved(model: dict[str, Any], analysis: dict[str, Any]) -> str:
    change = model["change"]
    if not change["total"]:
        return f"{model['name']}: its weights are those of the base."
    cells = [(value or 0, role, layer) for role, row in change["relative"].items() for layer, value in enumerate(row)]
    value, role, layer = max(cells)
    parts = [f"{percent(_share(change, 'ffn'))} of the squared change in the FFNs",
             f"{percent(_share(change, 'attn'))} in attention"]
    if change["rest"]["share"]:
        parts.append(f"{percent(change['rest']['share'])} in embedding, head and norms")
    return (f"{model['name']} moved the weights by {percent(change['total'])} of their norm, {', '.join(parts)}; the cell "
            f"that moved furthest for its size is {role} of layer {layer} of 0-{analysis['layers'] - 1} ({percent(value)}).")


def _entered(model: dict[str, Any], base: dict[str, Any], layers: int) -> str:
    old, new = base["lens"], model["lens"]
    text = (f"{model['name']}: the NLL per token goes from {old['nll'][-1]:.3f}{NBSP}±{NBSP}{old['nll_se'][-1]:.3f} to "
            f"{new['nll'][-1]:.3f}{NBSP}±{NBSP}{new['nll_se'][-1]:.3f}")
    half = half_gain_layer(model, base)
    if half is None:
        return f"{text}, so nothing was gained on these rows."
    text += f", and half of that gain is readable {_after(half)}"
    gained = median_layer(model["readable"]["gained"])
    if gained is not None:
        count = sum(model["readable"]["gained"]["counts"])
        text += (f"; the {count} tokens that only training made right become readable {_after(gained)} in the median "
                 f"(all tokens that the base has right: {_after(median_layer(base['readable']['all']))})")
    gain = {name: sum(model["direct"][key]) - sum(base["direct"][key])
            for key, name in (("attention", "attention"), ("ffn", "the FFNs"))}
    return text + "; of the right token's lead, " + " and ".join(
        f"{value:+.2f} logits came with {name}" for name, value in gain.items()) + "."


def _share(change: dict[str, Any], group: str) -> float:
    return sum(sum(row) for role, row in change["share"].items() if role.startswith(group))


def _after(layer: int | None) -> str:
    if layer is None:
        return MISSING
    return "in the embedding" if layer < 0 else f"after layer {layer}"
