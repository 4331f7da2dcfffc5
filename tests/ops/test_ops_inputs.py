"""Bad input to an op: one sentence before any memory is touched."""

from __future__ import annotations

import pytest
import torch
from ops.ops_cases import make_case

from cofitune_fast import ops
from cofitune_fast.errors import CofituneError


def adamw(change=None, **options):
    case = make_case("fp32", "row", [(4, 6), (5,)])
    if change:
        change(case)
    before = case.copy()
    arguments = {"lr": 0.1, "step": 1, **options}
    try:
        ops.masked_adamw_(*case.lists(), case.masks, **arguments)
    finally:
        for ours, theirs in zip(case.lists(), before.lists(), strict=True):
            assert all(a.is_meta or torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def put(name, index, value):
    return lambda case: getattr(case, name).__setitem__(index, value)


@pytest.mark.parametrize(("change", "options", "words"), [
    (lambda c: c.grads.pop(), {}, r"lists of one length, but their lengths are 2, 1, 2, 2, 2, 2"),
    (put("params", 0, torch.zeros(4, 6).bfloat16()), {}, r"storage 'fp32' params\[0\] must be float32.* is bfloat16"),
    (None, {"storage": "bf16_sr"}, r"storage 'bf16_sr' params\[0\] must be bfloat16, but it is float32"),
    (put("exp_avgs", 1, torch.zeros(5).double()), {}, r"exp_avgs\[1\] must be float32, but it is float64"),
    (put("grads", 0, torch.zeros(6, 4)), {}, r"grads\[0\] must have shape \[4, 6\], but its shape is \[6, 4\]"),
    (put("exp_avg_sqs", 0, torch.zeros(6, 4).T), {}, r"exp_avg_sqs\[0\] must be contiguous"),
    (put("grads", 1, torch.zeros(5, device="meta")), {}, r"params\[0\] is on cpu and grads\[1\] is on meta"),
    (put("masks", 0, torch.zeros(4)), {}, r"masks\[0\] of shape \[4\] does not fit its parameter of shape \[4, 6\]"),
    (put("masks", 1, torch.zeros(1, 5)), {}, r"masks\[1\] of shape \[1, 5\] does not fit"),
    (put("masks", 0, torch.zeros(4, 1).bool()), {}, r"masks\[0\] must be float32, but it is bool"),
    (put("masks", 0, torch.zeros(6, 4).T), {}, r"masks\[0\] must be contiguous"),
    (None, {"clip": torch.zeros(3)}, r"clip must have shape \[2\]"),
    (None, {"clip": torch.zeros(2).double()}, r"clip must be float32"),
    (None, {"mask_mode": "both"}, r"mask_mode must be 'update' or 'gradient', not 'both'"),
    (None, {"storage": "int8"}, r"storage must be 'fp32' or 'bf16_sr', not 'int8'"),
    (None, {"step": 0}, r"step is counted from 1, not 0"),
    (None, {"lr": -1.0}, r"must not be negative, but they are -1.0"),
    (None, {"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), not \(0.9, 1.0\)"),
    (None, {"offsets": [0]}, r"lists of one length, but their lengths are 2, 2, 2, 2, 2, 1"),
    (None, {"backend": "cudnn"}, r"backend 'cudnn' is unknown; choose one of auto, reference, cpu, triton, cuda"),
    (None, {"backend": "triton"}, r"the backend 'triton' cannot run \(there is no Triton kernel"),
    (None, {"backend": "cuda"}, r"the backend 'cuda' cannot run \(there is no CUDA kernel"),
])
def test_masked_adamw(change, options, words):
    with pytest.raises(CofituneError, match=words):
        adamw(change, **options)


@pytest.mark.parametrize(("grads", "options", "words"), [
    ([torch.zeros(3).half()], {}, r"grads\[0\] must be float32 or bfloat16, but it is float16"),
    ([torch.zeros(3), torch.zeros(4, 4).T[:2]], {}, r"grads\[1\] must be contiguous"),
    ([torch.zeros(3), torch.zeros(3, device="meta")], {}, r"grads\[0\] is on cpu and grads\[1\] is on meta"),
    ([torch.zeros(3)], {"max_norm": 0.0}, r"max_norm must be positive or None, not 0.0"),
    ([torch.zeros(3)], {"backend": "triton"}, r"the backend 'triton' cannot run"),
])
def test_grad_norm(grads, options, words):
    with pytest.raises(CofituneError, match=words):
        ops.grad_norm(grads, **options)


@pytest.mark.parametrize(("change", "words"), [
    ({"y": torch.zeros(2, 12)}, r"y must have the three dimensions \[B, T, D\], but its shape is \[2, 12\]"),
    ({"y": torch.zeros(2, 3, 4).half()}, r"y must be float32 or bfloat16, but it is float16"),
    ({"grad_y": torch.zeros(2, 3, 4).bfloat16()}, r"grad_y must be float32, but it is bfloat16"),
    ({"grad_y": torch.zeros(2, 4, 3)}, r"grad_y must have shape \[2, 3, 4\]"),
    ({"scores": torch.zeros(3)}, r"scores must have shape \[4\], but its shape is \[3\]"),
    ({"scores": torch.zeros(4).double()}, r"scores must be float32"),
    ({"scores": torch.zeros(8)[::2]}, r"scores must be contiguous"),
    ({"unit_size": 3}, r"unit_size 3 does not divide the 4 columns"),
    ({"passes": 3}, r"passes 3 does not divide the batch of 2"),
    ({"attention_mask": torch.ones(2, 4)}, r"attention_mask must have shape \[2, 3\]"),
    ({"scores": torch.zeros(4, device="meta")}, r"scores\[0\] is on meta and y\[0\] is on cpu"),
    ({"backend": "cuda"}, r"the backend 'cuda' cannot run"),
])
def test_unit_importance(change, words):
    arguments = {"scores": torch.zeros(4), "y": torch.zeros(2, 3, 4), "grad_y": torch.zeros(2, 3, 4), **change}
    with pytest.raises(CofituneError, match=words):
        ops.unit_importance_(arguments.pop("scores"), arguments.pop("y"), arguments.pop("grad_y"), **arguments)


@pytest.mark.parametrize(("change", "words"), [
    ({"hidden_p": torch.zeros(2, 3, 4)}, r"hidden_p must have two dimensions, but its shape is \[2, 3, 4\]"),
    ({"hidden_p": torch.zeros(2, 4).half()}, r"hidden_p must be float32 or bfloat16 or float64, but it is float16"),
    ({"hidden_q": torch.zeros(2, 4).bfloat16()}, r"hidden_q must be float32, but it is bfloat16"),
    ({"hidden_q": torch.zeros(3, 4)}, r"hidden_q must have shape \[2, 4\]"),
    ({"weight": torch.zeros(7, 5)}, r"weight has 5 columns, but the hidden states have 4"),
    ({"weight": torch.zeros(7, 4, device="meta")}, r"hidden_p\[0\] is on cpu and weight\[0\] is on meta"),
    ({"softcap": 0.0}, r"softcap must be positive or None, not 0.0"),
    ({"chunk_tokens": 0}, r"chunk_tokens must be at least 1, not 0"),
    ({"reduction": "none"}, r"reduction must be 'mean' or 'sum', not 'none'"),
    ({"backend": "cpu"}, r"the backend 'cpu' cannot run \(this op has no native CPU kernel"),
])
def test_linear_kl(change, words):
    arguments = {"hidden_p": torch.zeros(2, 4), "hidden_q": torch.zeros(2, 4), "weight": torch.zeros(7, 4), **change}
    with pytest.raises(CofituneError, match=words):
        ops.linear_kl(arguments.pop("hidden_p"), arguments.pop("hidden_q"), arguments.pop("weight"), **arguments)
