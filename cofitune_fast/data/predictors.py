"""The places of a batch that predict the response.

A causal model predicts token t + 1 at place t. In a row of n tokens whose response starts at token s, the places
s - 1 .. n - 2 therefore predict the response tokens s .. n - 1. Nothing predicts a row's first token: a response that
starts at 0 is predicted from token 1 on.

Batches lay rows out in different ways, and only the places differ:
- padded [batch, tokens]: token t of row r is at the flattened place r * tokens + t (`padded_places`);
- packed in a trie: token t is at the t-th place of the row's path (`packing.Pack.path`);
- labels [batch, tokens] of transformers, -100 outside the response: the mask of `label_predictors` marks the places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .encode import Encoded

IGNORED_LABEL = -100

Places = TypeVar("Places", list[int], range, Tensor)


def row_predictors(row: Encoded, places: Places) -> tuple[Places, list[int]]:
    """The places that predict the row's response, and the response tokens they predict, one for one.

    places: where the batch holds the row's tokens, in order. The last token predicts nothing and may be left out.
    """
    start = max(row.response_start, 1)
    return places[start - 1 : len(row.input_ids) - 1], row.input_ids[start:]


def padded_places(rows: Sequence[Encoded], length: int) -> list[range]:
    """The flattened places of each row's tokens in a batch padded on the right to `length`, without the last token."""
    return [range(number * length, number * length + len(row.input_ids) - 1) for number, row in enumerate(rows)]


def label_predictors(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mask bool [batch, tokens] of the places that predict a labelled token, and those N tokens, int64 [N].

    labels: int64 [batch, tokens], -100 where there is none. Both results are on the device of `labels`; the tokens come
    in row-major order, as `hidden[mask]` gives the states that predict them. Labels in column 0 do not count.
    """
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORED_LABEL
    return mask, labels[:, 1:][mask[:, :-1]]
