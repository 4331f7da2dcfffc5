"""The KL to the base on the task's own rows, and the filter of unlikely tokens: against two models by the book."""

import math

import pytest
import torch
from anchor.anchor_cases import (
    REGIONS,
    assert_same_weights,
    disturbed,
    log_q,
    merged_kl,
    nll,
    response_places,
    step_by_the_book,
    step_of_ours,
    task_data,
)
from tiny import make_tiny_model

from cofitune_fast.anchor import ReferenceSettings, task_rows
from cofitune_fast.anchor import reference as module
from cofitune_fast.data import Encoded
from cofitune_fast.errors import CofituneError
from cofitune_fast.models.fingerprint import tensor_digests
from cofitune_fast.regions import BaseInfo
from cofitune_fast.training import MemorySettings, TrainOptions, train_region

KINDS = {"response": {}, "masked": {"mask_target": True}, "prompt": {"tokens": "prompt"}}
FILTER = 252.0  # the random model's distributions are nearly even, and half of the tokens are above it


def places_of(row, kind):
    return slice(0, row.response_start - 1) if kind == "prompt" else response_places(row)


def without_targets(log_p, row, kind):
    if kind != "masked":
        return log_p
    targets = torch.tensor(row.input_ids[row.response_start :])
    return torch.log_softmax(log_p.scatter(1, targets[:, None], -math.inf), -1)


