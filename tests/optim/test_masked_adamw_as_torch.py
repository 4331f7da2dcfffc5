"""What every torch optimizer can do and MaskedAdamW therefore must: forget gradients, be copied, call its hooks."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from cases import pairwise
from optim.optim_cases import assert_same, dtype_of, make_masks, make_pairs, run, set_grads, values

from cofitune_fast.memory.host_states import HostMaskedAdamW
from cofitune_fast.ops._storage import STORAGES
from cofitune_fast.optim import MaskedAdamW, Pull


class Halved(MaskedAdamW):
    """A subclass with an option of its own."""

    def __init__(self, pairs, **options):
        self.share = 0.5
        super().__init__(pairs, **options)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad *= self.share
        return super().step(closure)


KINDS = {
    "plain": MaskedAdamW,
    "capturable": lambda pairs, **options: MaskedAdamW(pairs, capturable=True, **options),
    "host": HostMaskedAdamW,
    "a subclass": Halved,
}


def make_optimizer(pairs, kind="plain", **options):
    return KINDS[kind](pairs, **{"lr": 1e-2, "masks": make_masks(), **options})


def by_zero_grad(optimizer):
    optimizer.zero_grad()


def by_load_state_dict(optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@pytest.mark.parametrize("forget", [by_zero_grad, by_load_state_dict])
@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_measured_before_does_not_clip_gradients_that_came_after(kind, forget):
    straight, measured = make_pairs(), make_pairs()
    first, second = make_optimizer(straight, kind), make_optimizer(measured, kind)
    for optimizer, pairs in ((first, straight), (second, measured)):
        run(optimizer, pairs, range(1))
    set_grads(measured, 1, scale=1e3)
    second.measure_grad_norm()
    forget(second)
    for optimizer, pairs in ((first, straight), (second, measured)):
        optimizer.zero_grad()
        set_grads(pairs, 2)
        optimizer.step()
    assert_same(values(measured), values(straight))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_clears_as_torch_does(set_to_none):
    pairs = make_pairs()
    optimizer = make_optimizer(pairs)
    set_grads(pairs, 1)
    optimizer.zero_grad(set_to_none=set_to_none)
    assert all(p.grad is None if set_to_none else not p.grad.any() for _, p in pairs)


def through_pickle(both):
    return pickle.loads(pickle.dumps(both))


@pairwise({"kind": KINDS, "steps": [0, 2], "way": [copy.deepcopy, through_pickle]})
def test_a_copy_goes_on_as_the_original_and_apart_from_it(kind, steps, way):
    pairs = make_pairs()
    optimizer = make_optimizer(pairs, kind, max_grad_norm=0.5, pull=Pull("l2", 0.5))
    run(optimizer, pairs, range(steps))
    set_grads(pairs, 9, scale=1e3)
    optimizer.measure_grad_norm()  # of gradients that a copy of a parameter does not have
    copied_pairs, copied = way((pairs, optimizer))
    optimizer.zero_grad()
    before = values(pairs)
    run(copied, copied_pairs, range(2, 5))
    assert_same(values(pairs), before)
    run(optimizer, pairs, range(2, 5))
    assert_same(values(pairs), values(copied_pairs))
    assert_same(optimizer.state_dict()["state"], copied.state_dict()["state"])


@pytest.mark.parametrize("storage", STORAGES)
def test_a_copy_keeps_every_kind_of_state(storage):
    pairs = make_pairs(dtype_of(storage))
    optimizer = make_optimizer(pairs, storage=storage, seed=4)
    run(optimizer, pairs, range(2))
    copied_pairs, copied = copy.deepcopy((pairs, optimizer))
    for one, its_pairs in ((optimizer, pairs), (copied, copied_pairs)):
        run(one, its_pairs, range(2, 4))
    assert_same(values(pairs), values(copied_pairs))
    assert_same(optimizer.state_dict()["state"], copied.state_dict()["state"])


def test_a_copy_leaves_the_schedule_of_the_original_behind():
    """A scheduler puts its own `step` over the optimizer's, bound to that one optimizer."""
    pairs = make_pairs()
    optimizer = make_optimizer(pairs)
    torch.optim.lr_scheduler.ConstantLR(optimizer)
    copied_pairs, copied = copy.deepcopy((pairs, optimizer))
    before = values(pairs)
    set_grads(pairs, 1)
    run(copied, copied_pairs, range(1))
    assert_same(values(pairs), before)
    assert not torch.equal(values(copied_pairs)[0], before[0])


