"""How a chat template writes thoughts, told from what it writes; and thoughts in texts."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from ...errors import CofituneError
from ..formats import Message
from .options import found_once, options_of
from .template import GREETING, render

_THOUGHT, _ANSWER = (f"\N{SYMBOL FOR SUBSTITUTE}{word}\N{SYMBOL FOR SUBSTITUTE}" for word in ("thought", "answer"))
_OPENS = re.compile(r"([<\[◁])([\w:]*think\w*)([>\]▷])\s*$", re.IGNORECASE)
_CLOSES = re.compile(r"([<\[◁])/([\w:]*think\w*)([>\]▷])(?=\s*$)", re.IGNORECASE)
_OPEN, _CLOSE = "<think>", "</think>"


class Thinking(NamedTuple):
    """How a template writes thoughts.

    Attributes:
        open, close: texts around a thought, without space around them; None if the template does not tell.
        empty: text that makes an empty thought after the generation prompt; None if the template has a switch for it.
        by_default: the model thinks unless it is told not to.
        opened: the generation prompt ends inside a thought.
    """

    open: str | None
    close: str | None
    empty: str | None
    by_default: bool = True
    opened: bool = False


@found_once
def thinking_of(tokenizer: Any) -> Thinking | None:
    """Return how a tokenizer's chat template writes thoughts; None if it knows of none.

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
        default = render(tokenizer, GREETING, add_generation_prompt=True)
        on, off = (render(tokenizer, GREETING, add_generation_prompt=True, **_switch(value)) for value in (True, False))
    except CofituneError:
        return None
    switched_off = off == default != on
    prompt, variables = (on, _switch(True)) if switched_off else (default, {})
    opened = _OPENS.search(prompt)
    written = _between(tokenizer, prompt, {"reasoning_content": _THOUGHT, "thinking": _THOUGHT}, **variables)
    thought_opens, _, thought_closes = written.partition(_THOUGHT)
    close = thought_closes.strip() or None
    start = "{}{}{}".format(*opened.groups()) if opened else (thought_opens.strip() or None) if close else None
    has_switch = on != off
    if has_switch:
        found = _CLOSES.search(off)
        if found:
            close, start = close or found[0], start or "{}{}{}".format(*found.groups())
        elif opened:
            close = close or "{}/{}{}".format(*opened.groups())
        return Thinking(start, close, None, not switched_off, bool(opened))
    if opened:
        close = close or "{}/{}{}".format(*opened.groups())
        return Thinking(start, close, _between(tokenizer, default) or f"\n{close}\n\n", True, True)
    if close:
        return Thinking(start, close, _between(tokenizer, default) or thought_opens + thought_closes)
    return None


@found_once
def switch(tokenizer: Any) -> dict[str, bool]:
    """Return the template's variables that the tokenizer's options ask for."""
    choice, thinking = options_of(tokenizer).thinking, thinking_of(tokenizer)
    if thinking is None or thinking.empty is not None or choice not in ("with", "empty"):
        return {}
    return _switch(choice == "with")


def _switch(on: bool) -> dict[str, bool]:
    return {"enable_thinking": on, "thinking": on}


def opens_thought(text: str) -> bool:
    """True if a rendered prompt ends inside a thought."""
    return _OPENS.search(text) is not None


def without_last_thought(prompt: str) -> str:
    """Return a prompt without a thought that it opens, or an empty one that it has, at its end."""
    found = _CLOSES.search(prompt)
    if found:
        prompt = prompt[: found.start()]
    found = _OPENS.search(prompt)
    return prompt[: found.start()] if found else prompt


def without_first_thought(tokenizer: Any, turn: str, *, empty: bool = False) -> str:
    """Return a turn without the thought that it begins with; with `empty` only one that is empty."""
    for start, close in _marks(tokenizer):
        before, found, rest = turn.partition(close)
        inside = before.strip()
        if found and (not inside or inside == start or (inside.startswith(start) and not empty)):
            return before[: len(before) - len(before.lstrip())] * bool(inside) + rest.lstrip()
    return turn


