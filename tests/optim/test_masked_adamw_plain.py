"""MaskedAdamW over parameters without names, in the loops that one writes for torch.optim.AdamW: the same weights."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from cases import pairwise
from optim.optim_cases import assert_same, make_pairs, run, set_grads, values
from torch.optim import lr_scheduler

from cofitune_fast.memory.host_states import HostMaskedAdamW
from cofitune_fast.optim import MaskedAdamW

OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}

GIVEN = {
    "a generator": lambda pairs: (p for _, p in pairs),
    "groups": lambda pairs: [{"params": pairs[0][1], "lr": 3e-3}, {"params": []},
                             {"params": (p for _, p in pairs[1:]), "weight_decay": 0.0, "betas": (0.8, 0.9)}],
    "groups of another optimizer": lambda pairs: torch.optim.AdamW([{"params": pairs[:1]}, {"params": pairs[1:]}],
                                                                   **OPTIONS).param_groups,
}
SCHEDULES = {
    "none": lambda optimizer: None,
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=8, base_momentum=0.5),
    "cyclic": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 1e-3, 2e-2, step_size_up=2),
    "cosine after warmup": lambda optimizer: lr_scheduler.SequentialLR(optimizer, [
        lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2), lr_scheduler.CosineAnnealingLR(optimizer, 5)], [2]),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 0.8**step),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
}


def trained(optimizer, pairs, schedule, steps=range(6)):
    for step in steps:
        set_grads(pairs, step)
        optimizer.step()
        optimizer.zero_grad()
        if schedule is not None:
            schedule.step(*[1.0] * isinstance(schedule, lr_scheduler.ReduceLROnPlateau))
    return values(pairs)


@pairwise({"given": GIVEN, "schedule": SCHEDULES, "lr_is": [float, torch.tensor],
           "kind": [MaskedAdamW, HostMaskedAdamW]})
def test_it_is_torch_adamw(given, schedule, lr_is, kind):
    ends = []
    for make in (lambda params: kind(params, **{**OPTIONS, "lr": lr_is(1e-2)}, max_grad_norm=None),
                 lambda params: torch.optim.AdamW(params, **{**OPTIONS, "lr": lr_is(1e-2)})):
        pairs = make_pairs()
        optimizer = make(GIVEN[given](pairs))
        ends.append(trained(optimizer, pairs, SCHEDULES[schedule](optimizer)))
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # six steps' roundings


def scaled(optimizer, pairs, clip):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for step in range(6):
        set_grads(pairs, step)
        factors = [p.grad for _, p in pairs]
        optimizer.zero_grad()
        loss = sum((p * factor).sum() for (_, p), factor in zip(pairs, factors, strict=True))
        scaler.scale(loss.float()).backward()
        if step == 3:
            pairs[0][1].grad[0, 0] = float("inf")
        if clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_([p for _, p in pairs], 0.5)
        scaler.step(optimizer)
        scaler.update()
    return values(pairs), scaler.get_scale()


def test_a_grad_scaler_is_right():
    """Unscaled gradients are clipped and used, and a step with an infinity is left out, as by torch's optimizer."""
    pairs, theirs = make_pairs(), make_pairs()
    optimizer = MaskedAdamW([p for _, p in pairs], **OPTIONS, max_grad_norm=0.5)
    ours, scale = scaled(optimizer, pairs, clip=False)
    expected, its_scale = scaled(torch.optim.AdamW([p for _, p in theirs], **OPTIONS), theirs, clip=True)
    assert scale == its_scale == 2.0**11 and optimizer.state[pairs[0][1]]["step"] == 5
    for p, q in zip(ours, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_scale_leaves_bfloat16_weights_the_same_bits():
    scaler, ends = torch.amp.GradScaler("cpu", init_scale=2.0**10), []
    for scale in (True, False):
        pairs = make_pairs(torch.bfloat16)
        optimizer = MaskedAdamW(pairs, **OPTIONS)
        for step in range(3):
            set_grads(pairs, step)
            if scale:
                scaler.scale(torch.ones(()))  # makes the scale
                for _, p in pairs:
                    p.grad *= scaler.get_scale()
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
        ends.append(values(pairs))
    assert_same(*ends)


@pytest.mark.parametrize("kind", [MaskedAdamW, HostMaskedAdamW])
def test_without_names_a_state_is_numbered_as_in_torch_and_resumes(kind):
    pairs = make_pairs(torch.bfloat16)
    optimizer = kind([p for _, p in pairs[:2]], **OPTIONS)
    optimizer.add_param_group({"params": pairs[2][1], "lr": 1e-3})
    run(optimizer, pairs, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert list(state["state"]) == [0, 1, 2] and [group["params"] for group in state["param_groups"]] == [[0, 1], [2]]
    assert "param_names" not in state["param_groups"][0]
    resumed = copy.deepcopy(pairs)
    second = kind([{"params": [p for _, p in resumed[:2]]}, {"params": [resumed[2][1]]}])
    second.load_state_dict(state)
    run(optimizer, pairs, range(3, 5))
    run(second, resumed, range(3, 5))
    assert_same(values(pairs), values(resumed))
    assert second.param_groups[1]["lr"] == 1e-3


def test_frozen_parameters_may_be_among_them_and_thaw():
    pairs = [*make_pairs(), ("frozen", torch.nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False))]
    pairs[0][1].requires_grad_(False)
    optimizer = MaskedAdamW(pairs, **OPTIONS)
    optimizer.create_states()
    assert set(optimizer.state_dict()["state"]) == {"up.bias", "down.weight"}
    before = values(pairs)
    (pairs[1][1].sum() + pairs[2][1].sum()).backward()
    optimizer.step()
    assert_same(values(pairs)[:1], before[:1])
    pairs[0][1].requires_grad_(True).sum().backward()
    optimizer.step()
    assert (values(pairs)[0] != before[0]).all() and optimizer.state[pairs[0][1]]["step"] == 1


def test_it_is_shown_as_torchs_optimizers_are_without_all_names():
    shown = repr(MaskedAdamW(make_pairs(), lr=0.5))
    assert shown.startswith("MaskedAdamW (\nParameter Group 0\n    betas: (0.9, 0.95)\n    eps: 1e-08\n    lr: 0.5\n")
    assert shown.endswith("\nmax_grad_norm: 1.0\n)") and "up.weight" not in shown
