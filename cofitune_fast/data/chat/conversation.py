"""The prompt of a row, the response after it, and the answer in a text that was generated after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..faults import RowFault
from ..formats import Example, Message
from ..messages import THOUGHTS
from .options import found_once, options_of
from .template import GREETING, call_names, render, text_of, thought_of
from .thinking import (
    after_opening,
    answer_after,
    closes_at_once,
    closing,
    holds_mark,
    holds_thought,
    opens_thought,
    split_thought,
    switch,
    thinking_of,
    unfinished,
    without_first_thought,
    without_last_thought,
    written_thought,
)
from .turns import end_of_sequence, end_of_turn, written_end

PLAIN_FORMAT = ("The tokenizer has no chat template: a prompt is the texts of its messages, each followed by a line "
                "break, and a response ends with the end-of-sequence token.")
"""Sentence that says how rows are written for a model without a chat template."""

_MARK = "\N{SYMBOL FOR SUBSTITUTE}content\N{SYMBOL FOR SUBSTITUTE}"


def prompt_text(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """Render a prompt up to the point where the model answers: the same text for training and for generation.

    With a chat template it has the generation prompt, and an empty thought where the options ask for one; else it is
    PLAIN_FORMAT.

    Raises:
        TemplateRefusal: the template refuses the messages.
    """
    messages = [_with_thought_as_chosen(tokenizer, message) for message in messages]
    if not tokenizer.chat_template:
        return "".join(text_of(message) + "\n" for message in messages)
    text = render(tokenizer, messages, tools, add_generation_prompt=True, **switch(tokenizer))
    thinking = thinking_of(tokenizer)
    if options_of(tokenizer).thinking != "empty" or thinking is None or thinking.empty is None:
        return text
    return text if thinking.opened and not opens_thought(text) else text + thinking.empty


def response_text(
    tokenizer: Any, example: Example, prompt: str | None = None, *, needs_thought: bool = True
) -> str:
    """Render a response with its end of turn, as it follows `prompt_text`.

    It is what the chat template writes after the generation prompt. A thought that the prompt opens is closed before
    the answer, and what becomes of the row's thought is as `options.ThinkingChoice` says.

    Args:
        prompt: the text of `prompt_text`, if it is known already.
        needs_thought: a response without a thought is a fault where the choice is "with".

    Raises:
        RowFault: the response lacks a thought, or the template writes no thoughts or no tool calls.
        CofituneError: the template refuses the messages, or nothing ends a response.
    """
    choice = options_of(tokenizer).thinking
    thought, content = thought_and_content(tokenizer, example)
    if choice == "with" and needs_thought and thought is None:
        raise RowFault("no thought", example.where, f"{_name(example)} has no thought, and data.thinking is with; give "
                       "the row a reasoning_content, or set data.thinking to auto.")
    if choice in ("without", "empty"):
        thought = None
    answer: Message = {**example.answer, "content": content}
    answer = {key: value for key, value in answer.items() if key not in THOUGHTS}
    if thought is not None:
        answer["reasoning_content"] = thought
    elif _could_be_parted(tokenizer, content):
        answer["reasoning_content"] = ""
    if prompt is None:
        prompt = prompt_text(tokenizer, example.prompt, example.tools)
    turn = _turn(tokenizer, example, answer, prompt)
    opened = opens_thought(prompt) and bool(tokenizer.chat_template)
    if thought is None:
        if opened and not closes_at_once(tokenizer, turn):
            return closing(tokenizer) + turn
        return without_first_thought(tokenizer, turn, empty=True) if choice == "without" and not opened else turn
    if holds_thought(tokenizer, turn, thought):
        return turn
    if opened and closes_at_once(tokenizer, turn):
        return thought.strip() + turn
    if opened or choice == "with":
        return written_thought(tokenizer, thought, opened) + without_first_thought(tokenizer, turn, empty=True)
    raise RowFault("a thought that the chat template leaves out", example.where,
                   f"{_name(example)} has a thought (reasoning_content) that the chat template leaves out; set "
                   "data.thinking to with, to train it between <think> and </think>, or to without.")


def _turn(tokenizer: Any, example: Example, answer: Message, prompt: str) -> str:
    """The assistant's turn after the prompt, as the template writes it, with an end."""
    if not tokenizer.chat_template:
        return text_of(answer) + end_of_sequence(tokenizer)
    messages = [_with_thought_as_chosen(tokenizer, message) for message in example.prompt]
    full = render(tokenizer, [*messages, answer], example.tools, **switch(tokenizer))
    head = without_last_thought(prompt)
    if full.startswith(prompt):
        turn = full[len(prompt) :]
    elif full.startswith(head):
        turn = after_opening(tokenizer, prompt, full[len(head) :])
    elif answer.get("tool_calls"):
        cure = ("set data.thinking to auto, as the empty thought leaves no place for a call"
                if options_of(tokenizer).thinking == "empty" else
                "give the tokenizer a template that takes tool calls")
        raise RowFault("tool calls that the chat template leaves out", example.where,
                       f"{_name(example)} calls tools, and the chat template writes no such turn after the end of the "
                       f"prompt; {cure}.")
    else:  # the generation prompt has text that a finished turn lacks
        return text_of(answer).strip() + end_of_turn(tokenizer)
    turn = turn.rstrip()
    if written_end(tokenizer):
        return turn
    end = end_of_sequence(tokenizer)
    return turn if turn.endswith(end) else turn + end


