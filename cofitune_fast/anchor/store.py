"""Files of rows with the base's distributions on them. A file is made once and read from then on."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..data import Encoded
from ..errors import CofituneError
from ..files import WriteFailed, atomic_path, cache_folder, writable_folder
from ..models.fingerprint import combine_digests, tensor_digest
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
) -> tuple[list[Any], float | None]:
    """Read the rows of a file as `kind`, or make and write them; a damaged file is made again.

    `settings`, JSON values, are written beside them for people. Where the file cannot be written, the rows are made all
    the same, and a warning says so. Collective for a sharded model.

    Returns:
        The rows, and the seconds that it took to make them; None if the file does not say.
    """
    rows, seconds = _read(path, kind)
    if not (all_ranks(rows is not None) if is_sharded(model) else rows is not None):
        keep = writes(model) and _can_keep(path)  # said before the minutes that making takes
        start = time.perf_counter()
        rows = make()
        seconds = time.perf_counter() - start
        if keep:
            try:
                _write(path, rows, settings, seconds)
            except WriteFailed as error:
                _say_not_kept(error)
        if is_sharded(model):
            barrier()
    return rows, seconds


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


def _can_keep(path: Path) -> bool:
    try:
        writable_folder(path.parent)
    except CofituneError as error:
        _say_not_kept(error)
        return False
    return True


def _say_not_kept(error: CofituneError) -> None:
    logging.getLogger("cofitune_fast").warning(
        f"What the base makes of the anchor's texts is not kept, and is made again by the next run: {error}")


def _write(path: Path, rows: Sequence[BaseRow], settings: Any, seconds: float) -> None:
    tensors = {
        "input_ids": torch.tensor([token for row in rows for token in row.input_ids], dtype=torch.int32),
        "lengths": torch.tensor([[len(row.input_ids), row.response_start] for row in rows], dtype=torch.int32),
        **{name: torch.cat([getattr(row, name) for row in rows]) for name in Distributions._fields},
    }
    with atomic_path(path, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())) as temporary:
        save_file(tensors, temporary, {"settings": json.dumps(settings), "seconds": f"{seconds:.3f}",
                                       "checksum": _checksum(tensors)})


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    return combine_digests({name: tensor_digest(tensor) for name, tensor in tensors.items()})


def _read(path: Path, kind: type[BaseRow]) -> tuple[list[BaseRow] | None, float | None]:
    """Read rows and seconds; (None, None) if the file is missing or damaged.

    Files of earlier versions have no checksum; of them only the form can be proven.
    """
    if not path.is_file():
        return None, None
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about.get("checksum", "") not in ("", _checksum(tensors)):
            return None, None
        lengths, tokens = tensors.pop("lengths").tolist(), tensors.pop("input_ids").tolist()
        tensors = {name: tensors[name] for name in Distributions._fields if name in tensors}
        places = [length - max(start, 1) for length, start in lengths]
        if sum(length for length, _ in lengths) != len(tokens) or min(tokens) < 0 or any(
                start < 0 or count < 0 for (_, start), count in zip(lengths, places, strict=True)):
            return None, None
        if any(len(tensor) != sum(places) for tensor in tensors.values()) or tensors["ids"].min() < 0:
            return None, None
        rows, token, place = [], 0, 0
        for number, ((length, start), count) in enumerate(zip(lengths, places, strict=True)):
            rows.append(kind(tokens[token : token + length], start, f"anchor text {number + 1}",
                             **{name: tensor[place : place + count] for name, tensor in tensors.items()}))
            token, place = token + length, place + count
        return rows, float(about["seconds"]) if about.get("seconds") else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, IndexError, RuntimeError):
        return None, None
