"""kernels/masked_adamw.py gives the reference's bits: in Triton's interpreter, and on a GPU where one is."""

from __future__ import annotations

import pytest
import torch
from cases import FULL, each, pairwise
from ops.ops_cases import BYTES, KINDS, LAYOUTS, MASKS, MODES, SHAPES, Case, assert_same_bits, bits, make_case

from cofitune_fast.ops import triton
from cofitune_fast.ops._registry import OPERATIONS
from cofitune_fast.ops._storage import STORAGES

# NumPy, with which the interpreter calculates, warns of quotients and casts whose results are not used.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SMALL = [(1,), (17,), (3, 5), (), (0, 4), (2, 3, 5)]


def both(case: Case, device: str, **options) -> tuple[Case, Case]:
    """`case` after a step by Triton on `device`, and by the reference on the CPU; both on the CPU."""
    clip = options.pop("clip", None)
    ours = case.to(device).step(backend="triton", clip=None if clip is None else clip.to(device), **options)
    return ours.to("cpu"), case.step(backend="reference", clip=clip, **options)


@pairwise({"storage": STORAGES, "layout, dtype": MASKS, "mode": MODES, "anchored": ["none", "row"],
           "zero_grad": [False, True]})
def test_the_reference_bits(storage, layout, dtype, mode, anchored, zero_grad, device):
    """On rows of two blocks and, in turn, on one of the small shapes: an interpreted launch takes some 20 ms."""
    turn = MASKS.index((layout, dtype)) + list(STORAGES).index(storage)
    case = make_case(storage, layout, [(5, 300), SMALL[turn % len(SMALL)]], mask_dtype=dtype, anchored=anchored)
    clip = torch.tensor([0.5, 0.0]) if anchored == "none" else None
    assert_same_bits(*both(case, device, mask_mode=mode, clip=clip, zero_grad=zero_grad))


# Rows are cut into pieces alike in all storages but int8, whose pieces share a scale.
@pairwise({"shape": [*SHAPES, (2, 2500), (700, 2)], "storage": STORAGES if FULL else ["bf16_split", "int8"]})
def test_every_shape(storage, shape, device):
    case = make_case(storage, "row", [shape])
    assert_same_bits(*both(case, device, seed=3))


@pairwise({"kind": KINDS, "layout": ["none", "row", "element"], "anchored": LAYOUTS[1:]})
def test_every_layout_of_the_pull(kind, layout, anchored, device):
    case = make_case("fp32", layout, [(5, 300)], anchored=anchored)
    assert_same_bits(*both(case, device, pull_kind=kind))


@pairwise({"storage": STORAGES, "layout": ["row", "column"], "mode": MODES})
def test_the_l1_pull_in_every_storage(storage, layout, mode, device):
    case = make_case(storage, layout, [(5, 300), (17,)], anchored="row")
    assert_same_bits(*both(case, device, mask_mode=mode, pull_kind="l1", clip=torch.tensor([0.5, 0.0])))


@each({"offset": [0, 2**31 - 5, 3 * 10**9, 2**32 - 700, 2**33, 2**62],
       "seed": [0, 2**31, 3 * 10**9, 2**63 - 1, -1, -(2**63)]})
def test_random_numbers_of_any_seed_step_and_counter(offset, seed, device):
    """Among the counters one whose upper half changes within the tile."""
    case = make_case("bf16", "row", [(3, 300)])
    assert_same_bits(*both(case, device, seed=seed, offsets=[offset], step=1 + abs(seed) // 2))


@pytest.mark.parametrize("layout", ["none", "row", "element"])
@pytest.mark.parametrize("storage", STORAGES)
def test_denormals_signed_zeros_infinities_and_nans(storage, layout, device):
    """Every pair of a weight and a gradient, in rows and with moments of all sizes. Which NaN arises is up to the
    processor; the rest is the same bits."""
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-40, 1e-38, 1e-20, 1.0, 3e38, -3e38,
                            float("inf"), -float("inf"), float("nan")])
    size = len(special)
    case = make_case(storage, layout, [(size, size)])
    case.params = [special.repeat(size, 1).to(case.params[0].dtype)]
    case.grads = [special[:, None].expand(size, size).to(case.grads[0].dtype).contiguous()]
    if not case.scales:
        case.exp_avgs[0][:, ::2] = special[:, None]
        case.exp_avg_sqs[0][:, ::3] = special[:, None].abs()
    ours, reference = both(case, device)
    for name in ("params", "exp_avgs", "exp_avg_sqs", "scales"):
        for a, b in zip(getattr(ours, name), getattr(reference, name), strict=True):
            if a.dtype == BYTES:
                a, b = (torch.where(c.scales[0][..., 0].isnan(), 0, x) for c, x in ((ours, a), (reference, b)))
                assert torch.equal(a, b)
            else:
                assert torch.equal(a.isnan(), b.isnan())
                assert torch.equal(bits(a)[~a.isnan()], bits(b)[~b.isnan()])
    assert not case.remainders or torch.equal(ours.remainders[0], reference.remainders[0])


@pytest.mark.parametrize("layout", ["none", "column"])
@pytest.mark.parametrize("storage", STORAGES)
def test_the_skip_flag_leaves_all_bytes_but_zeroes(storage, layout, device):
    case = make_case(storage, layout, [(5, 300), (17,)]).to(device)
    flag = torch.tensor([float("nan"), 1.0], device=device)
    assert_same_bits(case, case.step(backend="triton", clip=flag))
    zeroed = case.step(backend="triton", clip=flag, zero_grad=True)
    assert not any(grad.any() for grad in zeroed.grads)
    zeroed.grads = case.grads
    assert_same_bits(case, zeroed)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_mask_of_zeros_leaves_all_bytes_but_zeroes(storage, layout, device):
    case = make_case(storage, layout, [(5, 300)]).to(device)
    case.masks[0].zero_()
    result = case.step(backend="triton", zero_grad=True)
    assert not result.grads[0].any()
    result.grads = case.grads
    assert_same_bits(case, result)


def test_no_tensors_are_no_work(device):
    Case("fp32", [], [], [], []).step(backend="triton")


def test_lr_and_step_may_be_tensors_on_the_device(device):
    case = make_case("bf16", "row", [(5, 300)])
    lr, step = torch.tensor(1e-2, dtype=torch.float64), torch.tensor(3)
    ours = case.to(device).step(backend="triton", lr=lr.to(device), step=step.to(device))
    for a, b in zip(ours.to("cpu").written().values(), case.step(backend="reference").written().values(), strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=2**-7, atol=1e-7)  # the device's power function rounds otherwise


def test_cpu_tensors_are_interpreted_only_if_asked_by_name():
    choose = OPERATIONS["masked_adamw_"].choose
    assert choose("auto", torch.device("cpu")) in ("cpu", "reference")
    if triton.load_error() is None and "cpu" in triton.devices():
        assert choose("triton", torch.device("cpu")) == "triton"


@pytest.mark.gpu
def test_other_numbers_do_not_compile_again(device):
    if device != "cuda":
        pytest.skip("nothing is compiled in the interpreter")
    kernel = triton.kernel("masked_adamw").masked_adamw_kernel
    case = make_case("bf16", "row", [(64, 4096)]).to(device)
    case.step(backend="triton")
    before = sum(len(cache[0]) for cache in kernel.device_caches.values())
    for number in (2, 16, 2**31, 2**40):
        case.step(backend="triton", lr=1 / number, step=number, seed=number, offsets=[number])
    assert sum(len(cache[0]) for cache in kernel.device_caches.values()) == before
