"""Display of a search space as a tree, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.text import Text
from rich.tree import Tree

from ..report.style.numbers import count, finite, percent, rate
from .texts import duration


def show_space(nodes: Sequence[Mapping[str, Any]], totals: Mapping[str, Any]) -> Group:
    """Render the nodes of a search space as a tree, followed by totals, as `cofitune search --dry-run` prints them.

    Args:
        nodes: parents before their children, each with id, parent, level, level_name, region, trained_parameters, share
            (of all parameters), full_sft (cost in full fine-tunings, or None), learning_rate, left_out
            (what a node beyond the limits needs, or None), and kind: "node", or "later" for a node that is tried only
            if its parent wins.
        totals: nodes, and as far as known strategy, nodes_likely, full_sft_likely, full_sft_most, full_sft_paper and
            seconds.
    """
    levels = dict.fromkeys(node["level_name"] for node in nodes)
    tree = Tree("", guide_style="dim", hide_root=True)
    branches: dict[Any, Tree] = {}
    depths: dict[Any, int] = {}
    for node in nodes:
        depths[node["id"]] = depths.get(node["parent"], -1) + 1
    sizes = {node["id"]: f"{count(node['trained_parameters'])} ({percent(node['share'])})" for node in nodes}
    width = max((len(node["region"]) + 4 * depths[node["id"]] for node in nodes), default=0)
    size = max(map(len, sizes.values()), default=0)
    for node in nodes:
        line = _line(node, f"{node['region']:{width - 4 * depths[node['id']]}}  {sizes[node['id']]:>{size}}")
        branches[node["id"]] = branches.get(node["parent"], tree).add(line)
    return Group(Text(" › ".join(levels), style="bold"), tree, *(Text(line) for line in _totals(totals)))


def _line(node: Mapping[str, Any], begin: str) -> Text:
    cost = f"{node['full_sft']:.2f} × full SFT" if finite(node.get("full_sft")) else ""
    learning_rate = f"lr {rate(node['learning_rate'])}" if finite(node.get("learning_rate")) else ""
    left_out = f"  left out: it needs {node['left_out']}" if node.get("left_out") else ""
    line = Text(f"{begin}  {cost:>15}  {learning_rate}{left_out}".rstrip())
    if node.get("kind") == "later" or left_out:
        line.stylize("dim")
    return line


def _totals(totals: Mapping[str, Any]) -> list[str]:
    strategy = totals.get("strategy") or "a search"
    tried = f", of which {strategy} tries about {totals['nodes_likely']}" if finite(totals.get("nodes_likely")) else ""
    lines = [f"{totals['nodes']} nodes in the whole space{tried}."]
    likely, most, paper = (totals.get(f"full_sft_{name}") for name in ("likely", "most", "paper"))
    if finite(most):
        about = f"about {likely:.2f} and " if finite(likely) and likely != most else ""
        lines.append(f"Cost: {about}at most {most:.2f} × full SFT.")
    if finite(paper):
        lines.append(f"The paper's way, every child of a level to the end and nothing cached: {paper:.2f} × full SFT.")
    if finite(totals.get("seconds")):
        lines.append(f"Time: about {duration(totals['seconds'])}.")
    return lines
