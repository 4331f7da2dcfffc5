"""Whether a chat template lets its model think before the answer, told from what the template writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from ..errors import CofituneError
from .encode import prompt_text, render, text_ids
from .formats import Message
from .turns import GREETING

ThinkingChoice = Literal["auto", "with", "without", "empty"]
"""Choice of what becomes of thoughts in rows, prompts and generated text.

- auto: as the chat template writes a conversation; a row's thought is trained where the row has one.
- with: every row has a thought, which is trained; rows without one are faults.
- without: thoughts of rows are left out, and nothing is written in their place where the template allows it.
- empty: an empty thought stands at the end of every prompt, and the answer alone is trained and generated.
"""

_THOUGHT, _ANSWER = (f"\N{SYMBOL FOR SUBSTITUTE}{word}\N{SYMBOL FOR SUBSTITUTE}" for word in ("thought", "answer"))
_OPENS = re.compile(r"([<\[])([\w:]*think\w*)([>\]])\s*$", re.IGNORECASE)
_CLOSES = re.compile(r"[<\[]/[\w:]*think\w*[>\]](?=\s*$)", re.IGNORECASE)


class Thinking(NamedTuple):
    """How the template of a model that thinks by default writes thoughts.

    Attributes:
        close: text between a thought and the answer, without space around it; None if the template does not tell.
        empty: text that makes an empty thought after the generation prompt; None if the template has a switch for it.
    """

    close: str | None
    empty: str | None


def thinking_of(tokenizer: Any) -> Thinking | None:
    """Return how a tokenizer's chat template writes thoughts; None if its model does not think by default.

    Four probes are rendered: a generation prompt by default, one with the switch `enable_thinking` (or `thinking`) on
    and one with it off, and an answer with a thought. The model thinks by default if

    - the switch turns something off (as in Qwen3),
    - the generation prompt ends inside a thought (as in R1), or
    - the template has no switch and writes the thought of an answer (as gpt-oss does, in a channel of its own).

    A template that refuses a probe is taken for one that does not know what was asked.
    """
    if not tokenizer.chat_template:
        return None
    try:
        default = prompt_text(tokenizer, GREETING)
        on, off = (_switched(tokenizer, GREETING, value) for value in (True, False))
    except CofituneError:
        return None
    opened = _OPENS.search(default)
    written = _between(tokenizer, default, {"reasoning_content": _THOUGHT, "thinking": _THOUGHT})
    thought_opens, _, thought_closes = written.partition(_THOUGHT)
    close = thought_closes.strip() or None
    if off != default:
        found = _CLOSES.search(off)
        return Thinking(close or (found[0] if found else None), None)
    if on != default:  # it has a switch, which is off
        return None
    if opened:
        close = close or "{}/{}{}".format(*opened.groups())
        return Thinking(close, _between(tokenizer, default) or f"\n{close}\n\n")
    if close:
        return Thinking(close, _between(tokenizer, default) or thought_opens + thought_closes)
    return None


def encode_prompt_without_thought(tokenizer: Any, messages: Sequence[Message], thinking: Thinking) -> list[int]:
    """Encode a prompt with an empty thought, up to the point where the model answers.

    Raises:
        CofituneError: the template refuses the messages.
    """
    if thinking.empty is None:
        return text_ids(tokenizer, _switched(tokenizer, messages, False))
    return text_ids(tokenizer, prompt_text(tokenizer, messages) + thinking.empty)


def _switched(tokenizer: Any, messages: Sequence[Message], on: bool) -> str:
    return render(tokenizer, messages, add_generation_prompt=True, enable_thinking=on, thinking=on)


def _between(tokenizer: Any, prompt: str, fields: dict[str, str] | None = None) -> str:
    """Text that the template writes between the generation prompt and an answer with these fields; "" if nothing."""
    try:
        full = render(tokenizer, [*GREETING, {"role": "assistant", "content": _ANSWER, **(fields or {})}])
    except CofituneError:
        return ""
    return full[len(prompt) :].partition(_ANSWER)[0] if full.startswith(prompt) else ""
