"""Measure a base and its fine-tuned variants on the same rows: weight change, logit lens and contributions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..artefacts.analysis import Counts, Measured
from ..data import batches, pad_token_id
from ..errors import CofituneError
from ..models.mode import evaluation_mode
from ..progress import tracked
from ..regions import BaseInfo, Layout, resolve_layout
from ..scoring import Task
from ..scoring.results import ItemScore, make_score
from ..scoring.score import task_rows
from .change import weight_change
from .direct import direct_contributions
from .readout import Lens, Readout, read_lens
from .stream import read_stream
from .variants import Variant, applied

BATCH_TOKENS = 1024
"""Bound on a batch, as the states of all layers at its response positions are in memory together."""


@dataclass
class _Reading:
    """Readings at all response positions of all rows, in the same order for every model. rows: int64 [n]."""

    lens: Lens
    contributions: Tensor
    rows: Tensor


def analyze(
    model: nn.Module, tokenizer: Any, task: Task, variants: Sequence[Variant], base: BaseInfo, *,
    max_length: int | None = None, tell: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Measure the base `model` and each variant on the responses of `task`.

    Returns the measured parts of analysis.json: "layers", "roles", "data" and "models"; docs/analysis.md explains each
    figure. The weights and training flags of `model` are restored. `tell` is called with the name of each model before
    it is read.

    Raises:
        CofituneError: the layout is not supported, the task has no responses, a variant has another base, or a model's
            states are not finite.
    """
    layout = resolve_layout(model)
    readout = Readout(model, layout)
    if task.kind == "choice":
        raise CofituneError(f"The task {task.name} has choices and no responses to read; give rows with a prompt and "
                            "its completion.")
    rows = task_rows(task, tokenizer, max_length)
    plan = list(batches(rows, pad_token_id(tokenizer), max_tokens=BATCH_TOKENS))
    tell("base")
    start = _read(model, layout, readout, plan, None)
    right = start.lens.rank[:, -1] == 1
    models = [{"name": "base", "path": base.model, "region": None, "change": None,
               **_figures(start, layout, torch.zeros_like(right))}]
    for variant in variants:
        tell(variant.name)
        with applied(model, variant, base.fingerprint) as before:
            change = weight_change(model, layout, before)
            reading = _read(model, layout, readout, plan, start.lens.rivals)
        gained = ~right & (reading.lens.rank[:, -1] == 1)
        models.append({"name": variant.name, "path": variant.path, "region": variant.region, "change": change,
                       **_figures(reading, layout, gained)})
    data = {"task": task.name, "rows": len(rows), "tokens": len(start.rows)}
    return {"layers": layout.num_layers, "roles": list(layout.roles), "data": data, "models": models}


def _read(
    model: nn.Module, layout: Layout, readout: Readout, plan: list[tuple[list[int], dict[str, Tensor]]],
    rivals: Tensor | None,
) -> _Reading:
    """Read a model on all batches. rivals: int64 [n], the tokens to measure contributions against; None: its own."""
    lenses, contributions, rows = [], [], []
    done = 0
    with evaluation_mode(model), torch.no_grad():
        for indices, batch in tracked(plan, "Reading the layers", "batches"):
            stream = read_stream(model, layout, batch)
            readout.check(stream)
            lens = read_lens(readout, stream)
            against = lens.rivals if rivals is None else rivals[done : done + len(lens.rivals)]
            contributions.append(direct_contributions(readout, stream, against))
            rows.append(torch.tensor(indices)[stream.rows.cpu()])
            lenses.append(lens)
            done += len(against)
    return _Reading(Lens.join(lenses), torch.cat(contributions), torch.cat(rows))


def _figures(reading: _Reading, layout: Layout, gained: Tensor) -> dict[str, Any]:
    """Figures of one model: "lens", "readable", "direct". gained: bool [n], tokens right here and wrong in the base."""
    lens, layers = reading.lens, layout.num_layers
    mean = reading.contributions.double().mean(0).tolist()
    readable = lens.readable()
    return {
        "lens": {
            "nll": lens.nll.double().mean(0).tolist(),
            "nll_se": [_error(lens.nll[:, depth], reading.rows) for depth in range(layers + 1)],
            "top1": (lens.rank == 1).double().mean(0).tolist(),
            "median_rank": lens.rank.median(0).values.tolist(),
            "kl": lens.kl.double().mean(0).tolist(),
        },
        "readable": {"all": _counts(readable, layers), "gained": _counts(readable[gained], layers)},
        "direct": {"embedding": mean[0], "attention": mean[1 : layers + 1], "ffn": mean[layers + 1 : 2 * layers + 1],
                   "rounding": mean[-1], "total": sum(mean)},
    }


def _counts(readable: Tensor, layers: int) -> Counts:
    """Count tokens by the layer from which on they are readable, with the embedding first, and those that never are."""
    counts = readable.bincount(minlength=layers + 2).tolist()
    return {"counts": counts[: layers + 1], "never": counts[layers + 1]}


def _error(nll: Tensor, rows: Tensor) -> float:
    """Standard error of the mean NLL per token, with rows as the sample, as in `scoring`."""
    sums = torch.zeros(int(rows.max()) + 1, dtype=torch.float64).index_add_(0, rows, nll.double())
    items = [ItemScore(total, tokens, False) for total, tokens in zip(sums.tolist(), rows.bincount().tolist(),
                                                                      strict=True)]
    return make_score(items, "nll", "exact").metrics["nll_se"]
