"""The anchor's part of a loss: which of its rows a step has, and their weighted mean divergence from the base."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..anchor import AnchorSettings
from ..anchor.settings import AnchorLoss
from ..losses import CrossEntropy, Objective, ReverseTopKl, Term, TopKl
from ..models.sharded import total, world_size


class AnchorOrder:
    """Endless sequence of batches of an anchor's rows: the rows in one shuffled order, again and again.

    Args:
        anchor: indices of the anchor's rows.
        rows: rows of a batch; all of them where there are fewer.
    """

    def __init__(self, anchor: Sequence[int], rows: int, seed: int):
        self._order = random.Random(f"{seed} anchor").sample(anchor, len(anchor))
        self._rows = rows

    def batch(self, number: int) -> list[int]:
        """Return the indices of the rows of batch `number`, from 0."""
        first, count = number * self._rows, min(self._rows, len(self._order))
        return [self._order[(first + place) % len(self._order)] for place in range(count)]


def anchor_term(batch: Mapping[str, Tensor], settings: AnchorSettings, steps: int = 1) -> Term:
    """Return the term weight * mean divergence per anchor token / steps. Collective.

    The mean is over the tokens of all ranks. FSDP averages gradients over the ranks; their number makes it a sum.

    Args:
        batch: `anchor_predictors`, `anchor_targets`, `anchor_ids` and `anchor_log_p`, see `batching.of_base`.
        steps: micro-batches whose terms are added up.
    """
    objective = _objective(batch, settings.loss)
    return Term(batch["anchor_predictors"], objective,
                settings.weight * (world_size() / total(len(objective)) / steps))


def _objective(batch: Mapping[str, Tensor], loss: AnchorLoss) -> Objective:
    if loss == "ce":
        return CrossEntropy(batch["anchor_targets"])
    return {"kl": TopKl, "reverse_kl": ReverseTopKl}[loss](batch["anchor_ids"], batch["anchor_log_p"])
