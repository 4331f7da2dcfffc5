"""Packed rows: what each token sees and where it stands, and that the model's outputs are those of separate rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_tiny_model

from cofitune_fast.data import Encoded, collate_packs, pack_rows
from cofitune_fast.models import select_positions

ROWS = [Encoded([5, 6, 7, 8], 2), Encoded([5, 6, 9], 2), Encoded([5, 6, 7, 10, 11], 3), Encoded([12, 13], 1)]


def test_a_small_tree_by_hand():
    (pack,) = pack_rows(ROWS)
    # 5 6 7, shared by the first three rows, then 10 of the third (5 6 9 adds nothing: its 9 predicts nothing), then 12
    assert pack.ids == [5, 6, 7, 10, 12]
    assert pack.parents == [-1, 0, 1, 2, -1]
    assert pack.positions == [0, 1, 2, 3, 0]
    assert pack.rows == [(0, [1, 2], [7, 8]), (2, [2, 3], [10, 11]), (1, [1], [9]), (3, [4], [13])]
    assert pack.ancestors().astype(int).tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1]]


def test_a_pack_ends_at_its_capacity_and_a_long_row_stands_alone():
    packs = pack_rows([Encoded([4, 5, 6], 1), Encoded([4, 7, 8], 1), Encoded(list(range(10, 30)), 1)], capacity=3)
    assert [[index for index, *_ in pack.rows] for pack in packs] == [[0, 1], [2]]
    assert [len(pack.ids) for pack in packs] == [3, 19]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(4, 6), min_size=2, max_size=9), min_size=1, max_size=12), st.integers(1, 20))
def test_every_path_spells_its_row(lists, capacity):
    rows = [Encoded(ids, 1 + len(ids) // 3) for ids in lists]
    packs = pack_rows(rows, capacity)
    found = {}
    for pack in packs:
        assert len(pack.ids) <= max(capacity, max(len(row.input_ids) - 1 for row in rows))
        for index, predictors, targets in pack.rows:
            place, path = predictors[-1], []
            while place >= 0:
                path.append(pack.ids[place])
                place = pack.parents[place]
            found[index] = [*reversed(path), targets[-1]]
            assert targets == rows[index].input_ids[rows[index].response_start :]
    assert [found[index] for index in range(len(rows))] == lists


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"])
def test_packed_logits_are_those_of_the_rows(family):
    model = make_tiny_model(family)
    packs = pack_rows(ROWS, capacity=4)
    batch = collate_packs(packs, 0, torch.float32)
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
        for number, pack in enumerate(packs):
            for index, predictors, _ in pack.rows:
                ids = torch.tensor([ROWS[index].input_ids])
                start = ROWS[index].response_start - 1
                expected = model(input_ids=ids).logits[0, start:-1]
                torch.testing.assert_close(logits[number, predictors], expected, rtol=1e-4, atol=1e-5)


def test_padding_is_seen_by_no_one():
    packs = pack_rows([Encoded([5, 6, 7], 1), Encoded([8, 9], 1)], capacity=2)
    batch = collate_packs(packs, 0, torch.float32)
    model = make_tiny_model()
    with torch.no_grad(), select_positions(model, torch.tensor([[True, True], [True, False]])):
        once = model(**batch, use_cache=False).logits
        batch["input_ids"][1, 1] = 77
        again = model(**batch, use_cache=False).logits
    torch.testing.assert_close(again, once, rtol=0, atol=0)
