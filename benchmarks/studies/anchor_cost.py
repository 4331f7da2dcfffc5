"""What the anchor's short cuts leave out, and what an anchored step costs, on a real model.

python benchmarks/studies/anchor_cost.py MODEL DATA.jsonl [--region TEXT] [--rows 160] [--json FILE]

Error: a region is trained without an anchor, so that it drifts; then the KL to the base on the base's own texts, of the
whole distributions and of the k most probable tokens with the rest as one. Cost: the same rows in the same batches with
the anchor and without, in turn, each once before the clock runs, so that the prefix cache is full.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from cofitune_fast.anchor import Anchor, AnchorSettings
from cofitune_fast.data import batches, label_predictors
from cofitune_fast.losses import TopKl
from cofitune_fast.models import load_model
from cofitune_fast.models.head import logits_at
from cofitune_fast.regions import Region
from cofitune_fast.training import TrainOptions
from cofitune_fast.trials import TrialData, Workbench

sys.path.insert(0, str(Path(__file__).parents[1]))
from provenance import save

SIZES = (1, 4, 16, 64, 256)
ROUNDS = 3


@torch.no_grad()
def log_probabilities(bench: Workbench, anchor: Anchor) -> torch.Tensor:
    """Of all tokens at every response token of the texts, bfloat16 models' logits in float32."""
    found: list[Any] = [None] * len(anchor.rows)
    for indices, batch in batches(anchor.rows, bench.pad_token_id, max_tokens=512):
        mask, _ = label_predictors(batch["labels"])
        log_q = torch.log_softmax(logits_at(bench.model, batch, mask).float(), -1)
        sizes = [len(anchor.rows[index].ids) for index in indices]
        for index, part in zip(indices, log_q.split(sizes), strict=True):
            found[index] = part
    return torch.cat(found)


def errors(bench: Workbench, region: Region, training: dict[str, Any]) -> list[dict[str, Any]]:
    anchor = bench.anchor(AnchorSettings(weight=1.0, texts=24, top_k=max(SIZES)))
    log_p = log_probabilities(bench, anchor)
    with bench.trial(region), tempfile.TemporaryDirectory() as folder:
        bench.train(region, folder, training)
        log_q = log_probabilities(bench, anchor)
    exact = (log_p.exp() * (log_p - log_q)).sum(-1)
    rows = []
    for k in SIZES:
        top = log_p.topk(k)
        merged = TopKl(top.indices, top.values).token_losses(log_q, slice(None))
        rows.append({"kind": "error", "top_k": k, "tokens": len(exact),
                     "tail": (1 - top.values.exp().sum(-1)).mean().item(),
                     "kl": exact.mean().item(), "kl_of_top_k": merged.mean().item(),
                     "share": (merged.mean() / exact.mean()).item()})
    return rows


def costs(bench: Workbench, region: Region, training: dict[str, Any]) -> list[dict[str, Any]]:
    sides = {"without": None, "anchored": bench.anchor(AnchorSettings(weight=1.0))}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        for name, anchor in sides.items():
            with bench.trial(region), tempfile.TemporaryDirectory() as folder:
                result = bench.train(region, folder, training, TrainOptions(anchor=anchor))
            if number:
                seconds[name].append(result.seconds)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return [{"kind": "cost", "region": str(region), "steps": result.steps, "seconds": median,
             "ratio": median["anchored"] / median["without"], "anchor_kl": result.anchor_kl}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--region", default="ffn.up+ffn.down@50%-75%")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    data = TrialData(train=arguments.data, max_length=256, limit=arguments.rows)
    bench, region = Workbench(load_model(arguments.model), data), Region.parse(arguments.region)
    training = {"learning_rate": 4e-4, "per_device_train_batch_size": 8, "num_train_epochs": 1, "seed": 1}
    results = errors(bench, region, training) + costs(bench, region, training)
    for row in results:
        print(row)
    if arguments.json:
        save(arguments.json, "anchor_cost", results)


if __name__ == "__main__":
    main()
