"""Measure importance on a stream of batches, and leave the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ..errors import CofituneError
from ..models.head import Head
from ..models.mode import evaluation_mode
from ..progress import progress as announced
from ..regions import BaseInfo, Region, resolve_layout
from .gates import collect
from .importance import Importance
from .names import UNITS, joined, known, unit_count
from .noise import dropout_only, seeded
from .proxies import PROXIES


def compute_importance(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    region: Region | str | None = None,
    *,
    units: Sequence[str] = UNITS,
    proxy: str = "kl_dropout",
    dropout: float = 0.003,
    seed: int = 0,
    base: tuple[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Importance:
    """Compute the mean over samples n of |dL_n/dg_u|, for every unit u in the layers of `region` (None: all layers).

    Formula: DAS (Ke et al., ICLR 2023), CoFiTune (arXiv 2404.10306), with the absolute value per sample.

    With experts in the measured layers one sample is run at a time, without its padding; see `gates`. A token that was
    not sent to an expert says nothing about it: an expert that saw none of the tokens has importance 0. Kinds that no
    measured layer has, such as neurons in a model of mixers only, are left out.

    model: a causal language model in bfloat16 or float32. Its bytes, gradients, requires_grad and training flags, hooks
        and attention dropout are restored, and so are torch's random states, also after an exception.
    batches: dicts with `input_ids` and `attention_mask` [rows, tokens], and `labels` for proxy "task_nll"; each is
        moved to the model's device. "kl_dropout" runs every row twice in one forward, so memory is that of two rows.
    units: the kinds to measure, of "ffn.neuron", "ffn.output" and "attn.head".
    proxy: "kl_dropout" (the paper: disagreement of two passes under dropout) or "task_nll" (NLL of the response, no
        dropout).
    dropout, seed: probability and seed of the noise of "kl_dropout". Equal seeds and batches give equal scores.
    base: (model source, fingerprint) for the artefact; None: taken from the model, which hashes all its bytes.
    progress: called after every batch with the number of samples so far.
    Raises CofituneError for empty or malformed batches, float16 weights, unknown names, layers without any of the
    units, and non-finite scores.
    """
    chosen = PROXIES[known(proxy, PROXIES, "importance proxy")]
    units = tuple(dict.fromkeys(known(kind, UNITS, "unit kind") for kind in units))
    if not units:
        raise CofituneError(f"No unit kind is named; give at least one of {', '.join(UNITS)}.")
    noisy = chosen.passes == 2
    if noisy and not 0 < dropout < 1:
        raise CofituneError(
            f"The dropout of proxy {proxy} must lie between 0 and 1, not {dropout}: without noise the two passes "
            "agree and nothing can be measured."
        )
    if any(p.dtype == torch.float16 for p in model.parameters()):
        raise CofituneError(
            "Importance needs bfloat16 or float32 weights, as the proxy's gradients underflow in float16; load the "
            "model with dtype bfloat16."
        )
    layout = resolve_layout(model)
    region = Region.full() if region is None else Region.parse(region)
    layers = sorted({cell.layer for cell in region.cells(layout)})
    if not any(unit_count(layout, layer, kind) for kind in units for layer in layers):
        raise CofituneError(
            f"No layer of region '{region}' has units of the kind {' or '.join(units)}: mixers have none, so their "
            "importance is not measured; name a region with attention or a feed-forward part."
        )
    if base is None:
        info = BaseInfo.of(model)
        base = info.model, info.fingerprint

    samples, head = 0, None
    seeds = torch.Generator().manual_seed(seed)
    with (evaluation_mode(model), collect(model, layout, layers, units, passes=chosen.passes) as gates,
          announced("Measuring importance", unit="rows") as task):
        for number, raw in enumerate(batches, start=1):
            batch = _checked(raw, number, next(model.parameters()).device)
            if number == 1 and chosen.uses_head:
                head = Head.of(model)
            for part in _samples(batch) if gates.one_sample else [batch]:
                rows = {name: tensor.repeat_interleave(chosen.passes, 0) for name, tensor in part.items()}
                gates.attention_mask = rows["attention_mask"]
                # A seed for each backward, so random numbers drawn by the iterator of batches do not change the noise.
                noise = dropout_only(layout, dropout) if noisy else nullcontext()
                its_seed = int(torch.randint(2**62, (), generator=seeds))
                with noise, seeded(model, its_seed), torch.enable_grad():
                    chosen.loss(model, rows, head).backward()
                gates.end_sample()
            samples += len(batch["input_ids"])
            task.advance(len(batch["input_ids"]))
            if progress is not None:
                progress(samples)
    if not samples:
        raise CofituneError("There is no sample to measure importance on: the batches are empty.")
    means = {kind: [gates.scores[kind][layer].cpu() / samples for layer in layers] for kind in units}
    scores = {kind: joined(rows) for kind, rows in means.items() if any(row.numel() for row in rows)}
    settings = {
        "proxy": proxy, "dropout": dropout if noisy else 0.0, "seed": seed, "region": str(region),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    return Importance(scores, tuple(layers), samples, *base, settings)


def _samples(batch: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield batches of one row each, cut to the tokens between the padding."""
    for row, mask in enumerate(batch["attention_mask"].bool()):
        places = mask.nonzero()[:, 0]
        first, last = int(places[0]), int(places[-1])
        yield {name: tensor[row : row + 1, first : last + 1] for name, tensor in batch.items()}


def _checked(batch: Mapping[str, Tensor], number: int, device: torch.device) -> dict[str, Tensor]:
    """Check a batch; returns the tensors that a proxy reads, on the model's device."""
    if not isinstance(batch, Mapping):
        raise CofituneError(f"Batch {number} is a {type(batch).__name__}; it must be a dict of tensors.")
    names = ["input_ids", "attention_mask", *(["labels"] if "labels" in batch else [])]
    for name in names:
        if not isinstance(batch.get(name), Tensor):
            raise CofituneError(f"Batch {number} has no tensor `{name}`; give input_ids and attention_mask.")
        shape = list(batch[name].shape)
        if len(shape) != 2 or shape != list(batch["input_ids"].shape):
            raise CofituneError(
                f"`{name}` of batch {number} has shape {shape}; it must be [rows, tokens] as that of input_ids."
            )
    if 0 in batch["input_ids"].shape:
        raise CofituneError(f"Batch {number} holds no token; leave it out.")
    checked = {name: batch[name].to(device) for name in names}
    if not checked["attention_mask"].bool().any(1).all():
        raise CofituneError(f"Batch {number} has a row without any token (its attention_mask is all 0); leave it out.")
    return checked
