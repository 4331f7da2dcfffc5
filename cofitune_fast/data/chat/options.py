"""Options of a conversation. They travel with the tokenizer, so that all who render with it render the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import date as Date
from functools import wraps
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from ...errors import CofituneError

ThinkingChoice = Literal["auto", "with", "without", "empty"]
"""Choice of what becomes of thoughts in rows and prompts. Scores are of the answer after the thought, always.

- auto: as the chat template writes a conversation; a row's thought is trained where the row has one.
- with: every training row has a thought, which is trained; rows without one are faults. The prompt asks for a thought
  where the template has a switch for it.
- without: thoughts of rows are left out, and no empty thought is trained. Where the prompt itself opens a thought, the
  response closes it at once.
- empty: an empty thought stands at the end of every prompt, and the answer alone is trained and generated.
"""

_OPTIONS, _FINDINGS = "_cofitune_chat_options", "_cofitune_chat_findings"
_Found = TypeVar("_Found")


class ChatOptions(NamedTuple):
    """Options of the conversations of a run.

    Attributes:
        thinking: see ThinkingChoice.
        date: the day that a chat template writes, YYYY-MM-DD; None: today.
    """

    thinking: ThinkingChoice = "auto"
    date: str | None = None


def options_of(tokenizer: Any) -> ChatOptions:
    """Return the options that a tokenizer renders with."""
    return getattr(tokenizer, _OPTIONS, None) or ChatOptions()


def with_options(tokenizer: Any, *, thinking: ThinkingChoice | None = None, date: str | None = None) -> Any:
    """Return a shallow copy of a tokenizer that renders with these options; None keeps what the tokenizer has.

    Returns the tokenizer itself where nothing changes.

    Raises:
        CofituneError: an unknown choice, or a date that is none.
    """
    had = options_of(tokenizer)
    wanted = ChatOptions(thinking or had.thinking, date or had.date)
    if wanted.thinking not in get_args(ThinkingChoice):
        raise CofituneError(f"data.thinking is {wanted.thinking!r}; it must be one of "
                            f"{', '.join(get_args(ThinkingChoice))}.")
    if wanted.date is not None:
        try:
            Date.fromisoformat(wanted.date)
        except (TypeError, ValueError):
            raise CofituneError(f"data.date is {wanted.date!r}; it must be a day such as 2026-01-31.") from None
    if wanted == had:
        return tokenizer
    changed = copy.copy(tokenizer)
    setattr(changed, _OPTIONS, wanted)
    return changed


def found_once(find: Callable[..., _Found]) -> Callable[..., _Found]:
    """Keep what a function finds out about a tokenizer's template, until its template or its options change.

    The function's further arguments must be hashable.
    """

    @wraps(find)
    def finding(tokenizer: Any, *arguments: Any) -> _Found:
        state = tokenizer.chat_template, tokenizer.eos_token, options_of(tokenizer)
        kept = vars(tokenizer).get(_FINDINGS)
        if kept is None or kept[0] != state:
            kept = state, {}
            setattr(tokenizer, _FINDINGS, kept)
        key = find.__name__, *arguments
        if key not in kept[1]:
            kept[1][key] = find(tokenizer, *arguments)
        return kept[1][key]

    return finding
