from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cofitune_fast.data import Encoded, batches, collate, plan_batches
from cofitune_fast.errors import CofituneError


def test_collate_pads_right_and_labels_responses_only():
    batch = collate([Encoded([5, 6, 7], 2), Encoded([8, 9, 10, 11], 1)], pad_token_id=3)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 3], [8, 9, 10, 11]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 7, -100], [-100, 9, 10, 11]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_labels_where_the_pad_token_is_part_of_the_response():
    batch = collate([Encoded([5, 2], 1), Encoded([5, 6, 2], 1)], pad_token_id=2)
    assert batch["labels"].tolist() == [[-100, 2, -100], [-100, 6, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


@given(
    lengths=st.lists(st.integers(1, 30), max_size=40),
    max_tokens=st.none() | st.integers(1, 100),
    batch_size=st.integers(1, 7),
    sort=st.booleans(),
    seed=st.none() | st.integers(0, 3),
)
def test_plans_keep_their_limits_and_lose_nothing(lengths, max_tokens, batch_size, sort, seed):
    plan = plan_batches(lengths, max_tokens=max_tokens, batch_size=batch_size, sort=sort, seed=seed)
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))
    for batch in plan:
        longest = max(lengths[index] for index in batch)
        assert len(batch) <= batch_size
        assert len(batch) == 1 or max_tokens is None or len(batch) * longest <= max_tokens
    assert plan == plan_batches(lengths, max_tokens=max_tokens, batch_size=batch_size, sort=sort, seed=seed)
    flat = [lengths[index] for batch in plan for index in batch]
    if sort and seed is None:
        assert flat == sorted(lengths, reverse=True)
    if not sort and seed is None:
        assert [index for batch in plan for index in batch] == list(range(len(lengths)))


def test_batches_are_filled():
    assert plan_batches([4, 4, 4, 2, 2], max_tokens=8) == [[0, 1], [2, 3], [4]]
    assert plan_batches([9, 1, 3], max_tokens=4) == [[0], [2], [1]]
    assert plan_batches([1, 2, 3], max_tokens=None, batch_size=2, sort=False) == [[0, 1], [2]]


def test_seeds_shuffle_batches_but_keep_lengths_together():
    lengths = [length for length in range(1, 9) for _ in range(4)]
    plans = [plan_batches(lengths, max_tokens=None, batch_size=4, seed=seed) for seed in (0, 1)]
    assert plans[0] != plans[1]
    for plan in plans:
        assert all(len({lengths[index] for index in batch}) == 1 for batch in plan)


def test_batches_yield_indices_with_their_rows():
    encoded = [Encoded(list(range(4, 6 + n)), 1) for n in range(5)]
    seen = []
    for indices, batch in batches(encoded, 0, max_tokens=10, seed=0):
        for index, ids, mask in zip(indices, batch["input_ids"], batch["attention_mask"], strict=True):
            assert ids[mask.bool()].tolist() == encoded[index].input_ids
        seen += indices
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_bad_limits_are_told():
    with pytest.raises(CofituneError, match="give max_tokens or batch_size"):
        plan_batches([1], max_tokens=None)
    with pytest.raises(CofituneError, match="max_tokens is 0; it must be at least 1"):
        plan_batches([1], max_tokens=0)
    with pytest.raises(CofituneError, match="batch_size is -1; it must be at least 1"):
        plan_batches([1], batch_size=-1)
