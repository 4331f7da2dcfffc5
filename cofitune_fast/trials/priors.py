"""Priors: cheap signals that predict, before any node is trained, which regions are worth it.

docs/search.md reports how well they predict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..data import Encoded, collate, label_predictors
from ..errors import CofituneError
from ..models.fingerprint import named_parameters
from ..models.head import logits_at, select_positions
from ..models.mode import evaluation_mode
from ..regions import Region
from .workbench import Workbench

ROWS, BATCH, PROMPT_TOKENS = 32, 8, 16
Prior = Callable[[Sequence[Region], Sequence[float]], list[float]]
PriorName = Literal["gradient", "kl", "spectrum"]


def make_prior(name: PriorName, bench: Workbench) -> Prior:
    """Return a function of regions and their learning rates that scores each region; the largest are tried first.

    Raises:
        CofituneError: the name is unknown.
    """
    priors = {"gradient": first_order_gain, "kl": gain_minus_kl, "spectrum": spare_rank}
    if name not in priors:
        raise CofituneError(f"Unknown prior {name!r}; known are {', '.join(priors)}.")
    return lambda regions, rates: priors[name](bench, regions, rates)


def first_order_gain(bench: Workbench, regions: Sequence[Region], rates: Sequence[float]) -> list[float]:
    """Score regions by rate * sum |dL/dw|, in nats per response token.

    To first order, one step of Adam, which moves each parameter by about the rate, lowers the loss by this much. It
    takes one backward through the whole model on 32 training rows.
    """
    model, sums, parts = bench.model, {}, {}
    for cell in bench.layout.cells:
        for name, whole, part in ((cell.name, cell.parameter, cell.part), (cell.bias_name, cell.bias, cell.bias_part)):
            if part is not None:
                parts.setdefault(whole, {})[name] = part
    for parameter in model.parameters():
        parameter.requires_grad_(True)

    def add(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            sizes = parameter.grad.float().abs()
            sums[name] = sums.get(name, 0.0) + sizes.sum().item()
            for trained, part in parts.get(name, {}).items():
                sums[trained] = sums.get(trained, 0.0) + part.of(sizes).sum().item()
            parameter.grad = None  # keep at most one gradient in memory

        return hook

    handles = [parameter.register_post_accumulate_grad_hook(add(name)) for name, parameter in named_parameters(model)]
    groups = _batches(bench)
    try:
        with evaluation_mode(model):
            for rows in groups:
                _loss(bench, rows).backward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    return [rate * sum(sums.get(name, 0.0) for name, _ in region.parameters(model)) / len(groups)
            for region, rate in zip(regions, rates, strict=True)]


def gain_minus_kl(bench: Workbench, regions: Sequence[Region], rates: Sequence[float]) -> list[float]:
    """Score regions by the gain of a few steps along the sign of the gradient, less the drift they cause.

    The gain is the drop of the loss. The drift is the KL divergence from the base's next-token distributions at the end
    of the prompts. Both are in nats per token, on 32 training rows.
    """
    groups = _batches(bench)
    with torch.no_grad(), evaluation_mode(bench.model):
        before = [(_loss(bench, rows).item(), _prompt_log_probabilities(bench, rows)) for rows in groups]
    return [_gain_minus_kl(bench, region, rate, groups, before) for region, rate in zip(regions, rates, strict=True)]


def _gain_minus_kl(
    bench: Workbench, region: Region, rate: float, groups: list[list[Encoded]], before: list[tuple[float, Tensor]]
) -> float:
    with bench.trial(region), evaluation_mode(bench.model):
        trained = [parameter for _, parameter in region.apply(bench.model)]
        for rows in groups:
            gradients = torch.autograd.grad(_loss(bench, rows), trained)
            with torch.no_grad():
                for parameter, gradient in zip(trained, gradients, strict=True):
                    parameter.sub_(rate * gradient.sign())
        value = 0.0
        with torch.no_grad():
            for rows, (loss, base) in zip(groups, before, strict=True):
                now = _prompt_log_probabilities(bench, rows)
                divergence = torch.nn.functional.kl_div(now, base, reduction="batchmean", log_target=True)
                value += loss - _loss(bench, rows).item() - divergence.item()
    return value / len(groups)


def spare_rank(bench: Workbench, regions: Sequence[Region], rates: Sequence[float]) -> list[float]:
    """Score regions by 1 - effective rank / full rank, averaged over the region's matrices.

    It measures how much of the matrices the base leaves unused. The effective rank is the exponential of the entropy of
    the normalised singular values (Roy and Vetterli, 2007).
    """
    known: dict[str, float] = {}

    def spare(name: str, weight: Tensor) -> float:
        if name not in known:
            values = torch.linalg.svdvals(weight.detach().float())
            shares = values / values.sum(-1, keepdim=True)
            known[name] = 1 - torch.special.entr(shares).sum(-1).exp().mean().item() / values.shape[-1]
        return known[name]

    result = []
    for region in regions:
        spares = [spare(name, weight) for name, weight in region.parameters(bench.model) if weight.dim() > 1]
        result.append(sum(spares) / len(spares))
    return result


def _batches(bench: Workbench) -> list[list[Encoded]]:
    rows = sorted(bench.train_rows[:ROWS], key=lambda row: len(row.input_ids))
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]


def _loss(bench: Workbench, rows: Sequence[Encoded]) -> Tensor:
    batch = _on_device(bench, rows)
    mask, targets = label_predictors(batch["labels"])
    logits = logits_at(bench.model, batch, mask)
    return torch.nn.functional.cross_entropy(logits.float(), targets.to(logits.device))


def _prompt_log_probabilities(bench: Workbench, rows: Sequence[Encoded]) -> Tensor:
    """Return log-probabilities after the last tokens of each prompt, float32 [positions, vocabulary]."""
    batch = _on_device(bench, rows)
    prompt = (batch["attention_mask"] == 1) & (batch.pop("labels") < 0)
    chosen = prompt & (prompt.flip(1).cumsum(1).flip(1) <= PROMPT_TOKENS)
    with select_positions(bench.model, chosen):
        logits = bench.model(**batch, use_cache=False).logits
    return logits.flatten(0, -2).float().log_softmax(-1)


def _on_device(bench: Workbench, rows: Sequence[Encoded]) -> dict[str, Tensor]:
    device = bench.model.get_input_embeddings().weight.device
    return {name: tensor.to(device) for name, tensor in collate(rows, bench.pad_token_id).items()}
