"""The base's view of the task's own rows: its distributions on their tokens, and which tokens it finds likely.

Both are measured once before the training, with the base in memory, and kept in a file as an anchor's are.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ..data import Encoded
from ..errors import CofituneError
from ..validation import check_choices
from .store import BaseRow, file_for, read_or_make, with_distributions

_FORMAT = 1


@dataclass(frozen=True)
class ReferenceSettings:
    """Settings of a KL to the base on the task's own rows.

    The loss becomes mean NLL + weight * mean KL(base || model), with the KL on tokens of the rows that are trained on.

    Attributes:
        weight: weight of the mean KL per token, relative to the mean loss per response token.
        tokens: the tokens whose distributions are held, "response" or "prompt" (SelfAug, arXiv 2509.03934).
        mask_target: leave the row's own token out of both distributions, and renormalise the others
            (arXiv 2605.29498).
        top_k: number of the base's most probable tokens that are stored at each place; all others count as one.

    Raises:
        CofituneError: a value is out of range.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    weight: float | int = 1.0
    tokens: Literal["response", "prompt"] = "response"
    mask_target: bool = False
    top_k: int = 64

    def __post_init__(self) -> None:
        check_choices(self, "reference")
        if not self.weight > 0:
            raise CofituneError(f"reference.weight is {self.weight}; it must be above 0.")
        if self.top_k < 1:
            raise CofituneError(f"reference.top_k is {self.top_k}; it must be at least 1.")


@dataclass(frozen=True, eq=False, kw_only=True)
class TaskRow(Encoded):
    """A row of the task with what the base makes of it.

    Attributes:
        held: the beginning of the row whose response tokens are held to the base, with its distributions there; of a
            prompt all tokens count as response. None: no token is held.
        learnt: bool [N], which of the row's N response tokens have a loss; None: all.
    """

    held: BaseRow | None = field(default=None, repr=False)
    learnt: Tensor | None = field(default=None, repr=False)


def task_rows(
    model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, fingerprint: str,
    reference: ReferenceSettings | None = None, token_filter: float | None = None, folder: str | Path | None = None,
) -> list[TaskRow]:
    """Return the rows with what a KL to the base and a filter of tokens need of the base.

    Distributions are read from `folder` (default: `anchor` in the cache folder), or made there. A place with `top_k`
    tokens takes 8 top_k + 4 bytes, on disk and in memory. Collective for a sharded model.

    Args:
        model: must hold the base's bytes if the file is not made yet.
        fingerprint: fingerprint of the base.
        token_filter: perplexity exp(-log p) of a response token under the base above which it has no loss (STM,
            arXiv 2501.14315, which takes 2.5); None: all have one.

    Raises:
        CofituneError: the filter leaves no token.
    """
    held: list[BaseRow | None] = [None] * len(rows)
    learnt: list[Tensor | None] = [None] * len(rows)
    if reference is not None:
        parts = list(rows) if reference.tokens == "response" else [
            Encoded(row.input_ids[: row.response_start], 0, row.where) for row in rows
        ]
        held = _measured(model, parts, pad_token_id, fingerprint, reference.top_k, reference.mask_target, folder)
    if token_filter is not None:
        measured = _measured(model, rows, pad_token_id, fingerprint, 1, False, folder)
        learnt = [row.target_log_p >= -math.log(token_filter) if row else None for row in measured]
        if not any(bool(kept.any()) for kept in learnt if kept is not None):
            raise CofituneError(f"token_filter is {token_filter}, and the base finds every response token less likely "
                                "than that; raise it or leave it out.")
    return [TaskRow(row.input_ids, row.response_start, row.where, held=part, learnt=kept)
            for row, part, kept in zip(rows, held, learnt, strict=True)]


def _measured(
    model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, fingerprint: str, top_k: int, mask_target: bool,
    folder: str | Path | None,
) -> list[BaseRow | None]:
    """Return the rows with distributions, each distinct row measured once; None for a row that predicts nothing."""
    keys = [(tuple(row.input_ids), row.response_start) for row in rows]
    distinct = {key: row for key, row in zip(keys, rows, strict=True)
                if len(row.input_ids) > max(row.response_start, 1)}
    if not distinct:
        return [None] * len(rows)
    content = hashlib.sha256(json.dumps(list(distinct)).encode()).hexdigest()
    about = {"format": _FORMAT, "task_rows": content, "top_k": top_k, "mask_target": mask_target}
    measured = read_or_make(
        model, file_for(model, fingerprint, about, folder), BaseRow,
        lambda: with_distributions(model, list(distinct.values()), pad_token_id, top_k, mask_target=mask_target), about,
    )
    found = dict(zip(distinct, measured, strict=True))
    return [found.get(key) for key in keys]
