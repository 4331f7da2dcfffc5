"""Generate from prompts of different lengths together, with the given settings alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CofituneError
from .sharded import is_sharded


def continue_prompts(
    model: nn.Module, prompts: Sequence[Sequence[int]], config: Any, **options: Any
) -> list[list[int]]:
    """Generate with `model.generate`; returns the new token ids of each prompt, padded to one length.

    prompts: token ids; they are padded on the left to the longest. config: a transformers GenerationConfig with
    pad_token_id. It replaces the model's own during the call, which would otherwise add its penalties and temperatures.
    options: further arguments of `generate`. Collective for a sharded model: the ranks go on until all have finished.

    Raises:
        CofituneError: the model cannot generate.
    """
    if getattr(model, "generation_config", None) is None:
        raise CofituneError(f"{type(model).__name__} cannot generate text; use a causal model of transformers.")
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), config.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    device = model.get_input_embeddings().weight.device
    own, model.generation_config = model.generation_config, config
    try:
        output = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device),
                                synced_gpus=is_sharded(model), **options)
    finally:
        model.generation_config = own
    return output[:, length:].tolist()


def wrote(tokenizer: Any, text: str, start: int) -> Callable[..., Tensor]:
    """Make a stopping criterion for `generate`: a row stops once what it has after token `start` contains `text`.

    transformers' own stop_strings would also match a text that begins in the prompt.
    """
    most = len(text.encode())  # tokens that `text` can have at most

    def criterion(input_ids: Tensor, _scores: Any, **_options: Any) -> Tensor:
        return torch.tensor([text in tokenizer.decode(ids[start:][-most:]) for ids in input_ids],
                            device=input_ids.device)

    return criterion
