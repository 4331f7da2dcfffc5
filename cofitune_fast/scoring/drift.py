"""Drift from the base: KL(base || model) of the next token, on the responses of given rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..data import Encoded, batches, label_predictors
from ..errors import CofituneError
from ..models.head import Head, logits_at, states_at
from ..models.mode import evaluation_mode
from ..models.sharded import whole
from ..ops.linear_kl import reference as kl_of_logits
from ..ops.linear_kl import to_logits
from ..progress import progress
from .metrics import DriftItem
from .results import Score, SuiteScores, score_of

CHUNK_BYTES = 256 * 2**20
"""Bound on the float32 logits of both sides and the temporary tensors of the divergence."""
_BATCH_TOKENS = 4096
_TENSORS_AT_ONCE = 8  # float32 tensors [tokens, vocabulary] in `kl_of_logits`, with its arguments


@dataclass(frozen=True, eq=False)
class KeptHead:
    """A copy of what turns states into logits, on the CPU: see `models.head.Head`.

    weight: [vocabulary, hidden]. bias: [vocabulary] or None.
    """

    weight: Tensor = field(repr=False)
    bias: Tensor | None = field(repr=False)
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, head: Head | None) -> KeptHead | None:
        """Gather the head's tensors where they are; of a sharded model every rank gathers them."""
        return None if head is None else cls(
            whole(head.weight).detach(), None if head.bias is None else whole(head.bias).detach(), head.scale,
            head.softcap,
        )

    def copy(self) -> KeptHead:
        """Copy the tensors to the CPU."""
        bias = None if self.bias is None else self.bias.to("cpu", copy=True)
        return replace(self, weight=self.weight.to("cpu", copy=True), bias=bias)

    def like(self, head: KeptHead) -> KeptHead:
        """Return `head` if its tensors equal these, so that they exist once; else these on its device."""
        bias = None if self.bias is None else self.bias.to(head.weight.device)
        if torch.equal(head.weight.cpu(), self.weight) and (bias is None or torch.equal(bias, head.bias)):
            return head
        return replace(self, weight=self.weight.to(head.weight.device), bias=bias)

    def form(self) -> str:
        return (f"shape {list(self.weight.shape)}, {'no bias' if self.bias is None else 'a bias'}, scale "
                f"{self.scale:g} and soft cap {self.softcap}")

    def logits(self, states: Tensor) -> Tensor:
        """Compute the logits [N, vocabulary] before the soft cap, float32, of states [N, hidden]."""
        logits = states.new_empty(len(states), len(self.weight), dtype=torch.float32)
        to_logits(states, self.weight, logits, self.bias, self.scale)
        return logits


@dataclass(frozen=True, eq=False)
class BaseStates:
    """The base's side of the drift: its states before the head, at the places that predict a response, and its head.

    rows: as given to `base_states`.
    states: for each batch [N, hidden] on the CPU, in the model's dtype: in bfloat16 2 bytes times the hidden size per
        response token. Logits [N, vocabulary] where `head` is None.
    head: the base's; None where the model's logits are not those of a `Head`.
    """

    rows: Sequence[Encoded] = field(repr=False)
    pad_token_id: int
    states: list[Tensor] = field(repr=False)
    head: KeptHead | None

    def drift(self, model: nn.Module) -> Score:
        """Compute the mean KL(base || model) per response token in nats, with its standard error over rows.

        The mean is a ratio estimator, and its items are DriftItem. model: the former base; its weights and its head may
        have changed. Products and logarithms are in float32, so an unchanged model has a drift of exactly 0.
        """
        head = KeptHead.of(Head.of(model))
        ours, theirs = ("none that could be described" if each is None else each.form() for each in (self.head, head))
        if ours != theirs:
            raise CofituneError(f"The head of this model is {theirs}, the base's {ours}; measure the drift of the "
                                "model that the base states are of.")
        base_head = None if head is None else self.head.like(head)
        items: list[DriftItem | None] = [None] * len(self.rows)
        for (indices, sizes, states), base in zip(
            _states(model, self.rows, self.pad_token_id, head is None), self.states, strict=True
        ):
            kl = _token_kl(base.to(states.device), states, base_head, head)
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
    2 bytes times vocabulary times hidden size. The copy is needed as a tied head is trained with the embedding. Where
    the model's logits are not those of a `Head`, the logits are kept: 2 bytes times vocabulary per response token.
    like: states of the same base on other rows, whose copy of the head is used too.
    """
    if len(rows) < 2:
        raise CofituneError(f"The drift is to be measured on {len(rows)} row(s); a standard error needs at least 2.")
    head = KeptHead.of(Head.of(model))
    states = [states.cpu() for _, _, states in _states(model, rows, pad_token_id, head is None)]
    if head is not None:
        head = like.head if like is not None else head.copy()
    return BaseStates(rows, pad_token_id, states, head)


def with_drifts(scores: SuiteScores, model: nn.Module, bases: Mapping[str, BaseStates]) -> SuiteScores:
    """Add the drifts of `model` from the base to its scores; bases: {name in `results.DRIFTS`: the base's states}."""
    return replace(scores, **{name: base.drift(model) for name, base in bases.items()})


@torch.no_grad()
def _states(
    model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, logits: bool
) -> Iterator[tuple[list[int], list[int], Tensor]]:
    """Yield per batch: its rows, their numbers of response tokens, and the states [tokens, hidden] that predict these.

    logits: yield the logits [tokens, vocabulary] instead of the states.
    The batches are the same in every call, so the states of an unchanged model are the same to the bit.
    """
    device = model.get_input_embeddings().weight.device
    with evaluation_mode(model), progress("Comparing with the base", len(rows), "rows") as task:
        for indices, batch in batches(rows, pad_token_id, max_tokens=_BATCH_TOKENS):
            mask, _ = label_predictors(batch["labels"])
            given = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
            found = logits_at(model, given, mask) if logits else states_at(model, given, mask.flatten().nonzero()[:, 0])
            yield indices, mask.sum(1).tolist(), found
            task.advance(len(indices))


@torch.no_grad()
def _token_kl(base: Tensor, states: Tensor, base_head: KeptHead | None, head: KeptHead | None) -> Tensor:
    """KL(p || q) of each token, float64 [N] on the CPU. p is from base [N, hidden] and base_head, q from the rest.

    Without heads, base and states are logits [N, vocabulary].
    """
    vocabulary = states.shape[1] if head is None else len(head.weight)
    chunk = max(1, CHUNK_BYTES // (4 * _TENSORS_AT_ONCE * vocabulary))
    parts = [torch.empty(0, dtype=torch.float64)]
    for ours, theirs in zip(base.split(chunk), states.split(chunk), strict=True):
        if head is None:
            kl = kl_of_logits(ours.float(), theirs.float(), None, False)
        else:
            kl = kl_of_logits(base_head.logits(ours), head.logits(theirs), head.softcap, False)
        parts.append(kl.double().cpu())
    return torch.cat(parts)
