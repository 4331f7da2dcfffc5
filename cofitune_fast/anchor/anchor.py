"""Anchors: texts that the base wrote, with its next-token distributions. An anchor is made once per base and kept.

A training step adds some of these texts to its rows, and a weighted KL(base || model) on them to its loss. The base's
distributions are stored with the texts, so no second model is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import pad_token_id
from ..data.chat import TurnEnd, configured_ends, date_of, turn_end, writes_date
from ..data.formats import Message
from ..errors import CofituneError
from ..models.fingerprint import base_fingerprint
from .settings import AnchorSettings, AnchorThinking
from .store import AnchorRow, file_for, read_or_make, with_distributions
from .writing import Flaws, count_flaws, count_unfinished, given_texts, start_token, thinking_for, write_texts

_FORMAT = 1
_TEXT = ("texts", "tokens", "temperature", "seed", "top_k")
_LEAST_USABLE = 0.5


@dataclass(frozen=True, eq=False)
class Anchor:
    """Rows of an anchor and its settings.

    Attributes:
        tail: mean probability of the tokens that are not in the rows' top k.
        flaws: numbers of texts that the base wrote empty or repeating itself.
        unfinished: number of texts of `thinking: answer` whose thought does not end.
        seconds: what it took to write the texts and to compute the distributions, also where both come from the file;
            None if the file does not say.
    """

    rows: list[AnchorRow]
    settings: AnchorSettings
    tail: float
    flaws: Flaws = field(default_factory=Flaws)
    seconds: float | None = None
    unfinished: int = 0

    @property
    def tokens(self) -> int:
        """Number of response tokens of all rows."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def note(self) -> str | None:
        """Sentence about flawed texts and unfinished thoughts; None if there are none."""
        sentences = []
        if any(self.flaws):
            sentences.append(f"Of the anchor's {len(self.rows)} texts {self.flaws.empty} are empty and "
                             f"{self.flaws.repetitive} repeat themselves; they hold little of the base's behaviour.")
        if self.unfinished:
            sentences.append(f"In {self.unfinished} of the anchor's {len(self.rows)} texts the thought does not end "
                             f"within anchor.thought_tokens ({self.settings.thought_tokens}); they hold no answer.")
        return " ".join(sentences) or None


def open_anchor(
    model: nn.Module, tokenizer: Any, settings: AnchorSettings, fingerprint: str | None = None,
    task_prompts: Sequence[list[Message]] | None = None, folder: str | Path | None = None,
) -> Anchor:
    """Read the anchor of a base from `folder` (default: `anchor` in the cache folder), or make it there.

    model: must hold the base's bytes if the anchor is not made yet. fingerprint: that of the base; by default it is
    computed from the model as it is now. task_prompts: prompts of the training rows, for `prompts: task`. A damaged
    file is made again. Collective for a sharded model.

    Raises:
        CofituneError: the prompts cannot be read, the model cannot generate, or less than half of what it wrote is of
            use.
    """
    prompts = given = end = None
    thinking: AnchorThinking = "template"
    about: dict[str, Any] = {"format": _FORMAT, "template": tokenizer.chat_template}
    if settings.source == "rows":
        given = given_texts(tokenizer, settings.read_rows(), texts=settings.texts, tokens=settings.tokens,
                            seed=settings.seed)
        about |= {"rows": [[row.input_ids, row.response_start] for row in given], "top_k": settings.top_k}
    else:
        if settings.source == "answers":
            prompts = settings.read_prompts(task_prompts)
        about |= {"prompts": prompts if prompts is not None else start_token(model, tokenizer),
                  **{name: getattr(settings, name) for name in _TEXT}}
        generation = getattr(model, "generation_config", None)
        end = turn_end(tokenizer, generation)
        if prompts is None:
            end = TurnEnd(end.tokens)
        else:
            # Only what differs from earlier versions, so that their files are still found where the texts are the same.
            thinking = thinking_for(tokenizer, settings.thinking)
            if thinking != "template":
                about["thinking"] = [thinking, settings.thought_tokens] if thinking == "answer" else thinking
            if end.text is not None or end.tokens != configured_ends(tokenizer, generation):
                about["ends"] = [end.text, sorted(end.tokens)]
            if writes_date(tokenizer):
                about["date"] = date_of(tokenizer)

    def make() -> list[AnchorRow]:
        texts = given if given is not None else write_texts(
            model, tokenizer, prompts, texts=settings.texts, tokens=settings.tokens, temperature=settings.temperature,
            seed=settings.seed, thinking=thinking, thought_tokens=settings.thought_tokens,
        )
        return with_distributions(model, texts, pad_token_id(tokenizer), settings.top_k, AnchorRow)

    fingerprint = base_fingerprint(model) if fingerprint is None else fingerprint
    rows, seconds = read_or_make(model, file_for(model, fingerprint, about, folder), AnchorRow, make, asdict(settings))
    flaws = count_flaws(rows, end, tokenizer) if end is not None else Flaws()
    if len(rows) - sum(flaws) < _LEAST_USABLE * len(rows):
        cure = "give anchor.prompts that the base answers, " if prompts is not None else ""
        raise CofituneError(
            f"Of the {len(rows)} anchor texts that the base wrote {flaws.empty} are empty and {flaws.repetitive} "
            f"repeat themselves, so there is too little to hold the model to; {cure}set anchor.source to rows, or "
            "anchor.weight to 0."
        )
    unfinished = count_unfinished(rows, tokenizer) if thinking == "answer" else 0
    return Anchor(rows, settings, _tail(rows), flaws, seconds, unfinished)


def _tail(rows: Sequence[AnchorRow]) -> float:
    kept = torch.cat([row.log_p for row in rows]).exp().sum(-1)
    return float((1 - kept).clamp_min(0).mean())
