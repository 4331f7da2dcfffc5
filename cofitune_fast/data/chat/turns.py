"""Where a turn ends: one answer for the texts that are written, generated and trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ...errors import CofituneError
from .options import found_once
from .template import GREETING, render

_PROBE = "\N{SYMBOL FOR SUBSTITUTE}answer\N{SYMBOL FOR SUBSTITUTE}"


class TurnEnd(NamedTuple):
    """Tokens and texts that end a response.

    Attributes:
        tokens: ids of the tokens that end it.
        text: the chat template's end of turn where it is more than one token, else None; one of `tokens` may end it.
    """

    tokens: frozenset[int]
    text: str | None = None

    def places(self, tokenizer: Any, ids: Sequence[int]) -> tuple[int, int]:
        """Return how many of a response's ids stand before its end, and how many up to and with it.

        Both are the number of ids if nothing ends the response. What follows the end is padding.
        """
        before = after = len(ids)
        for place, token in enumerate(ids):
            if token in self.tokens:
                before, after = place, place + 1
                break
        if self.text is not None and (count := tokens_with(tokenizer, ids[:after], self.text)) is not None:
            after = count
            before = next(start for start in range(count - 1, -1, -1)
                          if self.text in tokenizer.decode(ids[start:count]))
        return before, after

    def text_before(self, tokenizer: Any, ids: Sequence[int]) -> str:
        """Return the text of a response before its end, also where the end begins within a token."""
        before, after = self.places(tokenizer, ids)
        if self.text is not None and self.text in (whole := tokenizer.decode(ids[:after])):
            return whole.partition(self.text)[0]
        return tokenizer.decode(ids[:before])


def turn_end(tokenizer: Any, generation_config: Any) -> TurnEnd:
    """Return what ends a response of a model.

    It is the end of turn that the chat template writes, and training rows end with, together with what ends a text by
    the model's generation configuration (None: there is none) and by the tokenizer.
    """
    tokens = configured_ends(tokenizer, generation_config)
    if not tokenizer.chat_template:
        return TurnEnd(frozenset(tokens))
    text = end_of_turn(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    # Of several tokens a first one that is no text says it all, as in Phi-3: <|end|>, newline, <|endoftext|>.
    if len(ids) == 1 or ids[0] in tokenizer.added_tokens_decoder:
        return TurnEnd(frozenset({*tokens, ids[0]}))
    return TurnEnd(frozenset(tokens), text)


def end_of_turn(tokenizer: Any) -> str:
    """Return the text that ends a response: what the chat template writes after it, else the end of sequence.

    Raises:
        CofituneError: the template leaves out what the assistant says, or there is no end of sequence to use.
    """
    return written_end(tokenizer) or end_of_sequence(tokenizer)


@found_once
def written_end(tokenizer: Any) -> str:
    """Return what the chat template writes after an answer, without trailing space; "" if nothing."""
    if not tokenizer.chat_template:
        return ""
    full = render(tokenizer, [*GREETING, {"role": "assistant", "content": _PROBE}])
    if _PROBE not in full:
        raise CofituneError("the tokenizer's chat template leaves out the text of the assistant's turn; give the "
                            "tokenizer a template that takes contents as text.")
    return full.rpartition(_PROBE)[2].rstrip()


def end_of_sequence(tokenizer: Any) -> str:
    """Return the token that ends a text.

    Raises:
        CofituneError: the tokenizer has none.
    """
    if tokenizer.eos_token is None:
        raise CofituneError("the tokenizer has no end-of-sequence token to end a response with; set its eos_token.")
    return tokenizer.eos_token


def configured_ends(tokenizer: Any, generation_config: Any) -> set[int]:
    """Return the ids that end a text by a generation configuration and by the tokenizer, whatever the template."""
    ends = getattr(generation_config, "eos_token_id", None)
    own = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    return {token for token in (*own, tokenizer.eos_token_id) if token is not None}


def tokens_with(tokenizer: Any, ids: Sequence[int], text: str) -> int | None:
    """Return the least number of leading ids whose text contains `text`; None if that of all ids does not."""
    if text not in tokenizer.decode(ids):
        return None
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if text in tokenizer.decode(ids[:middle]) else (middle + 1, high)
    return low
