"""Control tokens of a conversation, which a text of a row must not hold."""

from __future__ import annotations

from typing import Any

from ..faults import RowFault
from ..formats import Example
from .conversation import parted, thought_and_content
from .options import found_once
from .template import GREETING, render, text_of
from .thinking import thinking_of
from .turns import end_of_turn, turn_end

_KIND = "a control token in a text"


def check_texts(tokenizer: Any, example: Example) -> None:
    """Check that no text of an example holds a token that begins or ends a turn.

    In a response it would train a stop in the middle of the text, and in a prompt forge a turn. Other special tokens,
    such as those of images and the marks of a thought, are let through.

    Raises:
        RowFault: a text holds such a token; it names both.
    """
    tokens = control_tokens(tokenizer)
    thought, content = thought_and_content(tokenizer, example)
    answer = f"{thought or ''} {content} {example.also.get('tool_calls') or ''}"
    for token in tokens:
        if token in answer:
            raise RowFault(_KIND, example.where, f"{example.where or 'An example'} has {token!r} in the text of the "
                           "response, where it would end or begin a turn; leave it out, as it is written by itself.")
    if not tokenizer.chat_template:  # no turns that could be forged
        return
    for number, message in enumerate(example.prompt, 1):
        text = parted(tokenizer, message)[1] if message["role"] == "assistant" else text_of(message)
        for token in tokens:
            if token in text:
                raise RowFault(_KIND, example.where, f"{example.where or 'An example'} has {token!r} in the text of "
                               f"message {number} ({message['role']}), where it would end or begin a turn; leave it "
                               "out, or write it otherwise.")


@found_once
def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Return the added tokens that end a response, and those that the chat template writes around turns."""
    # Gemma's added tokens hold line breaks and HTML, which are texts like any other.
    added = {token.content for token in tokenizer.added_tokens_decoder.values()
             if token.content.strip() and (token.special or token.content.startswith(("<", "[")))}
    ends = added & {tokenizer.convert_ids_to_tokens(token) for token in turn_end(tokenizer, None).tokens}
    if not tokenizer.chat_template:
        return tuple(sorted(ends))
    turns = render(tokenizer, [*GREETING, {"role": "assistant", "content": "Hi"}]) + end_of_turn(tokenizer)
    thinking = thinking_of(tokenizer)
    marks = {"<think>", "</think>", *((thinking.open, thinking.close) if thinking is not None else ())}
    return tuple(sorted(ends | {token for token in added - marks if token in turns}))
