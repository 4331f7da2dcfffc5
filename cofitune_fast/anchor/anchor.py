"""Anchors: texts that the base wrote, with its next-token distributions. An anchor is made once per base and kept.

A training step adds some of these texts to its rows, and a weighted KL(base || model) on them to its loss. The base's
distributions are stored with the texts, so no second model is needed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..data import Encoded, pad_token_id
from ..data.formats import Message
from ..files import atomic_path
from ..models.loading import cache_folder
from ..models.quantized import quantization
from ..models.sharded import all_ranks, barrier, is_sharded, writes
from .distributions import top_distributions
from .settings import AnchorSettings
from .writing import write_texts

_FORMAT = 1
_TEXT = ("texts", "tokens", "temperature", "seed", "top_k")


@dataclass(frozen=True, eq=False, kw_only=True)
class AnchorRow(Encoded):
    """A text of the base, with the base's most probable tokens at each of its N response tokens.

    ids: these tokens, int32 [N, k]. log_p: their log-probabilities, float32 [N, k].
    """

    of_anchor: ClassVar[bool] = True
    ids: Tensor = field(repr=False)
    log_p: Tensor = field(repr=False)


@dataclass(frozen=True, eq=False)
class Anchor:
    """Rows of an anchor and its settings.

    tail: mean probability of the tokens that are not in the rows' top k. seconds: what it took to write the texts and
    to compute the distributions, also where both come from the file; None if the file does not say.
    """

    rows: list[AnchorRow]
    settings: AnchorSettings
    tail: float
    seconds: float | None = None

    @property
    def tokens(self) -> int:
        """Number of response tokens of all rows."""
        return sum(len(row.ids) for row in self.rows)


def open_anchor(
    model: nn.Module, tokenizer: Any, settings: AnchorSettings, fingerprint: str,
    task_prompts: Sequence[list[Message]] | None = None, folder: str | Path | None = None,
) -> Anchor:
    """Read the anchor of a base from `folder` (default: `anchor` in the cache folder), or make it there.

    model: must hold the base's bytes if the anchor is not made yet. fingerprint: that of the base. task_prompts:
    prompts of the training rows, for `prompts: task`. A damaged file is made again. Collective for a sharded model.

    Raises:
        CofituneError: the prompts cannot be read, or the model cannot generate.
    """
    prompts = settings.read_prompts(task_prompts)
    about = {
        "format": _FORMAT, "base": fingerprint, "dtype": str(next(model.parameters()).dtype),
        "quantized": quantization(model), "template": tokenizer.chat_template, "prompts": prompts,
        **{name: getattr(settings, name) for name in _TEXT},
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
    path = Path(folder or cache_folder() / "anchor") / f"{digest}.safetensors"
    rows, seconds = _read(path)
    if not (all_ranks(rows is not None) if is_sharded(model) else rows is not None):
        start = time.perf_counter()
        rows = _make(model, tokenizer, prompts, settings)
        seconds = time.perf_counter() - start
        if writes(model):
            _write(path, rows, settings, seconds)
        if is_sharded(model):
            barrier()
    return Anchor(rows, settings, _tail(rows), seconds)


def _make(
    model: nn.Module, tokenizer: Any, prompts: Sequence[list[Message]], settings: AnchorSettings
) -> list[AnchorRow]:
    texts = write_texts(
        model, tokenizer, prompts, texts=settings.texts, tokens=settings.tokens, temperature=settings.temperature,
        seed=settings.seed,
    )
    rows: list[AnchorRow | None] = [None] * len(texts)
    for index, ids, log_p in top_distributions(model, texts, pad_token_id(tokenizer), settings.top_k):
        text = texts[index]
        rows[index] = AnchorRow(text.input_ids, text.response_start, text.where, ids=ids, log_p=log_p)
    return rows


def _write(path: Path, rows: Sequence[AnchorRow], settings: AnchorSettings, seconds: float) -> None:
    tensors = {
        "input_ids": torch.tensor([token for row in rows for token in row.input_ids], dtype=torch.int32),
        "lengths": torch.tensor([[len(row.input_ids), row.response_start] for row in rows], dtype=torch.int32),
        "ids": torch.cat([row.ids for row in rows]), "log_p": torch.cat([row.log_p for row in rows]),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"settings": json.dumps(asdict(settings)), "seconds": f"{seconds:.3f}"})


def _read(path: Path) -> tuple[list[AnchorRow] | None, float | None]:
    """Read the rows and the seconds that it took to make them; no rows if there is no whole file."""
    if not path.is_file():
        return None, None
    try:
        with safe_open(path, "pt") as file:
            seconds = (file.metadata() or {}).get("seconds")
            lengths, tokens = file.get_tensor("lengths").tolist(), file.get_tensor("input_ids").tolist()
            ids, log_p = file.get_tensor("ids"), file.get_tensor("log_p")
        rows, token, place = [], 0, 0
        for number, (length, start) in enumerate(lengths):
            here = slice(place, place + length - start)
            rows.append(AnchorRow(tokens[token : token + length], start, f"anchor text {number + 1}",
                                  ids=ids[here], log_p=log_p[here]))
            token, place = token + length, here.stop
    except (OSError, SafetensorError, KeyError, ValueError):
        return None, None
    return rows, float(seconds) if seconds else None


def _tail(rows: Sequence[AnchorRow]) -> float:
    kept = torch.cat([row.log_p for row in rows]).exp().sum(-1)
    return float((1 - kept).clamp_min(0).mean())
