"""Bad input to an op: one sentence before any memory is touched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ops.ops_cases import assert_same_bits, bits, make_case

from cofitune_fast import ops
from cofitune_fast.errors import CofituneError
from cofitune_fast.ops._storage import STORAGES


def adamw(change=None, storage="fp32", **options):
    case = make_case(storage if storage in STORAGES else "fp32", "row", [(4, 6), (5,)], anchored="row")
    if change:
        change(case)
    before = case.copy()
    try:
        ops.masked_adamw_(**{**case.arguments(), "storage": storage, "lr": 0.1, "step": 1, **options})
    finally:
        for name, tensors in case.written().items():
            for ours, theirs in zip(tensors, before.written()[name], strict=True):
                assert ours.is_meta or torch.equal(bits(ours), bits(theirs))


def put(name, index, value):
    return lambda case: getattr(case, name).__setitem__(index, value)


def alias(name, index, other, other_index=None, part=slice(None)):
    """name[index] is, from its first byte on, the memory of other[other_index]."""
    def change(case):
        old, memory = getattr(case, name)[index], getattr(case, other)[index if other_index is None else other_index]
        getattr(case, name)[index] = memory.flatten()[part][: old.numel()].view(old.dtype).view(old.shape)
    return change


@pytest.mark.parametrize(("change", "options", "words"), [
    (lambda c: c.grads.pop(), {}, r"grads, .* lists of one length, but their lengths are 2, 1, 2, 2, 2, 2, 2, 2"),
    (lambda c: c.remainders.pop(), {"storage": "bf16_split"}, r"but their lengths are 2, 2, 2, 2, 1, 2, 2, 2, 2"),
    (lambda c: c.masks.pop(), {}, r"but their lengths are 2, 2, 2, 2, 1, 2, 2, 2"),
    (None, {"offsets": [0]}, r"but their lengths are 2, 2, 2, 2, 2, 2, 2, 1"),
    (None, {"offsets": [0, -1]}, r"offsets\[1\] must not be negative, but it is -1"),
    (None, {"seed": 2**63}, r"seed must fit in 64 bits with a sign, but it is 9223372036854775808"),
    (put("params", 0, torch.zeros(4, 6).bfloat16()), {}, r"storage 'fp32' params\[0\] must be float32.* is bfloat16"),
    (put("params", 0, torch.zeros(4, 6)), {"storage": "bf16_sr"}, r"params\[0\] must be bfloat16, but it is float32"),
    (put("grads", 0, torch.zeros(4, 6)), {"storage": "int8"}, r"'int8' grads\[0\] must be bfloat16, but it is float32"),
    (put("exp_avgs", 1, torch.zeros(5).double()), {}, r"exp_avgs\[1\] must be float32, but it is float64"),
    (put("exp_avgs", 1, torch.zeros(5)), {"storage": "bf16"}, r"exp_avgs\[1\] must be bfloat16, but it is float32"),
    (put("exp_avg_sqs", 1, torch.zeros(5).char()), {"storage": "int8"}, r"exp_avg_sqs\[1\] must be uint8, .* is int8"),
    (put("remainders", 1, torch.zeros(5)), {"storage": "bf16_split"}, r"remainders\[1\] must be int16, .* is float32"),
    (put("scales", 1, torch.zeros(1, 2).half()), {"storage": "int8"}, r"scales\[1\] must be float32, .* is float16"),
    (put("scales", 0, torch.zeros(4, 2, 2)), {"storage": "int8"}, r"scales\[0\] must have shape \[4, 1, 2\]"),
    (put("scales", 0, torch.zeros(4, 2, 2)[..., :1, :]), {"storage": "int8"}, r"scales\[0\] must be contiguous"),
    (put("grads", 0, torch.zeros(6, 4)), {}, r"grads\[0\] must have shape \[4, 6\], but its shape is \[6, 4\]"),
    (put("exp_avg_sqs", 0, torch.zeros(6, 4).T), {}, r"exp_avg_sqs\[0\] must be contiguous"),
    (put("grads", 1, torch.zeros(5, device="meta")), {}, r"params\[0\] is on cpu and grads\[1\] is on meta"),
    (None, {"clip": torch.zeros(2, device="meta")}, r"params\[0\] is on cpu and clip\[0\] is on meta"),
    (None, {"storage": "fp16"}, r"storage must be one of fp32, bf16_split, bf16_sr, bf16, int8, not 'fp16'"),
    (None, {"remainders": [torch.zeros(4, 6)]}, r"storage 'fp32' has no remainders; leave them out"),
    (None, {"storage": "bf16", "scales": [torch.zeros(4, 1, 2)]}, r"storage 'bf16' has no scales; leave them out"),
    (None, {"storage": "bf16_split", "remainders": ()}, r"storage 'bf16_split' needs remainders"),
    (None, {"storage": "int8", "scales": ()}, r"storage 'int8' needs scales"),
    (put("masks", 0, torch.zeros(4)), {}, r"masks\[0\] of shape \[4\] does not fit its parameter of shape \[4, 6\]"),
    (put("masks", 0, torch.zeros(1, 1, 6)), {}, r"masks\[0\] of shape \[1, 1, 6\] does not fit"),
    (put("masks", 1, torch.zeros(1, 5)), {}, r"masks\[1\] of shape \[1, 5\] does not fit"),
    (put("masks", 0, torch.full((4, 1), 1.5)), {}, r"masks\[0\] must lie in \[0, 1\], .* reach from 1.5 to 1.5"),
    (put("masks", 0, torch.tensor([[1], [-0.1], [1], [0]])), {}, r"masks\[0\] must lie in .* from -0.1 to 1"),
    (put("masks", 0, torch.full((4, 1), torch.nan)), {}, r"masks\[0\] must lie in \[0, 1\]"),
    (put("masks", 0, torch.zeros(4, 1).bool()), {}, r"masks\[0\] must be float32 or uint8, but it is bool"),
    (put("masks", 0, torch.zeros(6, 4).T), {}, r"masks\[0\] must be contiguous"),
    (put("anchors", 1, None), {}, r"anchors\[1\] and pulls\[1\] belong together; give both or neither"),
    (put("pulls", 0, None), {}, r"anchors\[0\] and pulls\[0\] belong together; give both or neither"),
    (None, {"pulls": None}, r"anchors\[0\] and pulls\[0\] belong together"),
    (put("anchors", 0, torch.zeros(4, 6)), {"storage": "bf16"}, r"anchors\[0\] must be bfloat16, but it is float32"),
    (put("anchors", 0, torch.zeros(4, 1)), {}, r"anchors\[0\] must have shape \[4, 6\], but its shape is \[4, 1\]"),
    (put("anchors", 0, torch.zeros(6, 4).T), {}, r"anchors\[0\] must be contiguous"),
    (put("pulls", 0, torch.zeros(4, 1).byte()), {}, r"pulls\[0\] must be float32, but it is uint8"),
    (put("pulls", 0, torch.zeros(4, 2)), {}, r"pulls\[0\] of shape \[4, 2\] does not fit its parameter"),
    (alias("grads", 0, "params"), {}, r"(params|grads)\[0\] and (params|grads)\[0\] share memory; give each a tensor"),
    (alias("exp_avgs", 1, "exp_avg_sqs"), {}, r"\[1\] and exp_avg.*\[1\] share memory"),
    (alias("params", 1, "params", 0, slice(7, None)), {}, r"params\[1\] and params\[0\] share memory"),
    (alias("masks", 1, "grads", 0), {}, r"share memory"),
    (alias("anchors", 1, "params", 0, slice(1, None)), {}, r"anchors\[1\] and params\[0\] share memory"),
    (alias("pulls", 1, "exp_avgs", 0, slice(23, None)), {}, r"pulls\[1\] and exp_avgs\[0\] share memory"),
    (alias("remainders", 1, "params", 0), {"storage": "bf16_split"}, r"share memory"),
    (None, {"clip": torch.zeros(3)}, r"clip must have shape \[2\]"),
    (None, {"clip": torch.zeros(2).double()}, r"clip must be float32"),
    (None, {"clip": torch.zeros(4)[::2]}, r"clip must be contiguous"),
    (None, {"pull_kind": "L1"}, r"pull_kind must be 'l2' or 'l1', not 'L1'"),
    (None, {"mask_mode": "both"}, r"mask_mode must be 'update' or 'gradient', not 'both'"),
    (None, {"step": 0}, r"step is counted from 1, not 0"),
    (None, {"step": torch.tensor(0)}, r"step is counted from 1, not 0"),
    (None, {"step": torch.ones(2)}, r"step must be a number or a tensor of one element .* has 2 elements on cpu"),
    (None, {"lr": torch.ones((), device="meta")}, r"lr must be .* on the CPU or on cpu, but it has 1 elements on meta"),
    (None, {"lr": -1.0}, r"must not be negative, but they are -1.0"),
    (None, {"lr": float("nan")}, r"must not be negative, but they are nan"),
    (None, {"eps": -1e-8}, r"must not be negative, but they are 0.1, -1e-08"),
    (None, {"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), not \(0.9, 1.0\)"),
    (None, {"backend": "cudnn"}, r"backend 'cudnn' is unknown; choose one of auto, reference, cpu, triton, cuda"),
    (None, {"backend": "cuda"}, r"the backend 'cuda' cannot run \("),
])
def test_masked_adamw(change, options, words):
    with pytest.raises(CofituneError, match=words):
        adamw(change, **options)


def test_factors_and_anchors_may_share_memory_with_each_other():
    case = make_case("fp32", "row", [(4, 6), (5,)], anchored="row")
    case.masks[0] = case.pulls[0] = torch.ones(4, 1)
    case.anchors[1] = case.anchors[0].flatten()[:5]
    apart = replace(case, pulls=[s.clone() for s in case.pulls], anchors=[a.clone() for a in case.anchors])
    assert_same_bits(case.step(), apart.step())


@pytest.mark.parametrize(("grads", "options", "words"), [
    ([torch.zeros(3).half()], {}, r"grads\[0\] must be float32 or bfloat16, but it is float16"),
    ([torch.zeros(3), torch.zeros(4, 4).T[:2]], {}, r"grads\[1\] must be contiguous"),
    ([torch.zeros(3), torch.zeros(3, device="meta")], {}, r"grads\[0\] is on cpu and grads\[1\] is on meta"),
    ([torch.zeros(3)], {"max_norm": 0.0}, r"max_norm must be positive or None, not 0.0"),
    ([torch.zeros(3)], {"max_norm": float("nan")}, r"max_norm must be positive or None, not nan"),
    ([torch.zeros(3)], {"weights": []}, r"grads, weights must be lists of one length, but their lengths are 1, 0"),
    ([torch.zeros(3)], {"weights": [torch.zeros(3).bfloat16()]}, r"weights\[0\] must be float32, but it is bfloat16"),
    ([torch.zeros(3, 2)], {"weights": [torch.zeros(2, 3)]}, r"weights\[0\] must have shape \[3, 2\]"),
    ([torch.zeros(3, 2)], {"weights": [torch.zeros(2, 3).T]}, r"weights\[0\] must be contiguous"),
    ([torch.zeros(3)], {"weights": [torch.zeros(3, device="meta")]}, r"on cpu and weights\[0\] is on meta"),
    ([torch.zeros(3)], {"backend": "cuda"}, r"the backend 'cuda' cannot run"),
])
def test_grad_norm(grads, options, words):
    with pytest.raises(CofituneError, match=words):
        ops.grad_norm(grads, **options)


BUFFER = torch.zeros(24)


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
    ({"unit_size": 0}, r"unit_size 0 does not divide the 4 columns"),
    ({"passes": 0}, r"passes 0 does not divide the batch of 2"),
    ({"per": "token"}, r"per must be 'sample' or 'batch', not 'token'"),
    ({"scores": BUFFER[:4], "y": BUFFER.view(2, 3, 4)}, r"y and scores share memory; give each a tensor"),
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
    ({"weight": torch.zeros(0, 4)}, r"weight has no rows; the vocabulary must have at least one token"),
    ({"bias": torch.zeros(4)}, r"bias must have shape \[7\], but its shape is \[4\]"),
    ({"scale": float("nan")}, r"scale must be a finite number, not nan"),
    ({"softcap": 0.0}, r"softcap must be positive or None, not 0.0"),
    ({"softcap": float("inf")}, r"softcap must be positive or None, not inf"),
    ({"chunk_tokens": 0}, r"chunk_tokens must be at least 1, not 0"),
    ({"reduction": "none"}, r"reduction must be 'mean' or 'sum', not 'none'"),
    ({"backend": "cuda"}, r"the backend 'cuda' cannot run \(this op has no CUDA C\+\+ kernel"),
    ({"hidden_p": torch.zeros(2, 4).double(), "hidden_q": torch.zeros(2, 4).double(), "backend": "cpu"},
     r"float64 has the reference only; use backend='auto' or 'reference', not 'cpu'"),
])
def test_linear_kl(change, words):
    arguments = {"hidden_p": torch.zeros(2, 4), "hidden_q": torch.zeros(2, 4), "weight": torch.zeros(7, 4), **change}
    with pytest.raises(CofituneError, match=words):
        ops.linear_kl(arguments.pop("hidden_p"), arguments.pop("hidden_q"), arguments.pop("weight"), **arguments)
