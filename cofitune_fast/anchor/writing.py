"""Texts of an anchor: the base writes them, or a data file gives them; and which of them are of no use."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig

from ..data import Encoded, encode_examples, encode_prompt, pad_token_id
from ..data.encode import end_of_turn
from ..data.formats import Example, Message
from ..errors import CofituneError
from ..models.generate import continue_prompts
from ..models.mode import left_as_found
from ..models.sharded import broadcast_object

_AT_ONCE = 32  # rows per batch of generation
_GREETING: list[Message] = [{"role": "user", "content": "Hello"}]
_LONGEST_CYCLE = 8
_LEAST_ROUNDS = 4


def write_texts(
    model: nn.Module, tokenizer: Any, prompts: Sequence[list[Message]] | None, *, texts: int, tokens: int,
    temperature: float, seed: int,
) -> list[Encoded]:
    """Sample `texts` rows, each with a response of at most `tokens` tokens. The prompts are used in turn, repeatedly.

    Sampling is from the full distribution at `temperature`: no top-k, no top-p, no penalties, whatever the model's own
    generation settings are. The same seed gives the same texts on one machine. The caller's random states are restored.
    A response ends with the model's end of turn, if the model wrote one, also where that is all it wrote. Collective
    for a sharded model; the result is the same on all ranks.

    Args:
        prompts: None lets every text begin with `start_token` alone. The end of a turn of the chat template does not
            end such a text, whose turns the model opens itself.
    """
    ends = end_tokens(model, tokenizer)
    if prompts is None:
        encoded = [[start_token(model, tokenizer)]]
        if tokenizer.chat_template:
            ends -= set(tokenizer(end_of_turn(tokenizer, _GREETING), add_special_tokens=False)["input_ids"])
    else:
        encoded = [encode_prompt(tokenizer, messages) for messages in prompts[:texts]]
    wanted = [(number, ids) for number, ids in enumerate(islice(cycle(encoded), texts))]
    config = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=tokens,
        eos_token_id=sorted(ends) or None, pad_token_id=pad_token_id(tokenizer),
    )
    written: dict[int, Encoded] = {}
    wanted.sort(key=lambda pair: len(pair[1]))
    with left_as_found(model, tokenizer):
        torch.manual_seed(seed)
        for start in range(0, texts, _AT_ONCE):
            batch = wanted[start : start + _AT_ONCE]
            responses = broadcast_object(continue_prompts(model, [ids for _, ids in batch], config))
            for (number, ids), response in zip(batch, responses, strict=True):
                written[number] = Encoded(ids + _until(response, ends), len(ids), f"anchor text {number + 1}")
    return [written[number] for number in range(texts)]


def given_texts(
    tokenizer: Any, examples: Sequence[Example], *, texts: int, tokens: int, seed: int
) -> list[Encoded]:
    """Encode `texts` of the examples, drawn with the seed, with their responses cut to `tokens` tokens.

    If there are fewer examples than texts, they are used in turn, repeatedly.
    """
    drawn = random.Random(f"{seed} anchor rows").sample(examples, min(texts, len(examples)))
    rows = [Encoded(row.input_ids[: row.response_start + tokens], row.response_start, row.where)
            for row in encode_examples(drawn, tokenizer)]
    return list(islice(cycle(rows), texts))


def start_token(model: nn.Module, tokenizer: Any) -> int:
    """Return the token that a text without a prompt begins with.

    It is the tokenizer's beginning-of-sequence token. Where it has none, as in Qwen, it is the one that
    the model's configuration names, which is then the end-of-text token that parts the documents of the pre-training;
    then the first token of the chat template; then the end-of-sequence token.

    Raises:
        CofituneError: there is none of these.
    """
    known = [tokenizer.bos_token_id]
    known += [getattr(settings, "bos_token_id", None)
              for settings in (getattr(model, "generation_config", None), model.config.get_text_config())]
    if tokenizer.chat_template:
        known += encode_prompt(tokenizer, _GREETING)[:1]
    known.append(tokenizer.eos_token_id)
    found = next((token for token in known if token is not None), None)
    if found is None:
        raise CofituneError("anchor.source is free, but the tokenizer has no token that a text begins with; set "
                            "anchor.source to answers or rows.")
    return found


def _until(response: list[int], ends: set[int]) -> list[int]:
    """Cut a response after its end of turn, to remove the padding."""
    stop = next((place for place, token in enumerate(response) if token in ends), len(response) - 1)
    return response[: stop + 1]


def end_tokens(model: nn.Module, tokenizer: Any) -> set[int]:
    """Return the tokens that end a response."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    return {token for token in (*own, tokenizer.eos_token_id) if token is not None}


# Texts of no use ----------------------------------------------------------------------------------------------------


class Flaws(NamedTuple):
    """Numbers of texts that hold nearly nothing of the base's behaviour.

    empty: the response ends at once. repetitive: see `repeats`.
    """

    empty: int = 0
    repetitive: int = 0


def count_flaws(rows: Sequence[Encoded], ends: set[int]) -> Flaws:
    """Count the flawed ones among texts whose responses are ended by the tokens `ends`."""
    bodies = [[token for token in row.input_ids[row.response_start :] if token not in ends] for row in rows]
    return Flaws(sum(not body for body in bodies), sum(repeats(body) for body in bodies))


def repeats(tokens: Sequence[int]) -> bool:
    """True if one token, or one cycle of at most 8 tokens, is repeated over more than half of the tokens.

    Fewer than four rounds of a cycle do not count, so that a short answer such as "no, no" is none.
    """
    for period in range(1, _LONGEST_CYCLE + 1):
        run = longest = 0
        for place in range(period, len(tokens)):
            run = run + 1 if tokens[place] == tokens[place - period] else 0
            longest = max(longest, run)
        if longest + period > max(len(tokens) / 2, _LEAST_ROUNDS * period - 1):
            return True
    return False
