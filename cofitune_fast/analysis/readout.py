"""Read a state of the residual stream as logits: the model's final norm, head and soft cap, at any layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import CofituneError
from ..models.head import Head, final_norm
from ..regions import Layout
from .stream import Stream

CHUNK_BYTES = 64 * 2**20
"""Bound on one float32 tensor [positions, vocabulary]. A few of them are alive at once."""


class Readout:
    """Final norm, head and soft cap of a model.

    `logits` is the logit lens (nostalgebraist, 2020), and `directions` its linear part.
    """

    def __init__(self, model: nn.Module, layout: Layout):
        """Find the parts in `model`.

        Raises:
            CofituneError: the model has no final norm before its head, or no head that `Head.of` can describe.
        """
        self.model_type = layout.model_type
        norm, head = final_norm(model), Head.of(model)
        if norm is None or norm is layout.decoder_layer(layout.num_layers - 1):
            raise CofituneError(f"Model type '{self.model_type}' has no final norm before its head; it cannot be "
                                "analysed.")
        if head is None:
            raise CofituneError(f"The logits of model type '{self.model_type}' are not a scaled or capped linear "
                                "function of its last states; it cannot be analysed.")
        self.norm, self.head = norm, head

    @property
    def chunk(self) -> int:
        """Number of positions that go through the head at a time."""
        return max(1, CHUNK_BYTES // (4 * len(self.head.weight)))

    def logits(self, states: Tensor) -> Tensor:
        """Logits of states [n, hidden]: float32 [n, vocabulary], computed in the model's dtype as in the model."""
        return self.head.logits(self.norm(states)).float()

    def check(self, stream: Stream) -> None:
        """Raise CofituneError unless the last layer's reading equals the model's own logits at the first position."""
        own, read = stream.logits.float(), self.logits(stream.states[-1][:1])[0]
        if not torch.allclose(own, read, rtol=0.02, atol=0.02 * own.abs().max().item()):
            raise CofituneError(
                f"Model type '{self.model_type}' does more to its last state than a norm and its head; "
                "its layers cannot be read."
            )

    def directions(self, states: Tensor, targets: Tensor, rivals: Tensor) -> Tensor:
        """Directions d, float32 [n, hidden]: d . state = logit of the target - logit of the rival, at the last states.

        The RMS norm divides by a number that depends on the whole state. This number is held fixed (a frozen norm), so
        that the rest is linear and each part of the state has its own contribution. The logits are those before the
        soft cap, without a bias of the head.

        Raises:
            CofituneError: the final norm is not an RMS norm.
        """
        gain = self.norm(torch.ones_like(states[:1])).float()  # an RMS norm leaves ones alone, so these are its weights
        scaled, normed = states.float() * gain, self.norm(states).float()
        factor = (normed * scaled).sum(-1, keepdim=True) / scaled.square().sum(-1, keepdim=True)
        if not (normed - factor * scaled).norm() <= 0.05 * normed.norm():  # so also where the factor is not a number
            raise CofituneError(f"The final norm of model type '{self.model_type}' is not an RMS norm; contributions "
                                "to its logits cannot be told apart.")
        weight = self.head.weight
        return (weight[targets].float() - weight[rivals].float()) * self.head.scale * gain * factor


@dataclass
class Lens:
    """Logit lens at n positions: [n, num_layers + 1] on the CPU, with the embedding first.

    nll: NLL of the right token in nats, float32.
    rank: 1 + the number of tokens with a larger logit, int32.
    kl: sum p log(p / q) in nats, float32, with p from the last layer and q from this layer.
    rivals: the most probable wrong token of the last layer, int64 [n].
    """

    nll: Tensor
    rank: Tensor
    kl: Tensor
    rivals: Tensor

    @classmethod
    def join(cls, parts: list[Lens]) -> Lens:
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("nll", "rank", "kl", "rivals")))

    def readable(self) -> Tensor:
        """First layer from which on the right token stays the most probable one, int64 [n].

        0 is the embedding, and l + 1 the state after layer l. num_layers + 1 if another token is on top at the end.
        """
        on_top = (self.rank == 1).flip(1).int().cumprod(1).sum(1)
        return self.rank.shape[1] - on_top


def read_lens(readout: Readout, stream: Stream) -> Lens:
    """Read the lens at every layer of a stream, in chunks of positions, one layer at a time."""
    parts: list[Lens] = []
    for start in range(0, len(stream.targets), readout.chunk):
        rows = slice(start, start + readout.chunk)
        targets = stream.targets[rows, None]
        logits = readout.logits(stream.states[-1][rows])
        final = torch.log_softmax(logits, -1)
        rivals = logits.scatter(1, targets, float("-inf")).argmax(1)
        columns = []
        for state in stream.states:
            logits = readout.logits(state[rows])
            rank = 1 + (logits > logits.gather(1, targets)).sum(1, dtype=torch.int32)
            likelihoods = torch.log_softmax(logits, -1)
            kl = (final.exp() * (final - likelihoods)).sum(1)
            columns.append((-likelihoods.gather(1, targets)[:, 0], rank, kl))
        parts.append(Lens(*(torch.stack(column, 1).cpu() for column in zip(*columns, strict=True)), rivals.cpu()))
    return Lens.join(parts)
