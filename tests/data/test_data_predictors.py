"""Which places predict the response: each form of batch against a reference that walks through the rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cofitune_fast.data import (
    Encoded,
    collate,
    collate_trie,
    label_predictors,
    pack_rows,
    pad_rows,
    padded_places,
    row_predictors,
)

# (tokens before the response, tokens of the response), few token ids so that rows share their beginnings
ROWS = st.lists(
    st.tuples(st.lists(st.integers(4, 6), max_size=5), st.lists(st.integers(4, 6), min_size=1, max_size=5)),
    min_size=1, max_size=6,
).map(lambda rows: [Encoded(prompt + response, len(prompt)) for prompt, response in rows])


def pairs(row: Encoded) -> list[tuple[int, int]]:
    """(t, token t + 1) of a row for every token t + 1 of its response."""
    return [(t, row.input_ids[t + 1]) for t in range(len(row.input_ids) - 1) if t + 1 >= row.response_start]


@pytest.mark.parametrize(("row", "places", "tokens"), [
    (Encoded([5, 6, 7, 8], 2), [11, 12], [7, 8]),
    (Encoded([5, 6, 7, 8], 3), [12], [8]),
    (Encoded([5, 6, 7, 8], 1), [10, 11, 12], [6, 7, 8]),
    (Encoded([5, 6, 7, 8], 0), [10, 11, 12], [6, 7, 8]),  # nothing predicts the 5
    (Encoded([5], 0), [], []),
], ids=["ordinary", "one token", "prompt of one token", "no prompt", "a single token"])
def test_a_row_by_hand(row, places, tokens):
    without_last = list(range(10, 10 + len(row.input_ids) - 1))
    for given_places in (without_last, [*without_last, 99]):  # the last token's place changes nothing
        assert row_predictors(row, given_places) == (places, tokens)
    found, _ = row_predictors(row, torch.tensor(without_last, dtype=torch.long))
    assert found.tolist() == places


@settings(max_examples=200, deadline=None)
@given(ROWS, st.integers(0, 3))
def test_places_and_labels_of_a_padded_batch(rows, pad_token_id):
    batch = collate(rows, pad_token_id)
    length = batch["input_ids"].shape[1]
    expected = [[(number * length + t, token) for t, token in pairs(row)] for number, row in enumerate(rows)]

    found = [row_predictors(row, places) for row, places in zip(rows, padded_places(rows, length), strict=True)]
    assert [list(zip(places, tokens, strict=True)) for places, tokens in found] == expected

    mask, tokens = label_predictors(batch["labels"])
    assert mask.shape == batch["labels"].shape and mask.dtype == torch.bool
    flat = [pair for row in expected for pair in row]
    assert list(zip(mask.flatten().nonzero()[:, 0].tolist(), tokens.tolist(), strict=True)) == flat
    assert mask.sum(1).tolist() == [len(row) for row in expected]


@settings(max_examples=200, deadline=None)
@given(ROWS.map(lambda rows: [row for row in rows if len(row.input_ids) > 1]).filter(len))
def test_places_of_a_packed_batch(rows):
    pack = pack_rows(rows)
    batch = collate_trie(pack)
    assert sorted(index for index, _, _ in pack.rows) == list(range(len(rows)))
    for index, places, tokens in pack.rows:
        row, path = rows[index], pack.path(places[-1])
        assert batch["input_ids"][0, path].tolist() == row.input_ids[:-1]
        assert list(zip(places, tokens, strict=True)) == [(path[t], token) for t, token in pairs(row)]


@given(ROWS)
def test_rows_are_padded_with_and_without_labels_alike(rows):
    padded, labelled = pad_rows(rows, 0), collate(rows, 0)
    assert list(padded) == ["input_ids", "attention_mask"]
    for name, tensor in padded.items():
        assert torch.equal(tensor, labelled[name])


def test_labels_of_the_first_column_are_predicted_by_nothing():
    mask, tokens = label_predictors(torch.tensor([[7, -100, 8], [9, 3, -100]]))
    assert mask.tolist() == [[False, True, False], [True, False, False]]
    assert tokens.tolist() == [8, 3]
    mask, tokens = label_predictors(torch.tensor([[7], [8]]))
    assert not mask.any() and mask.shape == (2, 1) and tokens.tolist() == []
