"""Direct logit attribution: the direct effect of each module's output on the logit of the right token."""

from __future__ import annotations

import torch
from torch import Tensor

from .readout import Readout
from .stream import Stream


def direct_contributions(readout: Readout, stream: Stream, rivals: Tensor) -> Tensor:
    """Contributions in logits, float32 [n, 2 * num_layers + 2] on the CPU: embedding, attention of each layer, FFN of
    each layer, rounding.

    Each is the dot product of a module's addition to the residual stream with the direction (right token - rival) from
    `Readout.directions` (Elhage et al., A Mathematical Framework for Transformer Circuits, 2021). Their sum is the
    logit of the right token minus that of the rival, before the soft cap. Rounding is the difference between the last
    state and the sum of its parts. rivals: int64 [n].
    """
    directions = readout.directions(stream.states[-1], stream.targets, rivals.to(stream.targets.device))
    writes = (stream.states[0], *stream.attention, *stream.ffn, stream.remainder())
    return torch.stack([(write.float() * directions).sum(-1) for write in writes], 1).cpu()
