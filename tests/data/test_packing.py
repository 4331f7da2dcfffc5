"""Tries of rows: what stands where, how rows are divided, and that the model's outputs are those of separate rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_tiny_model

from cofitune_fast.data import Encoded, collate_trie, pack_rows, plan_packs
from cofitune_fast.data.packing import ROW_TOKENS
from cofitune_fast.errors import CofituneError
from cofitune_fast.models.attention import trie_attention

ROWS = [Encoded([5, 6, 7, 8], 2), Encoded([5, 6, 9], 2), Encoded([5, 6, 7, 10, 11], 3), Encoded([12, 13], 1)]


def divided(rows, max_tokens):
    return [[index for index, *_ in pack.rows] for pack in plan_packs(rows, max_tokens)]


def test_a_small_tree_by_hand():
    pack = pack_rows(ROWS)
    # 5 6 7, shared by the first three rows, then 10 of the third (5 6 9 adds nothing: its 9 predicts nothing), then 12
    assert pack.ids == [5, 6, 7, 10, 12]
    assert pack.parents == [-1, 0, 1, 2, -1]
    assert pack.positions == [0, 1, 2, 3, 0]
    assert pack.rows == [(0, [1, 2], [7, 8]), (2, [2, 3], [10, 11]), (1, [1], [9]), (3, [4], [13])]


def test_rows_that_are_the_beginning_of_another_need_no_row_in_attention():
    batch = collate_trie(pack_rows(ROWS))
    assert batch["rows"].tolist() == [[0, 1, 2, 3], [4, 4, 4, 4]]
    assert batch["owners"].tolist() == [0, 1, 2, 3, 4]
    assert batch["input_ids"].tolist() == [[5, 6, 7, 10, 12]] and batch["position_ids"].tolist() == [[0, 1, 2, 3, 0]]


def test_a_trie_ends_at_its_bound_and_a_long_row_stands_alone_and_first():
    rows = [Encoded([4, 5, 6], 1), Encoded([4, 5, 8], 1), Encoded(list(range(10, 30)), 1), Encoded([9, 9, 9], 1)]
    assert divided(rows, 3) == [[2], [0, 1], [3]]
    assert divided(rows, 4) == [[2], [0, 1, 3]]


def test_rows_that_are_alike_stay_together_and_the_others_come_by_length():
    short, long = [Encoded([8, i, 1], 1) for i in (3, 4)], [Encoded([1, 2, i, *range(20, 28)], 3) for i in (3, 4)]
    question = [Encoded([7] * 6 + [i] * size, 6) for i, size in ((1, 1), (2, 6), (3, 2))]
    rows = [short[0], question[0], long[0], question[1], short[1], long[1], question[2]]
    assert divided(rows, 12) == [[1, 3, 6], [2], [5, 0], [4]]
    assert divided(rows, 100) == [[1, 3, 6, 2, 5, 0, 4]]


def test_the_rows_of_a_trie_are_bounded_too():
    shared = list(range(10, 30))
    rows = [Encoded([*shared, 40 + i, 5], 21) for i in range(12)]
    sizes = [len(indices) for indices in divided(rows, 30)]
    assert sizes == [5, 5, 2] and 5 * 21 <= ROW_TOKENS * 30 < 6 * 21


def test_the_plan_depends_on_the_rows_alone():
    rows = [Encoded([i % 3, i % 5, i % 7, i], 1) for i in range(40)]
    order = [(i * 7) % 40 for i in range(40)]
    again = [[order[index] for index in indices] for indices in divided([rows[i] for i in order], 16)]
    assert again == divided(rows, 16) == divided(rows, 16)


def test_a_bound_without_a_token_is_refused():
    with pytest.raises(CofituneError, match="max_tokens is 0; it must be at least 1"):
        list(plan_packs(ROWS, 0))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(4, 6), min_size=2, max_size=9), min_size=1, max_size=12), st.integers(1, 20))
def test_every_path_spells_its_row(lists, max_tokens):
    rows = [Encoded(ids, 1 + len(ids) // 3) for ids in lists]
    found = {}
    for pack in plan_packs(rows, max_tokens):
        batch = collate_trie(pack)
        longest = max(len(rows[index].input_ids) - 1 for index, *_ in pack.rows)
        assert len(pack.ids) <= max_tokens or len(pack.rows) == 1
        assert batch["rows"].numel() <= len(pack.rows) * longest <= max(ROW_TOKENS * max_tokens, longest)
        assert len(set(zip(pack.parents, pack.ids, strict=True))) == len(pack.ids)
        for index, predictors, targets in pack.rows:
            path = pack.path(predictors[-1])
            assert [pack.positions[place] for place in path] == list(range(len(path)))
            found[index] = [*(pack.ids[place] for place in path), targets[-1]]
            assert targets == rows[index].input_ids[rows[index].response_start :]
        for place, owner in enumerate(batch["owners"].tolist()):
            number, position = divmod(owner, longest)
            assert batch["rows"][number, : position + 1].tolist() == pack.path(place)
    assert [found[index] for index in range(len(rows))] == lists


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3"])
def test_logits_of_a_trie_are_those_of_the_rows(family):
    model = make_tiny_model(family)
    with torch.no_grad():
        for pack in (pack_rows(ROWS), *plan_packs(ROWS, 4)):
            with trie_attention(model):
                logits = model(**collate_trie(pack), use_cache=False).logits[0]
            for index, predictors, _ in pack.rows:
                ids = torch.tensor([ROWS[index].input_ids])
                start = ROWS[index].response_start - 1
                expected = model(input_ids=ids).logits[0, start:-1]
                torch.testing.assert_close(logits[predictors], expected, rtol=1e-4, atol=1e-5)
