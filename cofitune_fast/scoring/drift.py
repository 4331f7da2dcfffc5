"""Drift from the base: KL(base || model) of the next token, on the responses of given rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..data import Encoded, batches, label_predictors
from ..errors import CofituneError
from ..models.head import head_weight, hidden_states
from ..models.mode import evaluation_mode
from ..models.sharded import whole
from ..ops.linear_kl import reference as kl_of_logits
from ..ops.linear_kl import to_logits
from .metrics import DriftItem
from .results import Score, SuiteScores, score_of

CHUNK_BYTES = 256 * 2**20
"""Bound on the float32 logits of both sides and the temporary tensors of the divergence."""
_BATCH_TOKENS = 4096
_TENSORS_AT_ONCE = 8  # float32 tensors [tokens, vocabulary] in `kl_of_logits`, with its arguments


@dataclass(frozen=True, eq=False)
class BaseStates:
    """The base's side of the drift: its states before the head, at the places that predict a response, and its head.

    rows: as given to `base_states`.
    states: for each batch [N, hidden] on the CPU, in the model's dtype: in bfloat16 2 bytes times the hidden size per
        response token.
    head: the base's weight [vocabulary, hidden] on the CPU. softcap: the soft cap of its logits, or None.
    """

    rows: Sequence[Encoded] = field(repr=False)
    pad_token_id: int
    states: list[Tensor] = field(repr=False)
    head: Tensor = field(repr=False)
    softcap: float | None

    def drift(self, model: nn.Module) -> Score:
        """Compute the mean KL(base || model) per response token in nats, with its standard error over rows.

        The mean is a ratio estimator, and its items are DriftItem. model: the former base; its weights and its head may
        have changed. Products and logarithms are in float32, so an unchanged model has a drift of exactly 0.
        """
        weight, softcap = _whole_head(model)
        if weight.shape != self.head.shape or softcap != self.softcap:
            raise CofituneError(
                f"The head of this model has the shape {list(weight.shape)} and the soft cap {softcap}, the base's "
                f"{list(self.head.shape)} and {self.softcap}; measure the drift of the model that the base states are "
                "of."
            )
        base_weight = weight if torch.equal(weight.cpu(), self.head) else self.head.to(weight.device)
        items: list[DriftItem | None] = [None] * len(self.rows)
        for (indices, sizes, states), base in zip(
            _states(model, self.rows, self.pad_token_id), self.states, strict=True
        ):
            kl = _token_kl(base.to(states.device), states, base_weight, weight, softcap)
            if not kl.isfinite().all():
                raise CofituneError("The drift from the base is not finite; the model's weights may be damaged.")
            for index, row in zip(indices, kl.split(sizes), strict=True):
                items[index] = DriftItem(row.sum().item(), len(row))
        return score_of(items, "kl", ("kl",))


def base_states(
    model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, *, like: BaseStates | None = None
) -> BaseStates:
    """Compute the base's side once, while `model` holds the base's weights. Later drifts need no second model.

    rows: at least 2; the distributions are compared on their responses. The head is copied to the CPU, in bfloat16
    2 bytes times vocabulary times hidden size. The copy is needed as a tied head is trained with the embedding.
    like: states of the same base on other rows, whose copy of the head is used too.
    """
    if len(rows) < 2:
        raise CofituneError(f"The drift is to be measured on {len(rows)} row(s); a standard error needs at least 2.")
    weight, softcap = _whole_head(model)
    states = [states.cpu() for _, _, states in _states(model, rows, pad_token_id)]
    head = weight.detach().to("cpu", copy=True) if like is None else like.head
    return BaseStates(rows, pad_token_id, states, head, softcap)


def with_drifts(scores: SuiteScores, model: nn.Module, bases: Mapping[str, BaseStates]) -> SuiteScores:
    """Add the drifts of `model` from the base to its scores; bases: {name in `results.DRIFTS`: the base's states}."""
    return replace(scores, **{name: base.drift(model) for name, base in bases.items()})


def _whole_head(model: nn.Module) -> tuple[Tensor, float | None]:
    """Return the head's weight and soft cap; of a sharded model every rank gathers the weight."""
    weight, softcap = head_weight(model)
    return whole(weight), softcap


@torch.no_grad()
def _states(
    model: nn.Module, rows: Sequence[Encoded], pad_token_id: int
) -> Iterator[tuple[list[int], list[int], Tensor]]:
    """Yield per batch: its rows, their numbers of response tokens, and the states [tokens, hidden] that predict these.

    The batches are the same in every call, so the states of an unchanged model are the same to the bit.
    """
    device = model.get_input_embeddings().weight.device
    with evaluation_mode(model):
        for indices, batch in batches(rows, pad_token_id, max_tokens=_BATCH_TOKENS):
            hidden = hidden_states(model, {name: tensor.to(device) for name, tensor in batch.items()})
            mask, _ = label_predictors(batch["labels"])
            yield indices, mask.sum(1).tolist(), hidden[mask.to(hidden.device)]


@torch.no_grad()
def _token_kl(base: Tensor, states: Tensor, base_weight: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
    """KL(p || q) of each token, float64 [N] on the CPU. p is from base [N, hidden] and base_weight, q from the rest."""
    chunk = max(1, CHUNK_BYTES // (4 * _TENSORS_AT_ONCE * weight.shape[0]))
    parts = [torch.empty(0, dtype=torch.float64)]
    for ours, theirs in zip(base.split(chunk), states.split(chunk), strict=True):
        logits = [states.new_empty(len(ours), weight.shape[0], dtype=torch.float32) for _ in range(2)]
        to_logits(ours, base_weight, logits[0])
        to_logits(theirs, weight, logits[1])
        parts.append(kl_of_logits(*logits, softcap, False).double().cpu())
    return torch.cat(parts)
