"""masked_adamw_ against float64, against torch's own chain, and its invariants, for every backend that can run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.ops_cases import BACKENDS, LAYOUTS, OPTIONS, TOLERANCE, Case, assert_same_bits, bits, make_case, needs_native

from cofitune_fast.ops import grad_norm, masked_adamw_, native

STORAGES = ["fp32", "bf16_sr"]
MODES = ["update", "gradient"]


def in_float64(case: Case, step: int, mode: str, clip: float = 1.0) -> list[tuple[torch.Tensor, ...]]:
    """AdamW as Loshchilov and Hutter write it, with the mask, in double precision: the tests' own statement."""
    lr, (b1, b2), eps, decay = OPTIONS["lr"], OPTIONS["betas"], OPTIONS["eps"], OPTIONS["weight_decay"]
    results = []
    for p, g, m, v, mask in zip(*case.lists(), case.masks, strict=True):
        p, g, m, v = p.double(), g.double() * clip, m.double(), v.double()
        mask = torch.ones_like(p) if mask is None else mask.double().expand_as(p)
        if mode == "gradient":
            g = g * mask
        m_new, v_new = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        adam = (m_new / (1 - b1**step)) / ((v_new / (1 - b2**step)).sqrt() + eps)
        p_new = p - lr * adam - lr * decay * p
        if mode == "update":
            p_new = p + mask * (p_new - p)
            p_new, m_new, v_new = (torch.where(mask == 0, a, b) for a, b in ((p, p_new), (m, m_new), (v, v_new)))
        results.append((p_new, m_new, v_new))
    return results


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("storage", STORAGES)
def test_matches_float64_element_by_element(storage, layout, mode, backend):
    case = make_case(storage, layout)
    result = case.step(step=3, mask_mode=mode, clip=torch.tensor([0.5, 0.0]), backend=backend)
    expected = in_float64(case, 3, mode, clip=0.5)
    for index, (p, m, v) in enumerate(expected):
        torch.testing.assert_close(result.params[index].double(), p, **TOLERANCE[storage])
        torch.testing.assert_close(result.exp_avgs[index].double(), m, **TOLERANCE["fp32"])
        torch.testing.assert_close(result.exp_avg_sqs[index].double(), v, **TOLERANCE["fp32"])
        assert torch.equal(result.grads[index], case.grads[index])


@needs_native
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("storage", STORAGES)
def test_native_gives_the_reference_bits_on_every_instruction_set(storage, layout, isa):
    best = native.isa()
    try:
        native.library().use_isa(isa)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        for mode in MODES:
            case = make_case(storage, layout)
            options = {"mask_mode": mode, "seed": 11, "zero_grad": True, "clip": torch.tensor([0.7, 0.0])}
            assert_same_bits(case.step(backend="cpu", **options), case.step(backend="reference", **options))
    finally:
        native.library().use_isa(best)


@needs_native
@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple), max_size=4),
    layout=st.sampled_from(LAYOUTS), storage=st.sampled_from(STORAGES), mode=st.sampled_from(MODES),
    offset=st.sampled_from([0, 2**32 - 37, 2**61]), seed=st.integers(-(2**63), 2**63 - 1),
)
def test_native_gives_the_reference_bits_for_any_shapes(shapes, layout, storage, mode, offset, seed):
    case = make_case(storage, layout, shapes)
    options = {"mask_mode": mode, "seed": seed, "offsets": [offset] * len(shapes)}
    assert_same_bits(case.step(backend="cpu", **options), case.step(backend="reference", **options))


