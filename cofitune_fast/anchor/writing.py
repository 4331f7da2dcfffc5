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
from ..data.chat import GREETING, TurnEnd, end_of_turn, thinking_of, tokens_with, turn_end, with_options
from ..data.formats import Example, Message
from ..errors import CofituneError
from ..models.generate import continue_prompts, wrote
from ..models.mode import left_as_found
from ..models.sharded import broadcast_object
from ..progress import progress
from .settings import AnchorThinking

_AT_ONCE = 32  # rows per batch of generation
_LONGEST_CYCLE = 8
_LEAST_ROUNDS = 4


def thinking_for(tokenizer: Any, asked: AnchorThinking) -> AnchorThinking:
    """Return how texts treat thoughts: as asked, or "template" if the model does not think by default.

    Raises:
        CofituneError: "answer" is asked, but the template does not tell where a thought ends.
    """
    thinking = thinking_of(tokenizer) if asked != "template" else None
    if thinking is None or not thinking.by_default:
        return "template"
    if asked == "answer" and thinking.close is None:
        raise CofituneError("anchor.thinking is answer, but the chat template does not tell where a thought ends; "
                            "choose mixed, template or empty.")
    return asked


def prompts_of_texts(
    tokenizer: Any, prompts: Sequence[list[Message]], texts: int, thinking: AnchorThinking
) -> list[list[int]]:
    """Encode the prompt of each text: the prompts in turn, repeatedly, with the thought that `thinking` asks for.

    What the tokenizer's options say of thoughts is for training rows, and does not matter here.
    """
    thinking = thinking_for(tokenizer, thinking)
    default, emptied = (with_options(tokenizer, thinking=choice) for choice in ("auto", "empty"))
    plain = [encode_prompt(default, messages) for messages in prompts[:texts]]
    if thinking in ("template", "answer"):
        return list(islice(cycle(plain), texts))
    empty = [encode_prompt(emptied, messages) for messages in prompts[:texts]]
    return [(empty if thinking == "empty" or number % 2 else plain)[number % len(plain)] for number in range(texts)]


def write_texts(
    model: nn.Module, tokenizer: Any, prompts: Sequence[list[Message]] | None, *, texts: int, tokens: int,
    temperature: float, seed: int, thinking: AnchorThinking = "template", thought_tokens: int = 0,
) -> list[Encoded]:
    """Sample `texts` rows, each with a response of at most `tokens` tokens. The prompts are used in turn, repeatedly.

    Sampling is from the full distribution at `temperature`: no top-k, no top-p, no penalties, whatever the model's own
    generation settings are. The same seed gives the same texts on one machine. The caller's random states are restored.
    A response ends with the model's end of turn (`data.chat.turn_end`), if the model wrote one, also where that is all
    it wrote. Collective for a sharded model; the result is the same on all ranks.

    Args:
        prompts: None lets every text begin with `start_token` alone. The end of a turn of the chat template does not
            end such a text, whose turns the model opens itself.
        thinking, thought_tokens: see AnchorSettings; nothing for a model that does not think by default. With "answer"
            the part of the thought that is left out of the response belongs to the row's prompt.
    """
    end, close = turn_end(tokenizer, getattr(model, "generation_config", None)), None
    most = tokens
    if prompts is None:
        encoded = [[start_token(model, tokenizer)]] * texts
        if tokenizer.chat_template:
            turn = tokenizer(end_of_turn(tokenizer), add_special_tokens=False)["input_ids"]
            end = TurnEnd(end.tokens - set(turn))
    else:
        encoded = prompts_of_texts(tokenizer, prompts, texts, thinking)
        if thinking_for(tokenizer, thinking) == "answer":
            close, most = thinking_of(tokenizer).close, thought_tokens + tokens // 2
    wanted = list(enumerate(encoded))
    config = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=most,
        eos_token_id=sorted(end.tokens) or None, pad_token_id=pad_token_id(tokenizer),
    )
    written: dict[int, Encoded] = {}
    wanted.sort(key=lambda pair: len(pair[1]))
    with left_as_found(model, tokenizer), progress("Writing the anchor's texts", texts, "texts") as task:
        torch.manual_seed(seed)
        for start in range(0, texts, _AT_ONCE):
            batch = wanted[start : start + _AT_ONCE]
            begins = [ids for _, ids in batch]
            criteria = [wrote(tokenizer, end.text, max(map(len, begins)))] if end.text is not None else None
            responses = broadcast_object(continue_prompts(model, begins, config, stopping_criteria=criteria))
            for (number, ids), response in zip(batch, responses, strict=True):
                response = response[: end.places(tokenizer, response)[1]]  # what follows is padding
                if close is not None:
                    first, last = _around(tokens_with(tokenizer, response, close), len(response), tokens)
                    ids, response = ids + response[:first], response[first:last]
                written[number] = Encoded(ids + response, len(ids), f"anchor text {number + 1}")
                task.advance()
    return [written[number] for number in range(texts)]


def _around(answer: int | None, length: int, tokens: int) -> tuple[int, int]:
    """The stretch of `tokens` places of a response whose second half begins the answer; None: its last places."""
    last = length if answer is None else min(length, answer + tokens // 2)
    return max(0, last - tokens), last


def given_texts(
    tokenizer: Any, examples: Sequence[Example], *, texts: int, tokens: int, seed: int
) -> list[Encoded]:
    """Encode `texts` of the examples, drawn with the seed, with their responses cut to `tokens` tokens.

    If there are fewer examples than texts, they are used in turn, repeatedly.
    """
    drawn = random.Random(f"{seed} anchor rows").sample(examples, min(texts, len(examples)))
    rows = [Encoded(row.input_ids[: row.response_start + tokens], row.response_start, row.where)
            for row in encode_examples(drawn, tokenizer, needs_thought=False)]
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
        known += encode_prompt(tokenizer, GREETING)[:1]
    known.append(tokenizer.eos_token_id)
    found = next((token for token in known if token is not None), None)
    if found is None:
        raise CofituneError("anchor.source is free, but the tokenizer has no token that a text begins with; set "
                            "anchor.source to answers or rows.")
    return found


# Texts of no use ----------------------------------------------------------------------------------------------------


class Flaws(NamedTuple):
    """Numbers of texts that hold nearly nothing of the base's behaviour.

    empty: the response ends at once. repetitive: see `repeats`.
    """

    empty: int = 0
    repetitive: int = 0


def count_flaws(rows: Sequence[Encoded], end: TurnEnd, tokenizer: Any) -> Flaws:
    """Count the flawed ones among texts whose responses are ended by `end`."""
    responses = [row.input_ids[row.response_start :] for row in rows]
    if end.text is not None:
        responses = [response[: end.places(tokenizer, response)[0]] for response in responses]
    bodies = [[token for token in response if token not in end.tokens] for response in responses]
    return Flaws(sum(not body for body in bodies), sum(repeats(body) for body in bodies))


def count_unfinished(rows: Sequence[Encoded], tokenizer: Any) -> int:
    """Count the texts of `thinking: answer` in whose response the thought does not end."""
    close = thinking_of(tokenizer).close
    return sum(tokens_with(tokenizer, row.input_ids[row.response_start :], close) is None for row in rows)


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
