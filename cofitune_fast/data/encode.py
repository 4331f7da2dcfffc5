"""Encode messages as token ids, the same ids as in generation, and mark where the response starts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import CofituneError
from .chat import TemplateRefusal, check_shown, check_texts, prompt_text, response_text
from .faults import Faults, OnBadRow, RowFault
from .formats import Example, Message


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
    """Encoded examples, with a record of those that are left out, and of those that a length limit has cut.

    indices: position of each entry among the given examples.
    lengths: tokens of each given example before the limit.
    truncated: `where` of the examples whose response was cut.
    dropped: `where` of the examples whose prompt left no room for a response.
    first_dropped: the first of those, with the tokens of its prompt.
    faults: faults of the examples that are left out because they cannot be used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.indices: list[int] = []
        self.lengths: list[int] = []
        self.truncated: list[str] = []
        self.dropped: list[str] = []
        self.first_dropped = ""
        self.faults: list[RowFault] = []


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


def encode_continuation(
    tokenizer: Any, text: str, continuation: str, alone: list[int] | None = None
) -> list[int]:
    """Encode `continuation` after `text`. The ids of `text` stay those of `text` alone, as in generation.

    Both are tokenised together, as some tokenizers mark the beginning of every text. If a token would span the border,
    the continuation is tokenised alone.

    Args:
        alone: ids of `text` without special tokens around it, if they are known already.
    """
    if alone is None:
        alone = tokenizer(text, add_special_tokens=False)["input_ids"]
    joint = tokenizer(text + continuation, add_special_tokens=False)["input_ids"]
    if joint[: len(alone)] == alone:
        return joint[len(alone) :]
    return tokenizer(continuation, add_special_tokens=False)["input_ids"]


def encode_prompt(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
) -> list[int]:
    """Encode a prompt up to the point where the model answers.

    With a chat template this is the rendered template with its generation prompt, else PLAIN_FORMAT. Raises
    CofituneError if the template refuses the messages.
    """
    return text_ids(tokenizer, prompt_text(tokenizer, messages, tools))


def encode_example(example: Example, tokenizer: Any, *, needs_thought: bool = True) -> Encoded:
    """Encode an example of any length. The response ends with the end-of-turn token.

    With a chat template the response is the text that the template writes after the generation prompt, up to the end
    of the turn. Without one it is PLAIN_FORMAT: the response text and the end-of-sequence token.

    Args:
        needs_thought: see `chat.response_text`.

    Raises:
        RowFault: the template refuses the messages, or leaves out something of the example; or a text of the example
            holds a token that begins or ends a turn.
        CofituneError: no row can be encoded, as nothing ends a response.
    """
    try:
        prompt = prompt_text(tokenizer, example.prompt, example.tools)
        response = response_text(tokenizer, example, prompt, needs_thought=needs_thought)
        check_texts(tokenizer, example)
        check_shown(tokenizer, example, prompt, response)
    except RowFault:
        raise
    except CofituneError as error:
        sentence = f"{example.where or 'An example'}: {error}"
        if isinstance(error, TemplateRefusal):
            raise RowFault("messages that the chat template refuses", example.where, sentence) from None
        raise CofituneError(sentence) from None
    prompt_ids = text_ids(tokenizer, prompt)
    response_ids = encode_continuation(tokenizer, prompt, response, prompt_ids if tokenizer.chat_template else None)
    return Encoded(prompt_ids + response_ids, len(prompt_ids), example.where)


def encode_examples(
    examples: Sequence[Example], tokenizer: Any, max_length: int | None = None, on_bad_row: OnBadRow = "stop",
    *, needs_thought: bool = True,
) -> EncodedExamples:
    """Encode all examples, each with at most `max_length` tokens (None: no limit).

    A response that does not fit is cut at its end. An example whose prompt leaves no room for a response token is
    dropped. The result counts both, and one warning (RowsCut) reports them.

    Args:
        on_bad_row: "stop" refuses examples that the chat template refuses or leaves something out of, after all have
            been looked at; "skip" leaves them out, and logs how many.
        needs_thought: see `chat.response_text`.

    Raises:
        CofituneError: examples cannot be used, or none is left.
    """
    if not examples:
        raise CofituneError("There are no examples to encode; the data need at least one.")
    faults = Faults(on_bad_row)
    result = collect_encoded(examples, tokenizer, max_length, faults, needs_thought=needs_thought)
    faults.settle(len(examples), len(examples) - len(faults))
    if result.dropped or result.truncated:
        warnings.warn(
            f"max_length {max_length}: {len(result.truncated)} of {len(examples)} responses were cut and "
            f"{len(result.dropped)} examples dropped because their prompt leaves no room for a response"
            + (f" ({result.first_dropped})." if result.dropped else "."),
            RowsCut, stacklevel=2,
        )
    return result


def collect_encoded(
    examples: Sequence[Example], tokenizer: Any, max_length: int | None, faults: Faults, *, needs_thought: bool = True
) -> EncodedExamples:
    """Encode examples as `encode_examples` does; those that cannot be used are added to `faults`, nothing is settled.

    Raises:
        CofituneError: no prompt leaves room for a response.
    """
    if max_length is not None and max_length < 2:
        raise CofituneError(f"max_length is {max_length}; a prompt and a response need at least 2 tokens.")
    result = EncodedExamples()
    for index, example in enumerate(examples):
        try:
            encoded = encode_example(example, tokenizer, needs_thought=needs_thought)
        except RowFault as fault:
            result.faults.append(fault)
            faults.add(fault)
            continue
        result.lengths.append(len(encoded.input_ids))
        if max_length is not None and len(encoded.input_ids) > max_length:
            if encoded.response_start >= max_length:
                result.first_dropped = result.first_dropped or (
                    f"{example.where or 'the first'} has {encoded.response_start} tokens")
                result.dropped.append(example.where)
                continue
            result.truncated.append(example.where)
            encoded = Encoded(encoded.input_ids[:max_length], encoded.response_start, encoded.where)
        result.append(encoded)
        result.indices.append(index)
    if not result and result.dropped:
        raise CofituneError(
            f"No prompt leaves room for a response within max_length {max_length}: the prompt at "
            f"{result.first_dropped}; raise max_length."
        )
    return result


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Encode a rendered prompt, with the beginning of a text where the template does not write it."""
    if tokenizer.chat_template:  # a template writes the beginning-of-sequence token itself
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    return encode_text(tokenizer, text)
