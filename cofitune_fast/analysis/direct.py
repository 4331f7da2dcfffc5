"""Direct logit attribution: what each module's output adds by itself to the right token's lead."""

from __future__ import annotations

import torch
from torch import Tensor

from .readout import Readout
from .stream import Stream


def direct_contributions(readout: Readout, stream: Stream, rivals: Tensor) -> Tensor:
    """float32 [n, 2 * num_layers + 2]: embedding, attention of each layer, FFN of each layer, rounding; on the CPU.

    Each is the dot product of what was added to the residual stream with the direction of (right token - rival) of
    `Readout.directions`, in logits (Elhage et al., A Mathematical Framework for Transformer Circuits, 2021). They add
    up to the logit of the right token less that of the rival, before the soft cap. rivals: int64 [n]. Rounding is what
    the last state holds beyond the sum of its parts.
    """
    directions = readout.directions(stream.states[-1], stream.targets, rivals.to(stream.targets.device))
    writes = (stream.states[0], *stream.attention, *stream.ffn, stream.remainder())
    return torch.stack([(write.float() * directions).sum(-1) for write in writes], 1).cpu()