@needs_native
@pytest.mark.parametrize("storage", STORAGES)
def test_the_number_of_threads_changes_no_bit(storage):
    case = make_case(storage, "row", [(300, 1000), (70_000,)])
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(case.step(backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_mask_it_is_torch_adamw(backend):
    case = make_case("fp32")
    ours = case.copy()
    theirs = [p.clone().requires_grad_() for p in case.params]
    for tensors in (ours.exp_avgs, ours.exp_avg_sqs):
        for tensor in tensors:
            tensor.zero_()
    optimizer = torch.optim.AdamW(theirs, foreach=False, **OPTIONS)
    for step in range(1, 6):
        grads = [g * step for g in case.grads]
        masked_adamw_(ours.params, grads, ours.exp_avgs, ours.exp_avg_sqs, step=step, backend=backend, **OPTIONS)
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g
        optimizer.step()
    for p, q in zip(ours.params, theirs, strict=True):
        torch.testing.assert_close(p, q.detach(), **TOLERANCE["fp32"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_one_fused_step_is_clip_then_mask_then_adamw_then_zero(mode, backend):
    case = make_case("fp32", "row")
    chain = [p.clone().requires_grad_() for p in case.params]
    optimizer = torch.optim.AdamW(chain, foreach=False, **OPTIONS)
    for p, g in zip(chain, case.grads, strict=True):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(chain, 1.0)
    before = [p.detach().clone() for p in chain]
    if mode == "gradient":
        for p, mask in zip(chain, case.masks, strict=True):
            p.grad *= 1 if mask is None else mask
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)

    fused = case.copy()
    for tensor in (*fused.exp_avgs, *fused.exp_avg_sqs):
        tensor.zero_()
    clip = grad_norm(fused.grads, 1.0, backend=backend).clip
    masked_adamw_(*fused.lists(), fused.masks, step=1, clip=clip, mask_mode=mode, zero_grad=True, backend=backend,
                  **OPTIONS)
    for p, start, q, g, mask in zip(fused.params, before, chain, fused.grads, case.masks, strict=True):
        expected = q.detach()
        if mode == "update" and mask is not None:
            expected = start + mask * (expected - start)
        torch.testing.assert_close(p, expected, **TOLERANCE["fp32"])
        assert not g.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("mode", MODES)
def test_a_mask_of_ones_is_no_mask_bit_for_bit(mode, storage, backend):
    case = make_case(storage)
    plain = case.step(mask_mode=mode, backend=backend)
    for layout in ("row", "column", "element"):
        masks = [None if m is None else torch.ones_like(m) for m in make_case(storage, layout).masks]
        ones = Case(storage, *case.lists(), masks)
        assert_same_bits(plain, ones.step(mask_mode=mode, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("layout", ["row", "column", "element"])
def test_where_the_update_mask_is_zero_no_byte_changes(layout, storage, backend):
    case = make_case(storage, layout, [(64, 33)])
    zero = (case.masks[0] == 0).expand(64, 33)
    assert 0 < zero.sum() < zero.numel()
    result = case.step(backend=backend)
    for before, after in zip(case.lists(), result.lists(), strict=True):
        assert torch.equal(bits(before[0])[zero], bits(after[0])[zero])
    assert (result.exp_avgs[0] != case.exp_avgs[0])[~zero].all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_mask_of_zero_still_decays(backend):
    case = make_case("fp32", shapes=[(4, 6)])
    case.exp_avgs[0].zero_()
    case.masks = [torch.zeros(4, 1)]
    result = case.step(mask_mode="gradient", backend=backend)
    torch.testing.assert_close(result.params[0], case.params[0] * (1 - 1e-2 * 0.1), **TOLERANCE["fp32"])
    torch.testing.assert_close(result.exp_avg_sqs[0], case.exp_avg_sqs[0] * 0.95, **TOLERANCE["fp32"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["row", "element"])
def test_permuting_rows_commutes_with_the_step(layout, backend):
    case = make_case("fp32", layout, [(64, 33)])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    permuted = Case("fp32", *([t[0][order]] for t in case.lists()), [case.masks[0][order]])
    first, second = case.step(backend=backend), permuted.step(backend=backend)
    assert_same_bits(Case("fp32", *([t[0][order]] for t in first.lists())), second)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("storage", STORAGES)
def test_the_skip_flag_makes_the_step_a_no_op_that_still_zeroes(storage, backend):
    case = make_case(storage, "row")
    case.grads[0][0] = float("nan")
    flag = grad_norm(case.grads, 1.0, backend=backend).clip
    result = case.step(clip=flag, backend=backend)
    assert_same_bits(case, result)
    zeroed = case.step(clip=flag, zero_grad=True, backend=backend)
    for index in (0, 2, 3):
        for before, after in zip(case.lists()[index], zeroed.lists()[index], strict=True):
            assert torch.equal(before, after)
    assert not any(g.any() for g in zeroed.grads)


@needs_native
@pytest.mark.parametrize("storage", STORAGES)
def test_denormals_signed_zeros_and_infinities_give_the_reference_bits(storage):
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-40, 1e-38, 3e38, -3e38, float("inf"), -float("inf")])
    size = len(special)
    dtype = {"fp32": torch.float32, "bf16_sr": torch.bfloat16}[storage]
    grid = special.repeat(size, 1)
    case = Case(storage, [grid.to(dtype)], [grid.T.to(dtype).contiguous()], [torch.zeros(size, size)],
                [torch.zeros(size, size)], [None])
    ours, reference = case.step(backend="cpu"), case.step(backend="reference")
    for a, b in zip(ours.lists(), reference.lists(), strict=True):
        torch.testing.assert_close(a[0], b[0], rtol=0, atol=0, equal_nan=True)
        finite = ~torch.isnan(a[0])
        assert torch.equal(bits(a[0])[finite], bits(b[0])[finite])  # so that -0.0 is not taken for 0.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tensors_are_no_work(backend):
    masked_adamw_([], [], [], [], step=1, lr=0.1, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_library_op_keeps_its_schema(backend):
    case = make_case("bf16_sr", "row", [(6, 5), (3,)])
    arguments = (*case.lists(), case.masks, torch.tensor([0.5, 0.0]), 1e-2, 0.9, 0.95, 1e-8, 0.1, 2, "update",
                 "bf16_sr", 7, [0, 30], True, backend)
    torch.library.opcheck(torch.ops.cofitune_fast.masked_adamw_.default, arguments)


def test_it_survives_torch_compile():
    case = make_case("fp32", "row", [(6, 5)])

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(p, g, m, v, mask):
        masked_adamw_([p], [g], [m], [v], [mask], step=3, **OPTIONS)
        return p + 1

    compiled = case.copy()
    result = step(compiled.params[0], compiled.grads[0], compiled.exp_avgs[0], compiled.exp_avg_sqs[0], case.masks[0])
    eager = case.step()
    assert_same_bits(compiled, eager)
    torch.testing.assert_close(result, eager.params[0] + 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autograd_learns_that_the_parameter_changed(backend):
    p = torch.ones(3, requires_grad=True)
    loss = (p * p).sum()
    masked_adamw_([p], [torch.ones(3)], [torch.zeros(3)], [torch.zeros(3)], step=1, lr=0.1, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