def parted(tokenizer: Any, message: Message) -> tuple[str | None, str]:
    """Return the thought of an assistant's message, or None, and its content without it.

    A thought stands beside the content, which is then an answer as it is, or in it, see `split_thought`.
    """
    beside = thought_of(message)
    return split_thought(tokenizer, text_of(message)) if beside is None else (beside, text_of(message))


def _with_thought_as_chosen(tokenizer: Any, message: Message) -> Message:
    """A message of the prompt: without its thought where the options leave thoughts out, else with it beside it."""
    if message["role"] != "assistant":
        return message
    thought, content = parted(tokenizer, message)
    if options_of(tokenizer).thinking in ("without", "empty"):
        message = {**{key: value for key, value in message.items() if key not in THOUGHTS}, "content": content}
    elif thought is not None and thought_of(message) is None and thinking_of(tokenizer) is not None:
        return {**message, "content": content, "reasoning_content": thought}
    if thought_of(message) is None and _could_be_parted(tokenizer, text_of(message)):
        return {**message, "reasoning_content": ""}
    return message


def _could_be_parted(tokenizer: Any, content: str) -> bool:
    """True if a template would take a part of an answer for a thought, unless it is given an empty thought beside it.

    Templates such as Qwen3's look for a thought in the content where they are given none.
    """
    return thinking_of(tokenizer) is not None and holds_mark(tokenizer, content)


def thought_and_content(tokenizer: Any, example: Example) -> tuple[str | None, str]:
    """The thought of a response, beside its content or in it, and the content without it.

    By default a template that knows of no thoughts takes a content as it is.
    """
    thought, content = parted(tokenizer, example.answer)
    if thought_of(example.answer) is not None:
        return thought, content
    if thinking_of(tokenizer) is None and options_of(tokenizer).thinking == "auto":
        return None, example.response
    if thought is None and unfinished(tokenizer, example.response):
        raise RowFault("a thought that does not end", example.where,
                       f"{_name(example)} has a thought that does not end; end it before the answer, or leave it out.")
    return thought or None, content


def _name(example: Example) -> str:
    return example.where or "An example"


@found_once
def lead(tokenizer: Any) -> str:
    """Return what stands between a prompt and the content of an answer without a thought, such as an empty thought."""
    return response_text(tokenizer, Example(GREETING, _MARK), needs_thought=False).partition(_MARK)[0]


@found_once
def prompt_opens_thought(tokenizer: Any) -> bool:
    """True if a prompt ends inside a thought."""
    return bool(tokenizer.chat_template) and opens_thought(prompt_text(tokenizer, GREETING))


def generated_thought(tokenizer: Any, text: str) -> str:
    """Return the beginning of a generated text that is a thought, with its marks; "" if there is none."""
    answer = answer_after(tokenizer, text, prompt_opens_thought(tokenizer))
    return "" if answer is None else text[: len(text) - len(answer)]


def answer_of(tokenizer: Any, text: str, *, chat: bool = True) -> str | None:
    """Cut from a generated text what precedes the content in the template, and any thought.

    Args:
        text: what was generated after `prompt_text`, with special tokens and without its end of turn.
        chat: False for a text that was generated after a plain text; only thoughts are cut then.

    Returns:
        The answer; None if the text holds a thought that does not end, and so no answer.
    """
    if not chat:
        return answer_after(tokenizer, text, opened=False)
    before, opened = lead(tokenizer), prompt_opens_thought(tokenizer)
    if before and text.startswith(before):
        text = text.removeprefix(before)
        if opened or without_first_thought(tokenizer, before, empty=True) != before:
            return text  # the thought is over
    return answer_after(tokenizer, text, opened)


def content_of(tokenizer: Any, example: Example) -> str:
    """Return the text that a generated answer to an example is compared with: its content without a thought.

    The text of a response that calls tools is what the template writes of it.
    """
    if not call_names(example.answer):
        return parted(tokenizer, example.answer)[1]
    text = response_text(tokenizer, example, needs_thought=False)
    return answer_of(tokenizer, text.removesuffix(end_of_turn(tokenizer))) or ""
