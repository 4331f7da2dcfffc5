"""Masks in bytes, anchors and their pulls, by name or one for all."""

from __future__ import annotations

import pytest
import torch
from optim.optim_cases import SHAPES, assert_same, make_masks, make_pairs, run, set_grads, values

from cofitune_fast.errors import CofituneError
from cofitune_fast.optim import MaskedAdamW


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
    optimizer = MaskedAdamW(pairs, lr=0.1, weight_decay=0.0, **options)
    optimizer.step()
    return optimizer


def test_a_pull_moves_towards_the_anchor_by_lr_times_its_strength():
    pairs = make_pairs()
    before = values(pairs)
    strengths = torch.tensor([0.0, 1, 2, 3, 5, 9, 10, 1000])[:, None]
    anchors = {"up.weight": torch.full((8, 300), 0.25), "down.weight": torch.ones(6, 8)}
    without_gradient(pairs, anchors=anchors, pulls={"up.weight": strengths, "down.weight": 4.0})
    up, bias, down = values(pairs)
    share = (0.1 * strengths).clamp(max=1)
    torch.testing.assert_close(up, before[0] + share * (0.25 - before[0]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(down, before[2] + 0.4 * (1 - before[2]), rtol=1e-6, atol=1e-6)
    assert torch.equal(up[0], before[0][0])
    torch.testing.assert_close(up[7], torch.full((300,), 0.25), rtol=0, atol=3e-7)  # one rounding of p - anchor
    assert torch.equal(bias, before[1])


def test_an_update_mask_damps_the_pull_too():
    pairs = make_pairs()
    before = values(pairs)
    without_gradient(pairs, masks={"down.weight": torch.full((6, 1), 0.5)}, anchors={"down.weight": torch.zeros(6, 8)},
                     pulls=4.0)
    torch.testing.assert_close(values(pairs)[2], 0.8 * before[2], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("storage", ["fp32", "bf16_split", "bf16_sr", "bf16", "int8"])
def test_the_initial_weights_as_anchors_are_copies_of_them(storage):
    dtype = torch.float32 if storage == "fp32" else torch.bfloat16
    given, initial = make_pairs(dtype), make_pairs(dtype)
    options = {"lr": 1e-2, "storage": storage, "pulls": 20.0, "masks": make_masks()}
    copies = {name: p.detach().clone() for name, p in given}
    run(MaskedAdamW(given, anchors=copies, **options), given, range(4))
    optimizer = MaskedAdamW(initial, anchors="initial", **options)
    run(optimizer, initial, range(4))
    assert_same(values(given), values(initial))
    state = optimizer.state_dict()["state"]
    assert_same([state[name]["anchor"] for name in SHAPES], list(copies.values()))


def test_pulls_by_name_choose_which_parameters_keep_their_initial_weights():
    pairs, free = make_pairs(), make_pairs()
    optimizer = MaskedAdamW(pairs, lr=1e-2, anchors="initial", pulls={"up.bias": 50.0})
    run(optimizer, pairs, range(3))
    run(MaskedAdamW(free, lr=1e-2), free, range(3))
    assert [("anchor" in state) for state in optimizer.state_dict()["state"].values()] == [False, True, False]
    up, bias, down = zip(values(pairs), values(free), strict=True)
    assert_same([up[0], down[0]], [up[1], down[1]])
    assert (bias[0] != bias[1]).all()


def test_a_group_added_later_has_initial_anchors_too():
    pairs = make_pairs()
    optimizer = MaskedAdamW(pairs[:2], lr=1e-2, anchors="initial", pulls=5.0)
    optimizer.add_param_group({"params": pairs[2:]})
    set_grads(pairs, 0)
    optimizer.step()
    assert all("anchor" in state for state in optimizer.state_dict()["state"].values())


A_ZERO = {"up.bias": torch.zeros(8)}


@pytest.mark.parametrize(("options", "words"), [
    ({"anchors": A_ZERO}, "anchors and pulls belong together"),
    ({"pulls": 1.0}, "anchors and pulls belong together"),
    ({"anchors": "start", "pulls": 1.0}, "anchors must be tensors by name or 'initial', not 'start'"),
    ({"anchors": A_ZERO, "pulls": {"down.weight": 1.0}}, "down.weight, up.bias has an anchor or a pull, but not both"),
    ({"anchors": {"gate": torch.zeros(8)}, "pulls": 1.0}, "there are anchors for gate, which this optimizer does not"),
    ({"anchors": "initial", "pulls": {"gate": 1.0}}, "there are pulls for gate, which this optimizer does not train"),
    ({"anchors": {"up.bias": torch.zeros(7)}, "pulls": 1.0},
     r"the anchor of up.bias must be float32 of shape \[8\] like its parameter, but it is float32 of shape \[7\]"),
    ({"anchors": {"up.bias": torch.zeros(8).bfloat16()}, "pulls": 1.0}, r"but it is bfloat16 of shape \[8\]"),
    ({"anchors": A_ZERO, "pulls": -1.0}, "the pull of up.bias must be finite and not negative"),
    ({"anchors": A_ZERO, "pulls": {"up.bias": torch.full((8,), float("nan"))}}, "the pull of up.bias must be finite"),
    ({"anchors": A_ZERO, "pulls": {"up.bias": torch.ones(3)}}, r"the pull of up.bias of shape \[3\] does not fit"),
])
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(CofituneError, match=words):
        MaskedAdamW(make_pairs(), **options)


def test_an_anchor_that_is_the_parameter_is_refused():
    pairs = make_pairs()
    with pytest.raises(CofituneError, match=r"the anchor of up.bias is the parameter itself; pass a copy"):
        MaskedAdamW(pairs, anchors={"up.bias": pairs[1][1].data}, pulls=1.0)
