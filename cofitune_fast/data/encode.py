"""Encode messages as token ids, the same ids as in generation, and mark where the response starts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jinja2

from ..errors import CofituneError
from .formats import Example, Message

PLAIN_FORMAT = ("The tokenizer has no chat template: a prompt is the texts of its messages, each followed by a line "
                "break, and a response ends with the end-of-sequence token.")
"""Sentence that says how rows are written for a model without a chat template."""


class RowsCut(UserWarning):
    """Warning that a length limit cut or dropped rows, for callers that do not read the record of it."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt and its response; the response is `input_ids[response_start:]` and never empty."""

    input_ids: list[int]
    response_start: int
    where: str = ""
    of_anchor: ClassVar[bool] = False  # True of a text that the base wrote (`anchor.AnchorRow`)


class EncodedExamples(list[Encoded]):
    """Encoded examples, with a record of those that a length limit has truncated or dropped.

    indices: position of each entry among the given examples.
    lengths: tokens of each given example before the limit.
    truncated: `where` of the examples whose response was cut.
    dropped: `where` of the examples whose prompt left no room for a response.
    """

    def __init__(self) -> None:
        super().__init__()
        self.indices: list[int] = []
        self.lengths: list[int] = []
        self.truncated: list[str] = []
        self.dropped: list[str] = []


def pad_token_id(tokenizer: Any) -> int:
    """Id to pad with: the tokenizer's pad token, else its end of sequence, else 0. Padding is always masked."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Encode plain text, with the beginning-of-sequence token if the tokenizer adds one."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    bare = tokenizer("")["input_ids"]
    begins = bool(bare) and bare[0] == tokenizer.bos_token_id and ids[:1] != bare[:1]
    return [bare[0], *ids] if begins else ids


def encode_continuation(tokenizer: Any, text: str, continuation: str) -> list[int]:
    """Encode `continuation` after `text`. The ids of `text` stay those of `text` alone, as in generation.

    Both are tokenised together, as some tokenizers mark the beginning of every text. If a token would span the border,
    the continuation is tokenised alone.
    """
    alone = tokenizer(text, add_special_tokens=False)["input_ids"]
    joint = tokenizer(text + continuation, add_special_tokens=False)["input_ids"]
    if joint[: len(alone)] == alone:
        return joint[len(alone) :]
    return tokenizer(continuation, add_special_tokens=False)["input_ids"]


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Encode a prompt up to the point where the model answers.

    With a chat template this is the rendered template with its generation prompt, else PLAIN_FORMAT. Raises
    CofituneError if the template refuses the messages.
    """
    return text_ids(tokenizer, prompt_text(tokenizer, messages))


def encode_example(example: Example, tokenizer: Any) -> Encoded:
    """Encode an example of any length. The response ends with the end-of-turn token.

    With a chat template the response is the text that the template writes after the generation prompt, up to the end
    of the turn. Without one it is PLAIN_FORMAT: the response text and the end-of-sequence token.
    """
    try:
        prompt = prompt_text(tokenizer, example.prompt)
        response = _response_text(tokenizer, example, prompt)
    except CofituneError as error:
        raise CofituneError(f"{example.where or 'An example'}: {error}") from None
    prompt_ids = text_ids(tokenizer, prompt)
    response_ids = encode_continuation(tokenizer, prompt, response)
    return Encoded(prompt_ids + response_ids, len(prompt_ids), example.where)


def encode_examples(examples: Sequence[Example], tokenizer: Any, max_length: int | None = None) -> EncodedExamples:
    """Encode all examples, each with at most `max_length` tokens (None: no limit).

    A response that does not fit is cut at its end. An example whose prompt leaves no room for a response token is
    dropped. The result counts both, and one warning (RowsCut) reports them. Raises CofituneError if no example is left.
    """
    if not examples:
        raise CofituneError("There are no examples to encode; the data need at least one.")
    if max_length is not None and max_length < 2:
        raise CofituneError(f"max_length is {max_length}; a prompt and a response need at least 2 tokens.")
    result = EncodedExamples()
    first_dropped = ""
    for index, example in enumerate(examples):
        encoded = encode_example(example, tokenizer)
        result.lengths.append(len(encoded.input_ids))
        if max_length is not None and len(encoded.input_ids) > max_length:
            if encoded.response_start >= max_length:
                first_dropped = first_dropped or f"{example.where or 'the first'} has {encoded.response_start} tokens"
                result.dropped.append(example.where)
                continue
            result.truncated.append(example.where)
            encoded = Encoded(encoded.input_ids[:max_length], encoded.response_start, encoded.where)
        result.append(encoded)
        result.indices.append(index)
    if not result:
        raise CofituneError(
            f"No prompt leaves room for a response within max_length {max_length}: the prompt at {first_dropped}; "
            "raise max_length."
        )
    if result.dropped or result.truncated:
        warnings.warn(
            f"max_length {max_length}: {len(result.truncated)} of {len(examples)} responses were cut and "
            f"{len(result.dropped)} examples dropped because their prompt leaves no room for a response"
            + (f" ({first_dropped})." if result.dropped else "."),
            RowsCut, stacklevel=2,
        )
    return result


def prompt_text(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Render a prompt as the text that `encode_prompt` encodes."""
    if tokenizer.chat_template:
        return render(tokenizer, messages, add_generation_prompt=True)
    return "".join(message["content"] + "\n" for message in messages)


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Encode a rendered prompt, with the beginning of a text where the template does not write it."""
    if tokenizer.chat_template:  # a template writes the beginning-of-sequence token itself
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    return encode_text(tokenizer, text)


def _response_text(tokenizer: Any, example: Example, prompt: str) -> str:
    """Response text with its end of turn, as it follows the text `prompt`."""
    if not tokenizer.chat_template:
        return example.response + _eos_token(tokenizer)
    content = example.response.strip()
    full = render(tokenizer, [*example.prompt, {"role": "assistant", "content": example.response}])
    if not full.startswith(prompt):
        # Some generation prompts write text that a finished turn lacks, such as the start of a thinking block.
        return content + end_of_turn(tokenizer, example.prompt)
    answer = full[len(prompt) :].rstrip()
    if answer.endswith(content):  # the template seems to write no end of turn
        end = end_of_turn(tokenizer, example.prompt)
        return answer if answer.endswith(end) else answer + end
    return answer


def end_of_turn(tokenizer: Any, prompt: Sequence[Message]) -> str:
    """Text that the chat template writes after an answer, without trailing space; else the end of sequence."""
    if not tokenizer.chat_template:
        return _eos_token(tokenizer)
    probe = "\N{SYMBOL FOR SUBSTITUTE}answer\N{SYMBOL FOR SUBSTITUTE}"
    full = render(tokenizer, [*prompt, {"role": "assistant", "content": probe}])
    if probe not in full:
        raise CofituneError("the tokenizer's chat template leaves out the text of the assistant's turn; give the "
                            "tokenizer a template that takes contents as text.")
    return full.rpartition(probe)[2].rstrip() or _eos_token(tokenizer)


def _eos_token(tokenizer: Any) -> str:
    if tokenizer.eos_token is None:
        raise CofituneError("the tokenizer has no end-of-sequence token to end a response with; set its eos_token.")
    return tokenizer.eos_token


def render(tokenizer: Any, messages: Sequence[Message], **options: Any) -> str:
    """Render messages by the chat template; options are its variables.

    Raises:
        CofituneError: the template refuses the messages.
    """
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except jinja2.TemplateError as error:
        raise CofituneError(f"the tokenizer's chat template refuses these messages ({error}).") from None
