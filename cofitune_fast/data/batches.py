"""Padded batches of encoded examples, planned so that there is little padding."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch

from ..errors import CofituneError
from .encode import Encoded
from .predictors import IGNORED_LABEL


def pad_rows(encoded: Sequence[Encoded], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad to the right: int64 tensors "input_ids" and "attention_mask" (1 on tokens), both [B, T]."""
    length = max(len(row.input_ids) for row in encoded)
    input_ids = torch.full((len(encoded), length), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for number, row in enumerate(encoded):
        input_ids[number, : len(row.input_ids)] = torch.tensor(row.input_ids)
        attention_mask[number, : len(row.input_ids)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def collate(encoded: Sequence[Encoded], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad to the right and label the responses: the tensors of `pad_rows` and "labels", int64 [B, T].

    Labels are the input ids on responses and -100 on prompts and padding, unshifted as transformers expects them.
    """
    batch = pad_rows(encoded, pad_token_id)
    labels = torch.full_like(batch["input_ids"], IGNORED_LABEL)
    for number, row in enumerate(encoded):
        response = slice(row.response_start, len(row.input_ids))
        labels[number, response] = batch["input_ids"][number, response]
    return {**batch, "labels": labels}


def batches(
    encoded: Sequence[Encoded],
    pad_token_id: int,
    *,
    max_tokens: int | None = 4096,
    batch_size: int | None = None,
    sort: bool = True,
    seed: int | None = None,
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Yield (indices into `encoded`, collated batch). Each example comes once; `plan_batches` explains the options."""
    lengths = [len(row.input_ids) for row in encoded]
    for indices in plan_batches(lengths, max_tokens=max_tokens, batch_size=batch_size, sort=sort, seed=seed):
        yield indices, collate([encoded[index] for index in indices], pad_token_id)


def plan_batches(
    lengths: Sequence[int],
    *,
    max_tokens: int | None = 4096,
    batch_size: int | None = None,
    sort: bool = True,
    seed: int | None = None,
) -> list[list[int]]:
    """Divide rows of the given lengths into batches; returns the row indices of each batch.

    A batch has at most `batch_size` rows and at most `max_tokens` tokens, padding included; at least one of the two
    limits must be given. A row longer than `max_tokens` is a batch of its own.

    Rows are sorted by length with the longest first, so that a lack of memory shows at once. With a `seed`, rows of
    equal length are shuffled, and then the batches. With `sort=False` all rows keep their order, or are shuffled.
    """
    if max_tokens is None and batch_size is None:
        raise CofituneError("Batches need a limit; give max_tokens or batch_size.")
    for name, value in (("max_tokens", max_tokens), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise CofituneError(f"{name} is {value}; it must be at least 1.")
    order = list(range(len(lengths)))
    shuffler = random.Random(seed)
    if seed is not None:
        shuffler.shuffle(order)
    if sort:
        order.sort(key=lambda index: -lengths[index])

    planned: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        size = len(planned[-1]) + 1 if planned else 0
        too_many = batch_size is not None and size > batch_size
        too_large = max_tokens is not None and size * longest > max_tokens
        if not planned or too_many or too_large:
            planned.append([])
            longest = lengths[index]
        planned[-1].append(index)
    if seed is not None and sort:
        shuffler.shuffle(planned)
    return planned
