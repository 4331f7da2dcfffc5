"""Work of a search, counted from its base, rows and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..trials import TrialSetup, Workbench
from .budget import Work


def final_work(bench: Workbench, work: Work, final_training: Mapping[str, Any]) -> Work:
    """Return `work` as it would be with the training arguments of the chosen region; empty ones change nothing."""
    return replace(work, epochs=bench.schedule(final_training).epochs) if final_training else work


def search_work(bench: Workbench, setup: TrialSetup, full_training: Mapping[str, Any]) -> Work:
    """Count the work of a search with these settings."""
    layout, rows, schedule = bench.layout, bench.train_rows, bench.schedule(setup.training)
    per_layer = {cell.name: layout.parameter(cell).numel() for cell in layout.cells}
    embedding = bench.model.get_input_embeddings().weight
    scored, early = bench.suite_tokens("valid"), bench.signal_tokens("valid", setup.drift_rows)
    anchored = {}
    if (anchor := setup.anchor).weight > 0:
        tokens, responses = bench.anchor_tokens(anchor)
        share = schedule.batches * min(anchor.rows, anchor.texts) / anchor.texts
        anchored = {"anchor_tokens": round(share * tokens), "anchor_responses": round(share * responses),
                    "anchor_texts": tokens}
    return Work(
        layout.num_layers, sum(per_layer.values()) // layout.num_layers, embedding.numel(),
        sum(len(row.input_ids) - 1 for row in rows), sum(len(row.input_ids) - row.response_start for row in rows),
        schedule.epochs, bench.schedule(full_training or setup.training, full=True).epochs,
        *scored, *early, cached=setup.memory.prefix_cache != "off", **anchored,
    )
