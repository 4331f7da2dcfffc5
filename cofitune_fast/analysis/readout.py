"""From a state of the residual stream to logits: the model's final norm, head and soft cap, applied at any layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import CofituneError
from ..regions import Layout
from .stream import Stream

CHUNK_BYTES = 64 * 2**20
"""Bound on one float32 tensor [positions, vocabulary]; a few of them are alive at once."""


class Readout:
    """The end of a model. `logits` is the logit lens (nostalgebraist, 2020); `directions` its linear part."""

    def __init__(self, model: nn.Module, layout: Layout):
        """Raises CofituneError if the model has no final norm beside its layers, or no linear head."""
        self.model_type = layout.model_type
        self.norm = _final_norm(model, layout)
        self.head = model.get_output_embeddings()
        if not isinstance(self.head, nn.Linear):
            raise CofituneError(f"Model type '{self.model_type}' has no linear language-model head; it cannot be "
                                "analysed.")
        self.cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    @property
    def chunk(self) -> int:
        """How many positions go through the head together."""
        return max(1, CHUNK_BYTES // (4 * len(self.head.weight)))

    def logits(self, states: Tensor) -> Tensor:
        """float32 [n, vocabulary] of states [n, hidden], computed in the model's dtype as the model itself does."""
        logits = self.head(self.norm(states))
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits.float()

    def check(self, stream: Stream) -> None:
        """Raises CofituneError unless the last layer's reading is what the model itself says at the first position."""
        own, read = stream.logits.float(), self.logits(stream.states[-1][:1])[0]
        if not torch.allclose(own, read, rtol=0.02, atol=0.02 * own.abs().max().item()):
            raise CofituneError(
                f"Model type '{self.model_type}' does more to its last state than a norm, a linear head and a soft "
                "cap; its layers cannot be read."
            )

    def directions(self, states: Tensor, targets: Tensor, rivals: Tensor) -> Tensor:
        """float32 [n, hidden]: d such that d . state = logit of the target - logit of the rival, at these last states.

        The RMS norm divides by a number that depends on the whole state; it is held at its value (a frozen norm), so
        that what remains is linear and parts of the state can be credited. Before the soft cap, without a head's bias.

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
        return (weight[targets].float() - weight[rivals].float()) * gain * factor


@dataclass
class Lens:
    """What each layer's reading says at n positions; all on the CPU, [n, num_layers + 1], the embedding first.

    nll: float32, of the right token, nats. rank: int32, 1 + the tokens with a larger logit. kl: float32, from the last
    layer's distribution p to this layer's q, sum p log(p / q), nats. rivals: int64 [n], the most probable wrong token
    of the last layer.
    """

    nll: Tensor
    rank: Tensor
    kl: Tensor
    rivals: Tensor

    @classmethod
    def join(cls, parts: list[Lens]) -> Lens:
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("nll", "rank", "kl", "rivals")))

    def readable(self) -> Tensor:
        """int64 [n]: the first layer (0 the embedding, l + 1 after layer l) from which on the right token stays on top;
        num_layers + 1 where even the last layer has another one."""
        on_top = (self.rank == 1).flip(1).int().cumprod(1).sum(1)
        return self.rank.shape[1] - on_top


def read_lens(readout: Readout, stream: Stream) -> Lens:
    """The lens at every layer of a stream; a chunk of positions at a time, and of it one layer at a time."""
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


def _final_norm(model: nn.Module, layout: Layout) -> nn.Module:
    first = layout.decoder_layer(0)
    for module in model.modules():
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) and child[0] is first and hasattr(module, "norm"):
                return module.norm
    raise CofituneError(f"Model type '{layout.model_type}' has no final norm beside its layers; it cannot be analysed.")
