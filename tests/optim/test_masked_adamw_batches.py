"""What MaskedAdamW keeps from step to step, and that it notices when parameters, states or gradients have changed."""

from __future__ import annotations

import pytest
import torch
from ops.ops_cases import bits
from optim.optim_cases import SHAPES, assert_same, make_masks, make_pairs, run, set_grads, values

from cofitune_fast.errors import CofituneError
from cofitune_fast.ops.masked_adamw import op
from cofitune_fast.optim import MaskedAdamW

OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


@pytest.fixture
def calls(monkeypatch):
    """How many tensors each fused call has had."""
    counts = []
    run_op = op.run
    monkeypatch.setattr(op, "run", lambda *args: (counts.append(len(args[-1].params)), run_op(*args))[1])
    return counts


def test_hundreds_of_tensors_are_one_call(calls):
    pairs = [(f"w{index}", torch.nn.Parameter(torch.ones(3, 4))) for index in range(300)]
    optimizer = MaskedAdamW(pairs)
    for _, p in pairs:
        p.grad = torch.ones_like(p)
    for _ in range(2):
        optimizer.step()
    assert calls == [300, 300]
    assert torch.equal(pairs[0][1], pairs[299][1]) and not torch.equal(pairs[0][1], torch.ones(3, 4))


def test_gradients_that_come_and_go_are_those_of_torch_adamw(calls):
    ours, theirs = make_pairs(), make_pairs()
    optimizer = MaskedAdamW(ours, max_grad_norm=None, **OPTIONS)
    other = torch.optim.AdamW([p for _, p in theirs], **OPTIONS)
    for step, present in enumerate(([0, 1, 2], [0, 2], [0, 2], [1], [0, 1, 2], [0, 1, 2])):
        for pairs in (ours, theirs):
            set_grads(pairs, step)
            for index in {0, 1, 2} - set(present):
                pairs[index][1].grad = None
        optimizer.step()
        other.step()
        for p, q in zip(values(ours), values(theirs), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)  # six steps' roundings
    assert calls == [3, 2, 2, 1, 2, 1, 2, 1]  # parameters at the same step share a call


def test_a_parameter_whose_memory_has_moved_is_followed():
    moved, still = make_pairs(), make_pairs()
    first, second = (MaskedAdamW(pairs, masks=make_masks(), **OPTIONS) for pairs in (moved, still))
    run(first, moved, range(2))
    run(second, still, range(2))
    former = moved[0][1].data
    before = former.clone()
    moved[0][1].data = former.clone()
    run(first, moved, range(2, 4))
    run(second, still, range(2, 4))
    assert_same(values(moved), values(still))
    assert torch.equal(former, before)


def test_a_state_tensor_that_was_replaced_is_used():
    pairs, still = make_pairs(), make_pairs()
    first, second = (MaskedAdamW(p, **OPTIONS) for p in (pairs, still))
    run(first, pairs, range(2))
    run(second, still, range(2))
    for state in first.state.values():  # as one does to move states to another device
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                state[key] = value.clone()
    replaced = first.state[pairs[0][1]]["exp_avg"]
    run(first, pairs, range(2, 4))
    run(second, still, range(2, 4))
    assert_same(values(pairs), values(still))
    assert first.state[pairs[0][1]]["exp_avg"] is replaced
    assert torch.equal(replaced, second.state[still[0][1]]["exp_avg"])


def test_parameters_that_others_replace_before_the_first_step_are_trained():
    pairs, fresh = make_pairs(), make_pairs()
    optimizer = MaskedAdamW(pairs, masks=make_masks(), **OPTIONS)
    optimizer.param_groups[0]["params"] = [p for _, p in fresh]  # as accelerate does when it shards a model
    run(optimizer, fresh, range(2))
    expected = make_pairs()
    run(MaskedAdamW(expected, masks=make_masks(), **OPTIONS), expected, range(2))
    assert_same(values(fresh), values(expected))
    assert_same(values(pairs), values(make_pairs()))


def test_a_model_may_be_cast_before_its_first_step_and_not_after():
    pairs = make_pairs()
    optimizer = MaskedAdamW(pairs, masks=make_masks(), **OPTIONS)
    for _, p in pairs:
        p.data = p.data.bfloat16()
    run(optimizer, pairs, range(1))
    assert {state["storage"] for state in optimizer.state.values()} == {"bf16_sr"}
    for _, p in pairs:
        p.grad = None
        p.data = p.data.float()
    set_grads(pairs, 1)
    with pytest.raises(CofituneError, match=r"up.weight has become float32, which its storage 'bf16_sr' cannot take"):
        optimizer.step()


def test_a_gradient_that_is_not_the_parameters_is_refused():
    pairs = make_pairs()
    optimizer = MaskedAdamW(pairs, **OPTIONS)
    run(optimizer, pairs, range(1))
    before = values(pairs)
    pairs[1][1].grad.data = torch.ones(8, dtype=torch.float64)
    words = r"up.bias is float32 of shape \[8\] on cpu, but its gradient is float64 of shape \[8\] on cpu"
    with pytest.raises(CofituneError, match=words):
        optimizer.step()
    assert_same(values(pairs), before)


def test_a_state_that_no_longer_fits_is_refused_before_memory_is_touched():
    pairs = make_pairs()
    optimizer = MaskedAdamW(pairs, **OPTIONS)
    run(optimizer, pairs, range(1))
    before = values(pairs)
    optimizer.state[pairs[2][1]]["exp_avg_sq"] = torch.zeros(6, 7)
    with pytest.raises(CofituneError, match=r"exp_avg_sqs\[2\] must have shape \[6, 8\], but its shape is \[6, 7\]"):
        optimizer.step()
    assert_same(values(pairs), before)


def test_autograd_learns_that_parameters_and_gradients_have_changed():
    pairs = make_pairs()
    optimizer = MaskedAdamW(pairs, zero_grad_after=True, **OPTIONS)
    run(optimizer, pairs, range(1))
    p = pairs[2][1]
    p.grad = None
    loss = (p * p).sum()
    set_grads(pairs, 1)
    versions = [t._version for t in (p, p.grad, optimizer.state[p]["exp_avg"])]
    optimizer.step()
    assert all(t._version > version for t, version in
               zip((p, p.grad, optimizer.state[p]["exp_avg"]), versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("storage", ["bf16_sr", "int8"])
def test_the_bits_do_not_depend_on_which_parameters_step_together(storage):
    """A parameter's random numbers follow from its name alone."""
    together, alone = make_pairs(torch.bfloat16), make_pairs(torch.bfloat16)
    run(MaskedAdamW(together, storage=storage, max_grad_norm=None, **OPTIONS), together, range(3))
    for pair in alone:
        run(MaskedAdamW([pair], storage=storage, max_grad_norm=None, **OPTIONS), [pair], range(3))
    for (name, p), (_, q) in zip(together, alone, strict=True):
        assert torch.equal(bits(p.detach()), bits(q.detach())), name
    assert len(SHAPES) == len(together)


def test_options_may_be_changed_between_steps():
    pairs, expected = make_pairs(), make_pairs()
    optimizer, other = MaskedAdamW(pairs, **OPTIONS), torch.optim.AdamW([p for _, p in expected], **OPTIONS)
    optimizer.max_grad_norm = None
    for step, change in enumerate(({}, {"weight_decay": 0.5}, {"lr": 1e-3}, {"betas": (0.5, 0.9)})):
        for each in (optimizer, other):
            each.param_groups[0].update(change)
        set_grads(pairs, step)
        set_grads(expected, step)
        optimizer.step()
        other.step()
        for p, q in zip(values(pairs), values(expected), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
