"""Masks in bytes, and the pull to the initial weights: its kinds, its strengths by unit, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from optim.optim_cases import SHAPES, assert_same, dtype_of, make_masks, make_pairs, run, set_grads, values

from cofitune_fast.errors import CofituneError
from cofitune_fast.ops._storage import STORAGES
from cofitune_fast.optim import MaskedAdamW, Pull

KINDS = ["l2", "l1"]


@pytest.mark.parametrize("mask_mode", ["update", "gradient"])
def test_a_mask_in_bytes_is_the_mask_of_its_255ths(mask_mode):
    steps = torch.tensor([0, 1, 60, 255, 128, 254, 200, 3], dtype=torch.uint8)[:, None]
    results = []
    for mask in (steps, steps.float() * torch.tensor(1 / 255, dtype=torch.float32)):
        pairs = make_pairs()
        optimizer = MaskedAdamW(pairs, lr=1e-2, masks={"up.weight": mask}, mask_mode=mask_mode)
        run(optimizer, pairs, range(3))
        results.append(values(pairs))
    assert_same(*results)


def test_masks_keep_their_memory():
    mask = torch.full((8, 1), 255, dtype=torch.uint8)
    optimizer = MaskedAdamW(make_pairs(), masks={"up.weight": mask})
    assert optimizer._factors["up.weight"].mask.data_ptr() == mask.data_ptr()


def without_gradient(pairs, **options):
    """One step in which only the pull moves the parameters."""
    for _, p in pairs:
        p.grad = torch.zeros_like(p)
    MaskedAdamW(pairs, lr=0.1, weight_decay=0.0, **options).step()
    return values(pairs)


def test_l2_moves_by_a_share_of_the_distance():
    pairs = make_pairs()
    before = values(pairs)
    initial = {"up.weight": torch.full((8, 300), 0.25), "down.weight": torch.ones(6, 8)}
    units = {"up.weight": torch.tensor([0.0, 1, 2, 3, 5, 9, 10, 1000])[:, None] / 4, "down.weight": torch.tensor(1.0)}
    up, bias, down = without_gradient(pairs, pull=Pull("l2", 4.0, units, initial))
    share = (0.4 * units["up.weight"]).clamp(max=1)
    torch.testing.assert_close(up, before[0] + share * (0.25 - before[0]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(down, before[2] + 0.4 * (1 - before[2]), rtol=1e-6, atol=1e-6)
    assert torch.equal(up[0], before[0][0]) and torch.equal(bias, before[1])
    torch.testing.assert_close(up[7], torch.full((300,), 0.25), rtol=0, atol=3e-7)  # one rounding of p - p0


def test_l1_moves_by_a_distance_and_no_farther_than_home():
    pairs = make_pairs()
    before = values(pairs)
    initial = {"up.weight": torch.full((8, 300), 0.25)}
    units = {"up.weight": torch.linspace(0, 2, 300)[None]}
    up, bias, down = without_gradient(pairs, pull=Pull("l1", 5.0, units, initial))
    away = before[0] - 0.25
    expected = 0.25 + away.sign() * (away.abs() - 0.5 * units["up.weight"]).clamp(min=0)
    torch.testing.assert_close(up, expected, rtol=1e-6, atol=1e-6)
    assert 0.1 < (up == 0.25).double().mean() < 0.9
    assert_same([bias, down], before[1:])


@pytest.mark.parametrize(("kind", "moved"), [("l2", lambda p: 0.8 * p),
                                             ("l1", lambda p: p.sign() * (p.abs() - 0.2).clamp(min=0))])
def test_an_update_mask_damps_the_pull_too(kind, moved):
    pairs = make_pairs()
    before = values(pairs)
    down = without_gradient(pairs, masks={"down.weight": torch.full((6, 1), 0.5)},
                            pull=Pull(kind, 4.0, {"down.weight": torch.tensor(1.0)},
                                      {"down.weight": torch.zeros(6, 8)}))[2]
    torch.testing.assert_close(down, moved(before[2]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("storage", STORAGES)
def test_initial_weights_are_copies_that_are_made_once(storage, kind):
    given, copied = make_pairs(dtype_of(storage)), make_pairs(dtype_of(storage))
    options = {"lr": 1e-2, "storage": storage, "masks": make_masks()}
    initial = {name: p.detach().clone() for name, p in given}
    run(MaskedAdamW(given, pull=Pull(kind, 2.0, initial=initial), **options), given, range(4))
    optimizer = MaskedAdamW(copied, pull=Pull(kind, 2.0), **options)
    run(optimizer, copied, range(4))
    assert_same(values(given), values(copied))
    state = optimizer.state_dict()["state"]
    assert_same([state[name]["anchor"] for name in SHAPES], list(initial.values()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("storage", STORAGES)
def test_without_strength_it_is_the_run_without_a_pull(storage, kind):
    pulled, free = make_pairs(dtype_of(storage)), make_pairs(dtype_of(storage))
    run(MaskedAdamW(pulled, lr=1e-2, storage=storage, pull=Pull(kind, 0.0)), pulled, range(4))
    run(MaskedAdamW(free, lr=1e-2, storage=storage), free, range(4))
    assert_same(values(pulled), values(free))


@pytest.mark.parametrize("storage", STORAGES)
def test_a_strong_l1_pull_holds_every_weight_and_a_weaker_one_most(storage):
    """Steps of Adam are about lr, so that nothing leaves home at 4; at 0.5 what moves is what gradients agree on."""
    for strength, least, most in ((4.0, 0.0, 0.0), (0.5, 0.01, 0.95)):
        pairs = make_pairs(dtype_of(storage))
        home = values(pairs)
        optimizer = MaskedAdamW(pairs, lr=1e-2, storage=storage, pull=Pull("l1", strength), weight_decay=0.0)
        run(optimizer, pairs, range(8))
        away = torch.cat([(p != p0).flatten() for p, p0 in zip(values(pairs), home, strict=True)]).double().mean()
        assert least <= away <= most


def test_units_choose_which_parameters_are_pulled():
    pairs, free = make_pairs(), make_pairs()
    optimizer = MaskedAdamW(pairs, lr=1e-2, pull=Pull(units={"up.bias": torch.tensor(50.0)}))
    run(optimizer, pairs, range(3))
    run(MaskedAdamW(free, lr=1e-2), free, range(3))
    assert [("anchor" in state) for state in optimizer.state_dict()["state"].values()] == [False, True, False]
    up, bias, down = zip(values(pairs), values(free), strict=True)
    assert_same([up[0], down[0]], [up[1], down[1]])
    assert (bias[0] != bias[1]).all()


def test_a_group_added_later_is_pulled_too():
    pairs = make_pairs()
    optimizer = MaskedAdamW(pairs[:2], lr=1e-2, pull=Pull("l1"))
    optimizer.add_param_group({"params": pairs[2:]})
    set_grads(pairs, 0)
    optimizer.step()
    assert all("anchor" in state for state in optimizer.state_dict()["state"].values())


def test_a_pull_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Pull().strength = 2.0


A_ZERO = {"up.bias": torch.zeros(8)}
A_ONE = {"up.bias": torch.ones(())}


@pytest.mark.parametrize(("pull", "words"), [
    ({"kind": "l3"}, "kind must be 'l2' or 'l1', not 'l3'"),
    ({"strength": -1.0}, "strength must be a finite number that is not negative, not -1.0"),
    ({"strength": float("nan")}, "strength must be a finite number that is not negative, not nan"),
    ({"strength": float("inf")}, "strength must be a finite number that is not negative, not inf"),
    ({"strength": "0.1"}, "strength must be a finite number that is not negative, not '0.1'"),
    ({"initial": A_ZERO}, "initial weights lack up.weight; add it, or name in units those that are pulled"),
    ({"units": {"gate": torch.ones(8)}}, "units has gate, which this optimizer does not train"),
    ({"initial": {**A_ZERO, "gate": torch.zeros(8)}, "units": A_ONE}, "initial has gate, which this optimizer"),
    ({"initial": {"up.bias": torch.zeros(7)}, "units": A_ONE},
     r"initial weight of up.bias must be float32 of shape \[8\] like its parameter, but it is float32 of shape \[7\]"),
    ({"initial": {"up.bias": torch.zeros(8).bfloat16()}, "units": A_ONE}, r"but it is bfloat16 of shape \[8\]"),
    ({"units": {"up.bias": torch.full((8,), -1.0)}}, "the pull of up.bias must be finite and not negative"),
    ({"units": {"up.bias": torch.full((8,), torch.nan)}}, "the pull of up.bias must be finite"),
    ({"units": {"up.bias": torch.ones(3)}}, r"the pull of up.bias of shape \[3\] does not fit"),
])
def test_what_does_not_fit_is_refused(pull, words):
    with pytest.raises(CofituneError, match=words):
        MaskedAdamW(make_pairs(), pull=Pull(**pull))


def test_a_number_is_no_pull():
    with pytest.raises(CofituneError, match=r"pull must be a Pull or None, not 0.1"):
        MaskedAdamW(make_pairs(), pull=0.1)


def test_initial_weights_that_are_the_parameter_are_refused():
    pairs = make_pairs()
    with pytest.raises(CofituneError, match=r"the initial weight of up.bias is the parameter itself; pass a copy"):
        MaskedAdamW(pairs, pull=Pull(units=A_ONE, initial={"up.bias": pairs[1][1].data}))
