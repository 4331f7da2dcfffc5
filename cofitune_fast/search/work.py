"""Work of a search, counted from its base, rows and settings."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..regions import Cell, Layout
from ..trials import TrialSetup, Workbench
from .budget import Work

_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "top_k", "moe_topk", "moe_top_k", "moe_k")


def token_weights(cells: Iterable[Cell], layout: Layout) -> int:
    """Count the weights of `cells` that one token is multiplied with. Of experts [experts, ...] these are its own."""
    total = 0.0
    for cell in cells:
        weight = layout.parameter(cell)
        experts = len(layout.whole(cell)) if layout.whole(cell).dim() == 3 else 1
        total += weight.numel() * min(1.0, _experts_per_token(layout, cell.layer) / experts if experts > 1 else 1.0)
    return round(total)


def _experts_per_token(layout: Layout, layer: int) -> int:
    """Number of experts that each token goes to, as the layer's router or its config says; all if neither does."""
    for module in layout.decoder_layer(layer).modules():
        for holder in (module, getattr(module, "config", None)):
            for name in _PER_TOKEN:
                if isinstance(value := getattr(holder, name, None), int) and value > 0:
                    return value
    return sys.maxsize


def final_work(bench: Workbench, work: Work, final_training: Mapping[str, Any]) -> Work:
    """Return `work` as it would be with the training arguments of the chosen region; empty ones change nothing."""
    return replace(work, epochs=bench.schedule(final_training).epochs) if final_training else work


def search_work(bench: Workbench, setup: TrialSetup, full_training: Mapping[str, Any]) -> Work:
    """Count the work of a search with these settings."""
    layout, rows, schedule = bench.layout, bench.train_rows, bench.schedule(setup.training)
    per_layer = [token_weights((cell for cell in layout.cells if cell.layer == layer), layout)
                 for layer in range(layout.num_layers)]
    embedding = bench.model.get_input_embeddings().weight
    scored, early = bench.suite_tokens("valid"), bench.signal_tokens("valid", setup.drift_rows)
    anchored = {}
    if (anchor := setup.anchor).weight > 0:
        tokens, responses = bench.anchor_tokens(anchor)
        share = schedule.batches * min(anchor.rows, anchor.texts) / anchor.texts
        anchored = {"anchor_tokens": round(share * tokens), "anchor_responses": round(share * responses),
                    "anchor_texts": tokens}
    return Work(
        tuple(per_layer), embedding.numel(),
        sum(len(row.input_ids) - 1 for row in rows), sum(len(row.input_ids) - row.response_start for row in rows),
        schedule.epochs, bench.schedule(full_training or setup.training, full=True).epochs,
        *scored, *early, cached=setup.memory.prefix_cache != "off", **anchored,
    )
