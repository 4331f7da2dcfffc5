"""MaskedAdamW as a torch optimizer: groups, schedulers, clipping, masks, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from cases import pairwise
from ops.ops_cases import BACKENDS, TOLERANCE, bits
from optim.optim_cases import SHAPES, assert_same, dtype_of, make_masks, make_pairs, random_offset, set_grads, values

from cofitune_fast.errors import CofituneError
from cofitune_fast.ops import grad_norm, masked_adamw_
from cofitune_fast.ops._storage import STORAGES, new_state
from cofitune_fast.optim import MaskedAdamW, Pull


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_without_masks_it_trains_as_clip_and_torch_adamw_do(max_grad_norm, backend):
    ours, theirs = make_pairs(), make_pairs()
    options = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizer = MaskedAdamW(ours, lr=1e-2, max_grad_norm=max_grad_norm, backend=backend, **options)
    torch_optimizer = torch.optim.AdamW([p for _, p in theirs], lr=1e-2, **options)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 10) for o in (optimizer, torch_optimizer)]
    for step in range(6):
        for pairs in (ours, theirs):
            set_grads(pairs, step)
        if max_grad_norm is None:
            norm = torch.nn.utils.get_total_norm([p.grad for _, p in theirs])
        else:
            norm = torch.nn.utils.clip_grad_norm_([p for _, p in theirs], max_grad_norm)
        optimizer.step()
        torch_optimizer.step()
        torch.testing.assert_close(optimizer.last_grad_norm, norm)
        for schedule in schedules:
            schedule.step()
    for p, q in zip(values(ours), values(theirs), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)  # six steps' roundings


@pairwise({"storage": STORAGES, "mask_mode": ["update", "gradient"], "kind": ["l2", "l1"]})
def test_a_step_is_the_two_ops_bit_for_bit(storage, kind, mask_mode):
    pairs, own = make_pairs(dtype_of(storage)), make_pairs(dtype_of(storage))
    masks, pulls = make_masks(), {"down.weight": torch.tensor(30.0)}
    anchors = {"down.weight": torch.zeros(6, 8, dtype=dtype_of(storage))}
    pull = Pull(kind, 15.0, units={name: strength / 15 for name, strength in pulls.items()}, initial=anchors)
    optimizer = MaskedAdamW(pairs, lr=1e-2, masks=masks, mask_mode=mask_mode, storage=storage, seed=3, pull=pull,
                            zero_grad_after=True)
    names, states = list(SHAPES), [new_state(p, storage) for _, p in own]
    extra = {"remainders": "remainder", "scales": "scale"}
    for step in (1, 2, 3):
        set_grads(pairs, step)
        set_grads(own, step)
        optimizer.step()
        norm = grad_norm([p.grad for _, p in own], 1.0)
        masked_adamw_(
            [p.detach() for _, p in own], [p.grad for _, p in own], [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states], [masks.get(name) for name in names],
            anchors=[anchors.get(name) for name in names], pulls=[pulls.get(name) for name in names],
            **{many: [s[one] for s in states if one in s] for many, one in extra.items()}, lr=1e-2, step=step,
            clip=norm.clip, mask_mode=mask_mode, pull_kind=kind, storage=storage, seed=3,
            offsets=list(map(random_offset, names)),
        )
        assert optimizer.last_grad_norm.item() == norm.norm.item()
        assert all(not p.grad.any() for _, p in pairs)
    assert_same(values(pairs), values(own))
    entries = [optimizer.state_dict()["state"][name] for name in names]
    for key in states[0]:
        assert_same([entry[key] for entry in entries], [state[key] for state in states])


def test_groups_have_their_own_options_and_may_be_added_later():
    pairs = make_pairs()
    groups = [{"params": pairs[:1], "lr": 0.0}, {"params": iter(pairs[1:2]), "weight_decay": 0.0}]
    optimizer = MaskedAdamW(groups, lr=1e-2)
    optimizer.add_param_group({"params": pairs[2:], "lr": 1e-3})
    before = values(pairs)
    set_grads(pairs, 1)
    optimizer.step()
    moved = [(p.detach() - start).abs().max().item() for (_, p), start in zip(pairs, before, strict=True)]
    assert moved[0] == 0 and moved[1] == pytest.approx(1e-2, rel=0.01) and 5e-4 < moved[2] < 2e-3
    assert [group["param_names"] for group in optimizer.param_groups] == [["up.weight"], ["up.bias"], ["down.weight"]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_mask_protects_and_damps(dtype):
    pairs, free = make_pairs(dtype), make_pairs(dtype)
    rows = torch.tensor([0, 0.5, 1, 1, 0, 1, 0.25, 1])[:, None]
    columns = torch.zeros(1, 8)  # of down.weight
    masked = MaskedAdamW(pairs, lr=1e-2, masks={"up.weight": rows, "down.weight": columns.to(torch.bfloat16)})
    plain = MaskedAdamW(free, lr=1e-2)
    start = values(pairs)
    for step in range(3):
        for p in (pairs, free):
            set_grads(p, step)
        masked.step()
        plain.step()
    up, bias, down = values(pairs)
    assert torch.equal(bits(up[[0, 4]]), bits(start[0][[0, 4]])) and torch.equal(bits(down), bits(start[2]))
    assert torch.equal(bits(up[2]), bits(values(free)[0][2])) and torch.equal(bits(bias), bits(values(free)[1]))
    if dtype == torch.float32:
        first = (values(free)[0] - start[0])[6]
        torch.testing.assert_close((up - start[0])[6], 0.25 * first, rtol=0.05, atol=1e-4)  # decay sees other values
    assert masked.state[pairs[0][1]]["exp_avg"].dtype == torch.float32


def test_a_gradient_mask_acts_before_the_moments():
    pairs = make_pairs()
    optimizer = MaskedAdamW(pairs, masks={"up.bias": torch.full((8,), 0.5)}, mask_mode="gradient", max_grad_norm=None)
    set_grads(pairs, 1)
    optimizer.step()
    bias = pairs[1][1]
    torch.testing.assert_close(optimizer.state[bias]["exp_avg"], 0.1 * 0.5 * bias.grad, **TOLERANCE["fp32"])


def test_a_norm_that_is_not_finite_skips_the_step():
    pairs = make_pairs()
    optimizer = MaskedAdamW(pairs, lr=1e-2, zero_grad_after=True)
    before = values(pairs)
    set_grads(pairs, 0)
    pairs[1][1].grad[3] = float("inf")
    optimizer.step()
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(before, values(pairs), strict=True))
    assert not optimizer.last_grad_norm.isfinite()
    assert all(not p.grad.any() and not optimizer.state[p]["exp_avg"].any() for _, p in pairs)
    set_grads(pairs, 1)
    optimizer.step()
    assert all((a != b).all() for a, b in zip(before, values(pairs), strict=True))


def test_gradients_may_be_missing_and_are_zeroed_on_request():
    pairs = make_pairs()
    optimizer = MaskedAdamW(pairs, lr=1e-2, zero_grad_after=True)
    optimizer.step()
    assert optimizer.last_grad_norm.item() == 0
    set_grads(pairs, 0)
    pairs[0][1].grad = None
    before = values(pairs)
    optimizer.step()
    assert torch.equal(before[0], values(pairs)[0]) and pairs[0][1] not in optimizer.state
    assert all(not p.grad.any() for _, p in pairs[1:])
    set_grads(pairs, 1)
    optimizer.step()
    assert [optimizer.state[p]["step"] for _, p in pairs] == [1, 2, 2]


@pytest.mark.parametrize("storage", ["bf16_split", "bf16", "int8"])
def test_each_group_has_its_storage_and_auto_looks_at_each_parameter(storage):
    pairs = [make_pairs()[0], ("half", make_pairs(torch.bfloat16)[2][1])]
    last = [("small", make_pairs(torch.bfloat16, seed=1)[0][1])]
    optimizer = MaskedAdamW([{"params": pairs}, {"params": last, "storage": storage}], lr=1e-2)
    before = values(pairs + last)
    for _, p in pairs + last:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, values(pairs + last), strict=True))
    found = {name: state["storage"] for name, state in optimizer.state_dict()["state"].items()}
    assert found == {"up.weight": "fp32", "half": "bf16_sr", "small": storage}


def test_a_closure_and_a_gradient_with_strange_strides_are_served():
    p = torch.nn.Parameter(torch.randn(4, 6))
    optimizer = MaskedAdamW([("w", p)], lr=1e-2)

    def closure():
        loss = p.square().sum()
        p.grad = torch.ones(6, 4).T
        return loss

    assert optimizer.step(closure).requires_grad
    assert p.grad.is_contiguous()


def half():
    return [("w", torch.nn.Parameter(torch.zeros(3).half()))]


@pytest.mark.parametrize(("params", "options", "words"), [
    (lambda: dict(make_pairs()), {}, r"must come in a list or another iterable, not in a dict"),
    (lambda: [*SHAPES], {}, r"as tensors or \(name, tensor\) pairs, .* but there is 'up.weight'"),
    (lambda: torch.nn.Linear(2, 2), {}, r"are needed, not a Linear; cofitune_fast.apply\(model, region\) freezes all"),
    (lambda: [*make_pairs(), torch.nn.Parameter(torch.ones(1))], {}, r"give names to all or none of them"),
    (lambda: [{"params": {p for _, p in make_pairs()}}], {}, r"a set of parameters has no order"),
    (lambda: [make_pairs()[0][1]] * 2, {}, r"parameter 1 is given twice, the first time as parameter 0"),
    (lambda: [], {}, r"no parameters to train"),
    (lambda: make_pairs() + make_pairs(), {}, r"two parameters are named up.weight; name them as in the whole"),
    (half, {}, r"w is float16, which cannot be trained here; load the model in bfloat16 or float32"),
    (make_pairs, {"storage": "bf16_sr"}, r"storage 'bf16_sr' does not fit up.weight, which is float32"),
    (lambda: make_pairs(torch.bfloat16), {"storage": "fp32"}, r"storage 'fp32' does not fit up.weight"),
    (make_pairs, {"storage": "int8"}, r"storage 'int8' does not fit up.weight, which is float32"),
    (make_pairs, {"storage": "int4"}, r"must be one of auto, fp32, bf16_split, bf16_sr, bf16, int8, not 'int4'"),
    (make_pairs, {"lr": torch.ones(2)}, r"lr must be a number or a tensor of one element"),
    (make_pairs, {"lr": torch.tensor(-1.0)}, r"lr must not be negative"),
    (make_pairs, {"mask_mode": "soft"}, r"mask_mode must be 'update' or 'gradient', not 'soft'"),
    (make_pairs, {"lr": -1e-3}, r"lr must not be negative, but it is -0.001"),
    (make_pairs, {"betas": (0.9, 1.5)}, r"betas must lie in \[0, 1\)"),
    (make_pairs, {"max_grad_norm": 0}, r"max_grad_norm must be positive or None, not 0"),
    (make_pairs, {"masks": {"gate.weight": torch.ones(1)}}, r"masks for gate.weight, which this optimizer does not"),
    (make_pairs, {"masks": {"up.weight": torch.full((8, 1), 1.5)}}, r"mask of up.weight has values outside \[0, 1\]"),
    (make_pairs, {"masks": {"up.bias": torch.full((8,), float("nan"))}}, r"up.bias has values outside \[0, 1\]"),
    (make_pairs, {"masks": {"up.weight": torch.ones(8)}}, r"the mask of up.weight of shape \[8\] does not fit"),
    (make_pairs, {"masks": {"up.bias": torch.ones(8, dtype=torch.bool)}}, r"must be float32, or uint8 in units of 1"),
    (lambda: [("t", torch.nn.Parameter(torch.zeros(4, 1).expand(4, 3)))], {}, r"several elements of t share memory"),
])
def test_what_does_not_fit_is_refused(params, options, words):
    with pytest.raises(CofituneError, match=words):
        MaskedAdamW(params(), **options)


@pytest.mark.parametrize("storage", ["fp32", "bf16_split", "int8"])
def test_parameters_with_gaps_in_memory_step_like_contiguous_ones(storage):
    dtype = torch.float32 if storage == "fp32" else torch.bfloat16
    whole = torch.randn(4, 48, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = whole.clone()
    parts = {"rows": whole.narrow(1, 8, 16), "transposed": whole[0, 40:].T, "every second": whole[1:, :3, ::2]}
    strided = [(name, torch.nn.Parameter(part)) for name, part in parts.items()]
    plain = [(name, torch.nn.Parameter(part.clone(memory_format=torch.contiguous_format))) for name, part in
             parts.items()]
    optimizers = [MaskedAdamW(pairs, lr=1e-2, storage=storage) for pairs in (strided, plain)]
    for step in range(3):
        for (_, p), (_, q) in zip(strided, plain, strict=True):
            q.grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(step)).to(dtype)
            p.grad = q.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for (name, p), (_, q) in zip(strided, plain, strict=True):
        assert torch.equal(p, q), name
        assert p.data_ptr() == parts[name].data_ptr()
    for part in parts.values():
        part.zero_()
    others = torch.ones_like(before, dtype=torch.bool)
    for part in (others.narrow(1, 8, 16), others[0, 40:].T, others[1:, :3, ::2]):
        part.zero_()
    assert torch.equal(whole[others], before[others])


def test_a_sparse_gradient_is_refused():
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = MaskedAdamW(embedding.named_parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(CofituneError, match="the gradient of weight is sparse"):
        optimizer.step()


def test_a_forced_backend_that_cannot_run_is_refused_at_the_step():
    pairs = make_pairs()
    set_grads(pairs, 0)
    with pytest.raises(CofituneError, match="the backend 'cuda' cannot run"):
        MaskedAdamW(pairs, backend="cuda").step()