def after_opening(tokenizer: Any, prompt: str, turn: str) -> str:
    """Return what of a finished turn follows the prompt's last thought, which the prompt opens or has empty."""
    start, _ = _marks(tokenizer)[0]
    if opens_thought(prompt) and turn.lstrip().startswith(start):
        return turn.lstrip().removeprefix(start).removeprefix(prompt[len(prompt.rstrip()) :])
    return without_first_thought(tokenizer, turn)


def split_thought(tokenizer: Any, text: str) -> tuple[str | None, str]:
    """Split a row's content in which a thought stands before the answer: (thought, answer); (None, text) if none does.

    The thought begins the content with the marks of the template, or with <think> and </think>. Where the template's
    generation prompt opens a thought, as in R1, the first mark may be missing: then the second one must be there once,
    and begin or end a line, with something before it. Any other content that has a mark merely mentions it.
    """
    thinking = thinking_of(tokenizer)
    for start, close in _marks(tokenizer):
        inside, found, rest = text.partition(close)
        if found and (inside.lstrip().startswith(start) or (
                thinking is not None and thinking.opened and inside.strip() and start not in text and close not in rest
                and (inside.rstrip(" ").endswith("\n") or rest.lstrip(" ").startswith("\n")))):
            return inside.strip().removeprefix(start).strip(), rest.lstrip()
    return None, text


def holds_mark(tokenizer: Any, text: str) -> bool:
    """True if a text has the template's end of a thought in it, where the template may part it."""
    return _marks(tokenizer)[0][1] in text


def unfinished(tokenizer: Any, text: str) -> bool:
    """True if a content begins with a thought that does not end."""
    return any(text.lstrip().startswith(start) and close not in text for start, close in _marks(tokenizer))


def answer_after(tokenizer: Any, text: str, opened: bool) -> str | None:
    """Cut the thought from a generated text, which begins with it; None if it does not end.

    Args:
        opened: the text follows a prompt that ends inside a thought.
    """
    for start, close in _marks(tokenizer):
        _, found, rest = text.partition(close)
        if found and (opened or text.lstrip().startswith(start)):
            return rest.lstrip()
    return None if opened or unfinished(tokenizer, text) else text


def _marks(tokenizer: Any) -> list[tuple[str, str]]:
    """Beginning and end of a thought: those of the template, and the common ones."""
    thinking = thinking_of(tokenizer)
    own = [(thinking.open, thinking.close)] if thinking is not None and thinking.open and thinking.close else []
    return [*own, *([] if own == [(_OPEN, _CLOSE)] else [(_OPEN, _CLOSE)])]


def written_thought(tokenizer: Any, thought: str, prompt_opens: bool) -> str:
    """Return a thought with its marks, and the first mark only where the prompt has not opened it."""
    start, close = _marks(tokenizer)[0]
    return ("" if prompt_opens else f"{start}\n") + f"{thought.strip()}\n{close}\n\n"


def closing(tokenizer: Any) -> str:
    """Return what closes a thought that the prompt has opened, before anything is thought."""
    thinking = thinking_of(tokenizer)
    return (thinking and thinking.empty) or f"\n{_marks(tokenizer)[0][1]}\n\n"


def closes_at_once(tokenizer: Any, turn: str) -> bool:
    """True if a turn begins with the end of a thought."""
    return turn.lstrip().startswith(_marks(tokenizer)[0][1])


def holds_thought(tokenizer: Any, turn: str, thought: str) -> bool:
    """True if a turn has this thought before the end of its thought."""
    inside, found, _ = turn.partition(_marks(tokenizer)[0][1])
    return bool(found) and thought.strip() in inside


def _between(tokenizer: Any, prompt: str, fields: dict[str, str] | None = None, **variables: bool) -> str:
    """Text that the template writes between the generation prompt and an answer with these fields; "" if nothing."""
    answer: Message = {"role": "assistant", "content": _ANSWER, **(fields or {})}
    try:
        full = render(tokenizer, [*GREETING, answer], **variables)
    except CofituneError:
        return ""
    return full[len(prompt) :].partition(_ANSWER)[0] if full.startswith(prompt) else ""
