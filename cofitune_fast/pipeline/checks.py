"""Checks of a finished delta: the files on disk hold exactly the weights that were trained and scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..artefacts.run import CheckRow, MethodEntry
from ..models import LoadedModel, load_model
from ..models.fingerprint import combine_digests, fingerprint, tensor_digests
from ..regions import Region, load_delta, merge, tensors_named, whole_name
from ..trials import Workbench

SCORES = ("spec", "knowledge", "reasoning", "instruction")


def check_delta(bench: Workbench, row: MethodEntry, delta: Path, merged: Path) -> list[CheckRow]:
    """Merge a delta, reload the merged folder and compare it with the row of its method.

    The merge is skipped where the folder exists. The folder is loaded into host memory. For scoring, the region's
    tensors are copied into the live model, so that no second model occupies the device and both are scored with the
    same load options.

    Returns:
        Checks as {"name", "passed", "detail"}.
    """
    region, run = Region.parse(row["region"]), row["run"]
    with bench.trial(region):
        load_delta(bench.model, delta, base_fingerprint=bench.base.fingerprint)
        tuned = fingerprint(bench.model)
    if not merged.is_dir():
        merge(LoadedModel(bench.model, bench.tokenizer, bench.source), delta, merged)
    stranger = load_model(merged, device="cpu", roles=getattr(bench.model, "cofitune_roles", None)).model
    digests = tensor_digests(stranger)
    trained = {whole_name(name) for name, _ in region.parameters(bench.model)}
    outside = {name for name, digest in digests.items() if digest != bench.digests.get(name)} - trained
    checks = [
        _check("frozen tensors unchanged", not outside,
               f"{run['frozen_tensors']} tensors, {run['frozen_bytes'] / 1e6:.1f} MB, same SHA-256 in the base and in "
               "the merged model" if not outside else f"changed: {', '.join(sorted(outside))}"),
        _check("merged model equals base + delta", combine_digests(digests) == tuned,
               f"fingerprint {tuned[:12]} of {merged.name}/, reloaded from disk"),
    ]
    again = _scores_with(bench, region, tensors_named(stranger, [name for name, _ in region.parameters(bench.model)]))
    largest = max(abs(again[key] - row[key]) for key in SCORES)
    return [*checks, _check("merged model scores the same", largest == 0.0,
                            f"largest difference of a score on test: {largest:.1g}")]


def _scores_with(bench: Workbench, region: Region, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    with bench.trial(region), torch.no_grad():
        for name, parameter in region.parameters(bench.model):
            parameter.copy_(tensors[name])
        return bench.score("test").to_dict()


def _check(name: str, passed: bool, detail: str) -> CheckRow:
    return {"name": name, "passed": passed, "detail": detail}