@pytest.mark.parametrize("make", [
    make_optimizer, lambda pairs: torch.optim.AdamW([p for _, p in pairs]),
], ids=["MaskedAdamW", "torch"])
def test_the_hooks_of_saving_and_loading_are_called_as_torch_calls_them(make):
    pairs = make_pairs()
    optimizer, calls = make(pairs), []
    run(optimizer, pairs, range(1))

    def noting(name, change=None):
        def hook(*arguments):
            assert arguments[0] is optimizer
            calls.append((name, *(sorted(state) for state in arguments[1:])))
            return None if change is None else change(arguments[1])
        return hook

    optimizer.register_state_dict_pre_hook(noting("save"))
    optimizer.register_state_dict_post_hook(noting("saved", lambda state: {**state, "note": 1}))
    optimizer.register_state_dict_post_hook(noting("saved, second"))
    optimizer.register_load_state_dict_pre_hook(noting("load", lambda state: {
        **state, "param_groups": [{**group, "lr": 7.0} for group in state["param_groups"]]}))
    optimizer.register_load_state_dict_post_hook(noting("loaded"))
    state = optimizer.state_dict()
    given = copy.deepcopy(state)
    optimizer.load_state_dict(state)
    whole = ["note", "param_groups", "state"]
    assert calls == [("save",), ("saved", ["param_groups", "state"]), ("saved, second", whole), ("load", whole),
                     ("loaded",)]
    assert optimizer.param_groups[0]["lr"] == 7.0
    assert state["param_groups"] == given["param_groups"]  # what the caller holds is not changed


def test_a_hook_that_changes_the_state_in_place_does_not_change_the_callers():
    pairs = make_pairs()
    optimizer = make_optimizer(pairs)
    optimizer.register_load_state_dict_pre_hook(lambda _, state: state.pop("note", None) and None)
    state = {**optimizer.state_dict(), "note": 1}
    optimizer.load_state_dict(state)
    assert "note" in state


def by_method(p):
    with torch.no_grad():
        p.t_()


def by_data(p):
    p.data = p.data.t()


@pytest.mark.parametrize("transpose", [by_method, by_data])
@pytest.mark.parametrize("kind", ["plain", "capturable", "host"])
def test_a_square_parameter_that_is_transposed_between_steps_goes_on_as_in_torch(kind, transpose):
    generator = torch.Generator().manual_seed(3)
    start, factors = torch.randn(4, 4, generator=generator), torch.randn(4, 4, 4, generator=generator)
    ends = []
    for make in (lambda p: torch.optim.AdamW([p], lr=0.1, betas=(0.9, 0.95), weight_decay=0.1),
                 lambda p: KINDS[kind]([("p", p)], lr=0.1, weight_decay=0.1, max_grad_norm=None)):
        p = torch.nn.Parameter(start.clone())
        optimizer = make(p)
        for number, factor in enumerate(factors):
            if number == 2:
                transpose(p)
            (p * factor).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(p.detach().clone())
    torch.testing.assert_close(ends[1], ends[0])


@pytest.mark.parametrize("make", [
    make_optimizer, lambda pairs: torch.optim.AdamW([p for _, p in pairs]),
], ids=["MaskedAdamW", "torch"])
def test_hooks_can_come_first_and_be_removed(make):
    pairs = make_pairs()
    optimizer, calls = make(pairs), []
    for register in ("register_step_pre_hook", "register_step_post_hook"):
        getattr(optimizer, register)(lambda *_, name=register: calls.append(name))
    for register in ("register_state_dict_pre_hook", "register_state_dict_post_hook",
                     "register_load_state_dict_pre_hook", "register_load_state_dict_post_hook"):
        for number, options in (("second", {}), ("first", {"prepend": True}), ("removed", {})):
            handle = getattr(optimizer, register)(
                lambda *_, name=f"{register}, {number}": calls.append(name), **options)
            if number == "removed":
                handle.remove()
    run(optimizer, pairs, range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["register_step_pre_hook", "register_step_post_hook"] + [
        f"register_{kind}_hook, {number}"
        for kind in ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post")
        for number in ("first", "second")
    ]


def test_a_square_parameter_that_is_transposed_between_steps_and_a_zero_tensor_as_gradient():
    generator = torch.Generator().manual_seed(0)
    first, *grads = torch.randn(6, 4, 4, generator=generator)
    ours, theirs = torch.nn.Parameter(first.clone()), torch.nn.Parameter(first.clone())
    options = {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.01}
    optimizers = [MaskedAdamW([("w", ours)], max_grad_norm=None, **options), torch.optim.AdamW([theirs], **options)]
    for step, grad in enumerate(grads):
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = grad.clone()
            if step == 2:
                p.data = p.data.t()  # gradient and parameter lie differently now
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

    p = torch.nn.Parameter(first.clone())
    p.grad = torch._efficientzerotensor(4, 4)
    MaskedAdamW([("w", p)], lr=0.1, weight_decay=0.0).step()
    assert torch.equal(p, first)
