"""The base writes: responses sampled from its own distribution, to prompts in its own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from ..data import Encoded, encode_prompt, pad_token_id
from ..data.formats import Message
from ..errors import CofituneError
from ..models.mode import evaluation_mode

_AT_ONCE = 32  # rows that are written together


def write_texts(
    model: nn.Module, tokenizer: Any, prompts: Sequence[list[Message]], *, texts: int, tokens: int, temperature: float,
    seed: int,
) -> list[Encoded]:
    """`texts` rows, the prompts in turn and over again, each with a response of at most `tokens` tokens.

    Sampling is from the whole distribution at `temperature`: no top-k, no top-p, no penalty, whatever the model's own
    generation settings say. The same seed gives the same texts on one machine. The generators of the caller are left as
    they were. A response ends with the model's end of turn where it wrote one.
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
    devices = [model.device] if model.device.type == "cuda" else []
    with evaluation_mode(model), torch.no_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for start in range(0, texts, _AT_ONCE):
            batch = wanted[start : start + _AT_ONCE]
            prompts_ids = [ids for _, ids in batch]
            for (number, ids), response in zip(batch, _respond(model, prompts_ids, config), strict=True):
                written[number] = Encoded(ids + _until(response, ends), len(ids), f"anchor text {number + 1}")
    return [written[number] for number in range(texts)]


def _respond(model: nn.Module, prompts: Sequence[list[int]], config: GenerationConfig) -> list[list[int]]:
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), config.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    output: Tensor = model.generate(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config,
    )
    return output[:, length:].tolist()


def _until(response: list[int], ends: set[int]) -> list[int]:
    """The response with its end of turn, without what pads it."""
    stop = next((place for place, token in enumerate(response) if token in ends), len(response) - 1)
    return response[: stop + 1]


def _end_tokens(model: nn.Module, tokenizer: Any) -> set[int]:
    config = getattr(model, "generation_config", None)
    if config is None:
        raise CofituneError(f"{type(model).__name__} cannot generate text, which the anchor needs; set anchor.weight "
                            "to 0.")
    ends = config.eos_token_id
    own = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    return {token for token in (*own, tokenizer.eos_token_id) if token is not None}
