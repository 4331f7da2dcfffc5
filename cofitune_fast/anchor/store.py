"""Files of rows with the base's distributions on them. A file is made once and read from then on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..data import Encoded
from ..files import atomic_path
from ..models.loading import cache_folder
from ..models.quantized import quantization
from ..models.sharded import all_ranks, barrier, is_sharded, writes
from .distributions import Distributions, top_distributions


@dataclass(frozen=True, eq=False, kw_only=True)
class BaseRow(Encoded):
    """A row with the base's most probable tokens at each place that predicts one of its N response tokens.

    Attributes:
        ids: these tokens, int32 [N, k].
        log_p: their log-probabilities, float32 [N, k].
        target_log_p: log-probabilities of the response tokens, float32 [N]; None where a file of an earlier version
            lacks them.
    """

    ids: Tensor = field(repr=False)
    log_p: Tensor = field(repr=False)
    target_log_p: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False, kw_only=True)
class AnchorRow(BaseRow):
    """A text of an anchor."""

    of_anchor: ClassVar[bool] = True


def file_for(model: nn.Module, fingerprint: str, about: Mapping[str, Any], folder: str | Path | None) -> Path:
    """Return the path of a file that depends on the base and on `about`, JSON values (default: in the cache folder)."""
    about = {"base": fingerprint, "dtype": str(next(model.parameters()).dtype), "quantized": quantization(model),
             **about}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
    return Path(folder or cache_folder() / "anchor") / f"{digest}.safetensors"


def read_or_make(
    model: nn.Module, path: Path, kind: type[BaseRow], make: Callable[[], list[BaseRow]], settings: Any,
) -> list[Any]:
    """Read the rows of a file as `kind`, or make and write them; a damaged file is made again.

    `settings`, JSON values, are written beside them for people. Collective for a sharded model.
    """
    rows = _read(path, kind)
    if not (all_ranks(rows is not None) if is_sharded(model) else rows is not None):
        rows = make()
        if writes(model):
            _write(path, rows, settings)
        if is_sharded(model):
            barrier()
    return rows


def with_distributions(
    model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, k: int, kind: type[BaseRow] = BaseRow, *,
    mask_target: bool = False,
) -> list[Any]:
    """Return the rows as `kind`, with the distributions of the model, see `top_distributions`."""
    made: list[BaseRow | None] = [None] * len(rows)
    for index, found in top_distributions(model, rows, pad_token_id, k, mask_target=mask_target):
        row = rows[index]
        made[index] = kind(row.input_ids, row.response_start, row.where, **found._asdict())
    return made


def _write(path: Path, rows: Sequence[BaseRow], settings: Any) -> None:
    tensors = {
        "input_ids": torch.tensor([token for row in rows for token in row.input_ids], dtype=torch.int32),
        "lengths": torch.tensor([[len(row.input_ids), row.response_start] for row in rows], dtype=torch.int32),
        **{name: torch.cat([getattr(row, name) for row in rows]) for name in Distributions._fields},
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"settings": json.dumps(settings)})


def _read(path: Path, kind: type[BaseRow]) -> list[BaseRow] | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            lengths, tokens = file.get_tensor("lengths").tolist(), file.get_tensor("input_ids").tolist()
            names = [name for name in Distributions._fields if name in file.keys()]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
        rows, token, place = [], 0, 0
        for number, (length, start) in enumerate(lengths):
            here = slice(place, place + length - max(start, 1))
            rows.append(kind(tokens[token : token + length], start, f"anchor text {number + 1}",
                             **{name: tensor[here] for name, tensor in tensors.items()}))
            token, place = token + length, here.stop
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    return rows