def opened(tmp_path, rows, reference=None, token_filter=None):
    return task_rows(make_tiny_model(), rows, 0, "print", reference, token_filter, folder=tmp_path / "anchor")


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_carries_the_bases_distributions_at_its_tokens(tmp_path, kind):
    base, data = make_tiny_model(), task_data()
    for row in opened(tmp_path, data, ReferenceSettings(top_k=8, **KINDS[kind])):
        with torch.no_grad():
            log_p = without_targets(log_q(base, row.input_ids, places_of(row, kind)), row, kind)
        top = log_p.topk(8)
        torch.testing.assert_close(row.held.log_p.double(), top.values, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(log_p.gather(1, row.held.ids.long()), top.values, rtol=1e-4, atol=1e-5)
        assert row.learnt is None


@pytest.mark.parametrize(("kind", "region", "packing", "accumulation", "top_k"), [
    ("response", "region", "off", 1, 8), ("response", "all", "on", 2, 260),
    ("masked", "region", "on", 1, 8), ("masked", "region", "off", 2, 260), ("masked", "all", "off", 1, 8),
    ("prompt", "region", "on", 1, 260), ("prompt", "region", "off", 2, 8), ("prompt", "all", "on", 2, 8),
])
def test_a_step_is_that_of_an_explicit_computation_with_both_models(tmp_path, kind, region, packing, accumulation,
                                                                    top_k):
    """With k = 260 the whole distributions are compared. Two of the rows have the same prompt."""
    weight, data, base = 1000.0, task_data(), make_tiny_model()
    data[3] = Encoded(data[0].input_ids[:4] + data[3].input_ids[5:], 4)
    if kind == "masked":
        top_k = min(top_k, 259)

    def kl(model):
        found = []
        for row in data:
            with torch.no_grad():
                log_p = without_targets(log_q(base, row.input_ids, places_of(row, kind)), row, kind)
            own = without_targets(log_q(model, row.input_ids, places_of(row, kind)), row, kind)
            whole = (log_p.exp() * (log_p - own)).nan_to_num().sum(-1)
            found.append(whole if top_k > 100 else merged_kl(log_p, own, log_p.topk(top_k).indices))
        return torch.cat(found).mean()

    def loss(model):
        return torch.cat([nll(model, row) for row in data]).mean() + weight * kl(model)

    expected, value = step_by_the_book(loss, region)
    reference = ReferenceSettings(weight=weight, top_k=top_k, **KINDS[kind])
    rows = opened(tmp_path, data, reference)
    model, result = step_of_ours(tmp_path / "run", rows, region, packing=packing, accumulation=accumulation,
                                 reference=reference)
    assert result.loss == pytest.approx(value, rel=1e-4)
    assert weight * result.reference_kl > 0.1 and result.anchor_kl is None
    assert_same_weights(model, expected)


@pytest.mark.parametrize("packing", ["on", "off"])
def test_prompts_are_held_alike_where_the_prefix_is_read_from_the_cache(tmp_path, packing):
    reference, found = ReferenceSettings(weight=1000.0, tokens="prompt", top_k=8), []
    rows = opened(tmp_path, task_data(), reference)
    for cache in ("auto", "off"):
        model = disturbed()
        result = train_region(
            model, REGIONS["region"], rows, tmp_path / cache,
            {"learning_rate": 1e-2, "per_device_train_batch_size": 2, "num_train_epochs": 3, "seed": 3},
            TrainOptions(reference=reference, memory=MemorySettings(packing=packing, prefix_cache=cache)),
            base=BaseInfo.of(model, "tiny"), pad_token_id=0)
        found.append((tensor_digests(model), result.reference_kl))
    assert found[0] == found[1]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_filter_is_a_manual_mask_of_the_labels(tmp_path, accumulation):
    data, base = task_data(), make_tiny_model()
    with torch.no_grad():
        keep = [(nll(base, row).exp() <= FILTER) for row in data]
    kept = sum(int(part.sum()) for part in keep)
    assert 0 < kept < sum(map(len, keep))
    expected, value = step_by_the_book(
        lambda model: torch.cat([nll(model, row)[part] for row, part in zip(data, keep, strict=True)]).mean(), "region")
    rows = opened(tmp_path, data, token_filter=FILTER)
    for row, part in zip(rows, keep, strict=True):
        assert torch.equal(row.learnt, part)
    model, result = step_of_ours(tmp_path / "run", rows, "region", accumulation=accumulation)
    assert result.loss == pytest.approx(value, rel=1e-5)
    assert_same_weights(model, expected)
    none = sum(not part.any() for part in keep)
    assert result.notes == [f"The token filter leaves {kept} of {sum(map(len, keep))} response tokens "
                            f"({kept / sum(map(len, keep)):.0%}); {none} of 4 rows keep none."]


def test_a_step_whose_tokens_are_all_filtered_out_changes_nothing(tmp_path):
    rows = opened(tmp_path, task_data(), token_filter=FILTER)
    for row in rows:
        object.__setattr__(row, "learnt", torch.zeros_like(row.learnt))
    model, result = step_of_ours(tmp_path / "run", rows, "region")
    assert result.loss == 0
    for ours, before in zip(model.parameters(), disturbed().parameters(), strict=True):
        assert torch.equal(ours, before)


def test_filter_and_reference_and_dft_go_together(tmp_path):
    """ASFT with a filter: the reference is on all response tokens, the loss on those that are left."""
    data, base, weight = task_data(), make_tiny_model(), 1000.0
    with torch.no_grad():
        keep = torch.cat([nll(base, row) for row in data]).exp() <= FILTER

    def loss(model):
        own = torch.cat([nll(model, row) for row in data])
        with torch.no_grad():
            log_p = [log_q(base, row.input_ids, response_places(row)) for row in data]
        kl = torch.cat([(p.exp() * (p - log_q(model, row.input_ids, response_places(row)))).sum(-1)
                        for p, row in zip(log_p, data, strict=True)])
        return ((-own).exp().detach() * own)[keep].mean() + weight * kl.mean()

    expected, value = step_by_the_book(loss, "region")
    reference = ReferenceSettings(weight=weight, top_k=260)
    model, result = step_of_ours(tmp_path / "run", opened(tmp_path, data, reference, FILTER), "region", loss="dft",
                                 reference=reference, accumulation=2)
    assert result.loss == pytest.approx(value, rel=1e-4)
    assert_same_weights(model, expected)


def test_it_is_measured_once_for_each_base_and_each_distinct_row(tmp_path, monkeypatch):
    made, measure = [], module.with_distributions
    monkeypatch.setattr(module, "with_distributions",
                        lambda model, rows, *a, **k: made.append(len(rows)) or measure(model, rows, *a, **k))
    data, reference = task_data(), ReferenceSettings(top_k=8)
    first = opened(tmp_path, [*data, data[1]], reference)
    assert first[4].held is first[1].held and made == [4]
    again = opened(tmp_path, data, ReferenceSettings(weight=3.0, top_k=8))  # the weight is not the file's
    assert made == [4]
    for one, other in zip(first, again, strict=False):
        assert torch.equal(one.held.ids, other.held.ids) and torch.equal(one.held.log_p, other.held.log_p)
    opened(tmp_path, data[:3], reference)
    opened(tmp_path, data, ReferenceSettings(top_k=8, tokens="prompt"))
    opened(tmp_path, data, token_filter=FILTER)
    opened(tmp_path, data, token_filter=2.0 * FILTER)
    assert made == [4, 3, 4, 4]


def test_a_prompt_of_one_token_and_none_hold_nothing(tmp_path):
    data = [Encoded([7, 8, 9], 1), Encoded([7, 8, 9], 0), Encoded([5, 6, 7, 8], 2)]
    rows = opened(tmp_path, data, ReferenceSettings(tokens="prompt", top_k=8))
    assert [row.held and len(row.held.ids) for row in rows] == [None, None, 1]
    rows = opened(tmp_path, data, ReferenceSettings(top_k=8), token_filter=1e9)
    assert [len(row.held.ids) for row in rows] == [len(row.learnt) for row in rows] == [2, 2, 2]


def test_what_cannot_be_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(CofituneError, match=r"token_filter is 1\.5, and the base finds every response token"):
        opened(tmp_path, task_data(), token_filter=1.5)
    with pytest.raises(CofituneError, match=r"no training row has the base's distributions; make the rows with anchor"):
        step_of_ours(tmp_path / "run", task_data(), "region", reference=ReferenceSettings())
