"""Let the base write texts: responses sampled from its distribution, to prompts in its chat template."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from ..data import Encoded, encode_prompt, pad_token_id
from ..data.formats import Message
from ..models.generate import continue_prompts
from ..models.mode import left_as_found
from ..models.sharded import broadcast_object

_AT_ONCE = 32  # rows per batch of generation


def write_texts(
    model: nn.Module, tokenizer: Any, prompts: Sequence[list[Message]], *, texts: int, tokens: int, temperature: float,
    seed: int,
) -> list[Encoded]:
    """Sample `texts` rows, each with a response of at most `tokens` tokens. The prompts are used in turn, repeatedly.

    Sampling is from the full distribution at `temperature`: no top-k, no top-p, no penalties, whatever the model's own
    generation settings are. The same seed gives the same texts on one machine. The caller's random states are restored.
    A response ends with the model's end of turn, if the model wrote one. Collective for a sharded model; the result is
    the same on all ranks.
    """
    ends = _end_tokens(model, tokenizer)
    encoded = [encode_prompt(tokenizer, messages) for messages in prompts[:texts]]
    wanted = [(number, ids) for number, ids in enumerate(islice(cycle(encoded), texts))]
    config = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=tokens, min_new_tokens=1,
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


def _until(response: list[int], ends: set[int]) -> list[int]:
    """Cut a response after its end of turn, to remove the padding."""
    stop = next((place for place, token in enumerate(response) if token in ends), len(response) - 1)
    return response[: stop + 1]


def _end_tokens(model: nn.Module, tokenizer: Any) -> set[int]:
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    return {token for token in (*own, tokenizer.eos_token_id) if token is not None}
