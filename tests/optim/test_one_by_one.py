"""MaskedAdamW one parameter at a time: the bits of a step, mixed with ordinary steps, after loading."""

from __future__ import annotations

import copy

import pytest
import torch
from ops.ops_cases import BACKENDS
from optim.optim_cases import assert_same, dtype_of, make_masks, make_pairs, run, set_grads, values

from cofitune_fast.errors import CofituneError
from cofitune_fast.ops import grad_norm
from cofitune_fast.ops._storage import STORAGES
from cofitune_fast.optim import MaskedAdamW, OneByOne


def make_optimizer(pairs, **options):
    return MaskedAdamW(pairs, **{"lr": 1e-2, "masks": make_masks(), **options})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("storage", STORAGES)
def test_one_by_one_in_any_order_is_a_step_bit_for_bit(storage, backend):
    pairs, expected = make_pairs(dtype_of(storage)), make_pairs(dtype_of(storage))
    optimizer, other = (make_optimizer(p, storage=storage, backend=backend) for p in (pairs, expected))
    single = OneByOne(optimizer)
    for step in range(3):
        set_grads(pairs, step)
        set_grads(expected, step)
        clip = grad_norm([single.gradient(p) for _, p in pairs], 1.0, backend=backend).clip
        for _, p in reversed(pairs):
            single.step(p, clip)
        other.step()
        assert all(p.grad.any() for _, p in pairs)
    assert_same(values(pairs), values(expected))
    assert_same(optimizer.state_dict()["state"], other.state_dict()["state"])


def test_ordinary_steps_know_of_single_ones():
    """Each parameter has its own count of steps."""
    pairs, expected = make_pairs(), make_pairs()
    optimizer, other = (make_optimizer(p, max_grad_norm=None) for p in (pairs, expected))
    run(optimizer, pairs, [0])
    run(other, expected, [0])
    set_grads(pairs, 1)
    OneByOne(optimizer).step(pairs[0][1], torch.tensor([1.0, 0.0]))
    set_grads(expected[:1], 1)
    for _, p in expected[1:]:
        p.grad = None
    other.step()
    run(optimizer, pairs, [2])
    run(other, expected, [2])
    assert [optimizer.state[p]["step"] for _, p in pairs] == [3, 2, 2]
    assert_same(values(pairs), values(expected))


def test_a_state_that_was_loaded_is_used():
    pairs = make_pairs()
    optimizer = make_optimizer(pairs)
    empty, start = copy.deepcopy(optimizer.state_dict()), values(pairs)
    single, clip = OneByOne(optimizer), torch.tensor([1.0, 0.0])

    def steps():
        for (_, p), value in zip(pairs, start, strict=True):
            p.data.copy_(value)
        for step in range(2):
            set_grads(pairs, step)
            for _, p in pairs:
                single.step(p, clip)
        return values(pairs)

    first = steps()
    optimizer.load_state_dict(empty)
    assert_same(steps(), first)
    assert {state["step"] for state in optimizer.state_dict()["state"].values()} == {2}


def test_what_does_not_fit_is_refused():
    with pytest.raises(CofituneError, match="with capturable=True all parameters step together"):
        OneByOne(make_optimizer(make_pairs(), capturable=True))
    single = OneByOne(make_optimizer(make_pairs()))
    stranger = torch.nn.Parameter(torch.ones(2, 3))
    stranger.grad = torch.ones(2, 3)
    with pytest.raises(CofituneError, match=r"a parameter of shape \[2, 3\] is to be updated, but this optimizer does"):
        single.step(stranger, torch.tensor([1.0, 0.0]))
