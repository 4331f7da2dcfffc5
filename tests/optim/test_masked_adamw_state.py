"""Saving and resuming MaskedAdamW: the state is keyed by name, and a resumed run repeats every bit."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from cases import pairwise
from ops.ops_cases import BACKENDS
from optim.optim_cases import SHAPES, assert_same, dtype_of, make_masks, make_pairs, run, values

from cofitune_fast.errors import CofituneError
from cofitune_fast.ops._storage import STORAGES, new_state
from cofitune_fast.optim import MaskedAdamW, Pull


def make_optimizer(pairs, **options):
    return MaskedAdamW(pairs, **{"lr": 1e-2, "seed": 5, "masks": make_masks(), **options})


def through_torch_save(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def put(pairs, weights):
    for (_, p), weight in zip(pairs, weights, strict=True):
        p.data.copy_(weight)


@pairwise({"storage": STORAGES, "backend": BACKENDS, "way": [copy.deepcopy, through_torch_save]})
def test_resuming_is_not_having_stopped_bit_for_bit(storage, backend, way):
    options = {"storage": storage, "backend": backend, "pull": Pull("l1" if way is copy.deepcopy else "l2", 0.5)}
    straight = make_pairs(dtype_of(storage))
    optimizer = make_optimizer(straight, **options)
    run(optimizer, straight, range(3))
    saved, weights = way(optimizer.state_dict()), values(straight)
    run(optimizer, straight, range(3, 6))

    resumed = make_pairs(dtype_of(storage))
    put(resumed, weights)
    resumed.reverse()  # neither the order nor what else is trained may matter
    second = make_optimizer(resumed, **{**options, "lr": 1.0, "seed": 0})  # pulled to the saved run's weights
    second.load_state_dict(saved)
    run(second, resumed, range(3, 6))
    assert_same(values(straight), values(reversed(resumed)))
    assert_same(optimizer.state_dict()["state"], {n: second.state_dict()["state"][n] for n in SHAPES})


@pytest.mark.parametrize("storage", STORAGES)
def test_the_state_is_keyed_by_name_and_has_what_the_storage_has(storage):
    pairs = make_pairs(dtype_of(storage))
    optimizer = make_optimizer(pairs, storage=storage)
    run(optimizer, pairs, range(2))
    state = optimizer.state_dict()
    assert sorted(state) == ["param_groups", "state"] and sorted(state["state"]) == sorted(SHAPES)
    for name, p in pairs:
        entry, fresh = state["state"][name], new_state(p, storage)
        assert (entry.pop("step"), entry.pop("storage")) == (2, storage)
        assert {k: (v.dtype, v.shape) for k, v in entry.items()} == {k: (v.dtype, v.shape) for k, v in fresh.items()}
    assert state["param_groups"][0]["params"] == list(SHAPES) and state["param_groups"][0]["seed"] == 5


def test_loading_copies():
    pairs = make_pairs(torch.bfloat16)
    first, second = make_optimizer(pairs), make_optimizer(make_pairs(torch.bfloat16))
    run(first, pairs, range(2))
    saved = copy.deepcopy(first.state_dict())
    second.load_state_dict(first.state_dict())
    run(first, pairs, range(2, 3))
    assert_same(second.state_dict()["state"], saved["state"])


def test_loading_goes_into_the_tensors_that_are_there():
    pairs = make_pairs()
    optimizer = make_optimizer(pairs)
    run(optimizer, pairs, range(1))
    saved, tensors = copy.deepcopy(optimizer.state_dict()), dict(optimizer.state_dict()["state"]["up.weight"])
    run(optimizer, pairs, range(1, 3))
    optimizer.load_state_dict(saved)
    assert_same(optimizer.state_dict()["state"], saved["state"])
    assert optimizer.state_dict()["state"]["up.weight"]["exp_avg"] is tensors["exp_avg"]


def test_parameters_without_a_saved_state_begin_anew():
    pairs = make_pairs()
    optimizer = make_optimizer(pairs)
    saved = copy.deepcopy(optimizer.state_dict())
    run(optimizer, pairs, range(2))
    optimizer.load_state_dict(saved)
    assert optimizer.state_dict()["state"] == {}
    fresh = make_pairs()
    put(fresh, values(pairs))
    run(make_optimizer(fresh), fresh, range(5, 7))
    run(optimizer, pairs, range(5, 7))
    assert_same(values(pairs), values(fresh))


def renamed(state):
    state["param_groups"][0]["params"][0] = "gate.weight"


def shortened(state):
    state["state"]["up.bias"]["exp_avg"] = torch.zeros(7)


def halved(state):
    state["state"]["up.bias"]["exp_avg_sq"] = torch.zeros(8).half()


def doubled(state):
    state["param_groups"].append(copy.deepcopy(state["param_groups"][0]))


def numbered(state):
    state["param_groups"][0]["params"] = [0, 1, 2]


def of_another_optimizer(state):
    del state["state"]["up.bias"]["storage"]


def stray(state):
    state["state"]["gate.weight"] = state["state"]["up.weight"]


def stepless(state):
    del state["state"]["up.bias"]["step"]


def anchored(state):
    state["state"]["up.bias"]["anchor"] = torch.zeros(8)


def stored_as_int8(state):
    state["state"]["up.weight"] = {"step": 2, "storage": "int8", **new_state(torch.zeros(8, 300), "int8")}


@pytest.mark.parametrize(("damage", "words"), [
    (renamed, r"it lacks: up.weight; it has besides: gate.weight"),
    (shortened, r"exp_avg of up.bias is missing in the state or not float32 of shape \[8\]"),
    (halved, r"exp_avg_sq of up.bias is missing in the state or not float32 of shape \[8\]"),
    (doubled, r"the state has 2 parameter groups, but this optimizer has 1"),
    (numbered, r"the state of down.weight, up.bias, up.weight belongs to no parameter of this optimizer"),
    (of_another_optimizer, r"the state of up.bias is another optimizer's, for it names no storage"),
    (stray, r"the state of gate.weight belongs to no parameter"),
    (stepless, r"step of up.bias is missing in the state"),
    (anchored, r"the state of up.bias has anchor, which this optimizer does not keep; give it the same pull"),
    (stored_as_int8, r"the state of up.weight is stored as 'int8', but this optimizer stores it as 'fp32'"),
])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(damage, words):
    pairs = make_pairs()
    optimizer = make_optimizer(pairs)
    run(optimizer, pairs, range(2))
    before = copy.deepcopy(optimizer.state_dict())
    damaged = copy.deepcopy(before)
    damaged["param_groups"][0]["lr"] = 7.0
    for state in damaged["state"].values():
        state["exp_avg"] += 1
    damage(damaged)
    with pytest.raises(CofituneError, match=words):
        optimizer.load_state_dict(damaged)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert_same(after["state"], before["state"])


@pytest.mark.parametrize(("theirs", "ours"), [
    ("fp32", "bf16_sr"), ("bf16_sr", "bf16_split"), ("bf16_split", "bf16_sr"), ("bf16_sr", "bf16"), ("bf16", "int8"),
])
def test_a_state_of_another_storage_is_refused_with_both_names(theirs, ours):
    pairs = make_pairs(dtype_of(theirs))
    first = make_optimizer(pairs, storage=theirs)
    run(first, pairs, range(1))
    second = make_optimizer(make_pairs(dtype_of(ours)), storage=ours)
    words = f"up.weight is stored as '{theirs}', but this optimizer stores it as '{ours}'"
    with pytest.raises(CofituneError, match=words):
        second.load_state_dict(first.state_dict())
    assert not second.state


@pytest.mark.parametrize("kind", ["l2", "l1"])
@pytest.mark.parametrize("storage", STORAGES)
def test_initial_weights_are_those_before_the_first_step_whenever_the_optimizer_is_made(storage, kind):
    """Before the checkpoint's weights are loaded; after that, as Trainer does; or with the base's weights given."""
    options = {"storage": storage, "pull": Pull(kind, 20.0)}
    base = {name: p.detach().clone() for name, p in make_pairs(dtype_of(storage))}
    straight = make_pairs(dtype_of(storage))
    optimizer = make_optimizer(straight, **options)
    run(optimizer, straight, range(3))
    saved, weights = copy.deepcopy(optimizer.state_dict()), values(straight)
    run(optimizer, straight, range(3, 6))

    before, after, given = (make_pairs(dtype_of(storage)) for _ in range(3))
    made_before = make_optimizer(before, **options)
    for pairs in (before, after, given):
        put(pairs, weights)
    made_after = make_optimizer(after, **options)
    for second, pairs in ((made_before, before), (made_after, after)):
        second.load_state_dict(saved)
        assert_same([second.state_dict()["state"][name]["anchor"] for name in SHAPES], list(base.values()))
        run(second, pairs, range(3, 6))
        assert_same(values(straight), values(pairs))

    third = make_optimizer(given, storage=storage, pull=Pull(kind, 20.0, initial=base))
    with pytest.raises(CofituneError, match=r"the state of .* has anchor, which this optimizer does not keep"):
        third.load_state_dict(saved)
    for entry in saved["state"].values():
        del entry["anchor"]
    third.load_state_dict(saved)
    run(third, given, range(3, 6))
    assert_same(values(straight), values(given))
    assert all("anchor" not in entry for entry in third.state_dict()["state"].values())


def test_initial_weights_are_missed_in_a_state_without_them():
    pairs = make_pairs()
    optimizer = make_optimizer(pairs)
    run(optimizer, pairs, range(1))
    with pytest.raises(CofituneError, match=r"anchor of up.weight is missing in the state"):
        make_optimizer(make_pairs(), pull=Pull()).load_state_dict(optimizer.state_dict())


def test_a_seed_changes_the_rounding_and_nothing_else():
    results = []
    for seed in (1, 1, 2):
        pairs = make_pairs(torch.bfloat16)
        run(make_optimizer(pairs, seed=seed), pairs, range(1))
        results.append(pairs[2][1].detach().float())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    torch.testing.assert_close(results[0], results[2], rtol=2**-7, atol=0)
