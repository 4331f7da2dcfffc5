"""Saving and resuming MaskedAdamW: the state is keyed by name, and a resumed run repeats every bit."""

from __future__ import annotations

import copy

import pytest
import torch
from ops.ops_cases import BACKENDS, bits

from cofitune_fast.errors import CofituneError
from cofitune_fast.optim import MaskedAdamW

SHAPES = {"up.weight": (8, 6), "up.bias": (8,), "down.weight": (6, 8)}


def make_pairs(dtype):
    generator = torch.Generator().manual_seed(0)
    return [(name, torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)))
            for name, shape in SHAPES.items()]


def run(optimizer, pairs, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        drawn = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        for name, p in pairs:
            p.grad = drawn[name].to(p.dtype)
        optimizer.step()


def make_optimizer(pairs, **options):
    masks = {"up.weight": torch.linspace(0, 1, 8)[:, None]}
    return MaskedAdamW(pairs, **{"lr": 1e-2, "seed": 5, "masks": masks, **options})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_is_not_having_stopped_bit_for_bit(dtype, backend):
    straight = make_pairs(dtype)
    optimizer = make_optimizer(straight, backend=backend)
    run(optimizer, straight, range(3))
    saved, weights = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for _, p in straight]
    run(optimizer, straight, range(3, 6))

    resumed = make_pairs(dtype)
    for (_, p), weight in zip(resumed, weights, strict=True):
        p.data.copy_(weight)
    resumed.reverse()  # neither the order nor what else is trained may matter
    second = make_optimizer(resumed, lr=1.0, seed=0, backend=backend)
    second.load_state_dict(saved)
    run(second, resumed, range(3, 6))
    ours, theirs = dict(straight), dict(resumed)
    assert all(torch.equal(bits(ours[name].detach()), bits(theirs[name].detach())) for name in SHAPES)


def test_the_state_is_keyed_by_name():
    pairs = make_pairs(torch.bfloat16)
    optimizer = make_optimizer(pairs)
    run(optimizer, pairs, range(2))
    state = optimizer.state_dict()
    assert sorted(state) == ["param_groups", "state"] and sorted(state["state"]) == sorted(SHAPES)
    entry = state["state"]["down.weight"]
    assert sorted(entry) == ["exp_avg", "exp_avg_sq", "step"] and entry["step"] == 2
    assert entry["exp_avg"].dtype == torch.float32 and entry["exp_avg"].shape == (6, 8)
    assert state["param_groups"][0]["params"] == list(SHAPES) and state["param_groups"][0]["seed"] == 5


def test_loading_copies_and_keeps_float32():
    pairs = make_pairs(torch.bfloat16)
    first, second = make_optimizer(pairs), make_optimizer(make_pairs(torch.bfloat16))
    run(first, pairs, range(2))
    saved = copy.deepcopy(first.state_dict())
    second.load_state_dict(first.state_dict())
    run(first, pairs, range(2, 3))
    for name, entry in second.state_dict()["state"].items():
        assert entry["exp_avg"].dtype == torch.float32
        assert torch.equal(entry["exp_avg"], saved["state"][name]["exp_avg"])


def renamed(state):
    state["param_groups"][0]["params"][0] = "gate.weight"


def shortened(state):
    state["state"]["up.bias"]["exp_avg"] = torch.zeros(7)


def doubled(state):
    state["param_groups"].append(copy.deepcopy(state["param_groups"][0]))


def stray(state):
    state["state"]["gate.weight"] = state["state"]["up.weight"]


@pytest.mark.parametrize(("damage", "words"), [
    (renamed, r"it lacks: up.weight; it has besides: gate.weight"),
    (shortened, r"exp_avg of up.bias is missing in the state or not of shape \[8\]"),
    (doubled, r"the state has 2 parameter groups, but this optimizer has 1"),
    (stray, r"the state of gate.weight belongs to no parameter"),
])
def test_a_state_of_other_parameters_is_refused_and_changes_nothing(damage, words):
    pairs = make_pairs(torch.float32)
    optimizer = make_optimizer(pairs)
    run(optimizer, pairs, range(2))
    before = copy.deepcopy(optimizer.state_dict())
    damaged = copy.deepcopy(before)
    damaged["param_groups"][0]["lr"] = 7.0
    damage(damaged)
    with pytest.raises(CofituneError, match=words):
        optimizer.load_state_dict(damaged)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(torch.equal(after["state"][n]["exp_avg"], before["state"][n]["exp_avg"]) for n in SHAPES)


def test_a_seed_changes_the_rounding_and_nothing_else():
    results = []
    for seed in (1, 1, 2):
        pairs = make_pairs(torch.bfloat16)
        run(make_optimizer(pairs, seed=seed), pairs, range(1))
        results.append(pairs[2][1].detach().float())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    torch.testing.assert_close(results[0], results[2], rtol=2**-7, atol=0)
