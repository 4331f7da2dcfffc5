"""What only a GPU can show of the CUDA kernels: streams, graphs, syncs, launches, and more than 2^31 elements."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from ops.ops_cases import OPTIONS, Case, assert_same_bits, bits, make_case

from cofitune_fast.ops import cuda, grad_norm, masked_adamw_
from cofitune_fast.ops._registry import OPERATIONS
from cofitune_fast.ops._storage import STORAGES

pytestmark = [pytest.mark.gpu,
              pytest.mark.skipif(cuda.load_error() is not None, reason=str(cuda.load_error()))]
SHAPES = [(64, 512), (33, 700), (4097,)]


@contextmanager
def no_sync():
    """Any wait of the host for the device is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def in_place(case: Case, **options) -> None:
    masked_adamw_(**case.arguments(), **{**OPTIONS, "step": 3, "backend": "cuda", **options})


def test_cuda_tensors_take_the_cuda_kernels():
    for name in ("masked_adamw_", "grad_norm"):
        assert OPERATIONS[name].choose("auto", torch.device("cuda")) == "cuda"


@pytest.mark.parametrize("storage", STORAGES)
def test_nothing_waits_for_the_device(storage):
    case = make_case(storage, "row", SHAPES, anchored="row")
    there = case.to("cuda")
    in_place(there.copy())  # loads the kernels
    with no_sync():
        clip = grad_norm(there.grads, 1.0, weights=there.params, backend="cuda").clip
        in_place(there, clip=clip)
    assert_same_bits(there.to("cpu"), case.step(backend="reference", clip=clip.cpu()))


@pytest.mark.parametrize("storage", STORAGES)
def test_a_graph_goes_on_with_new_learning_rates_and_steps(storage):
    """Captured once with lr and step on the device, replayed three times, against three calls with the same."""
    before = make_case(storage, "row", SHAPES, anchored="column").to("cuda")
    captured, called = before.copy(), before.copy()
    lr, step = torch.tensor(0.01, dtype=torch.float64, device="cuda"), torch.tensor(0, device="cuda")

    def work(case):
        clip = grad_norm(case.grads, 1.0, backend="cuda").clip
        in_place(case, lr=lr, step=step, clip=clip)

    step.fill_(1)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        work(captured.copy())  # loads the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work(captured)
    for number, rate in enumerate((0.02, 0.01, 0.005), start=1):
        step.fill_(number)
        lr.fill_(rate)
        graph.replay()
        work(called)
    torch.cuda.synchronize()
    assert_same_bits(captured, called)
    assert (bits(captured.params[0]) != bits(before.params[0])).any()


def test_it_runs_on_the_current_stream():
    """On a side stream the step comes after a long wait and the write behind it; on the default one it would not."""
    case = make_case("fp32", "none", [(1 << 20,)])
    there = case.to("cuda")
    new_grads = [g * 2 for g in there.grads]
    in_place(there.copy())
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        for old, new in zip(there.grads, new_grads, strict=True):
            old.copy_(new)
        norm = grad_norm(there.grads, backend="cuda").norm
        in_place(there)
    torch.cuda.synchronize()
    case.grads = [g * 2 for g in case.grads]
    assert_same_bits(there.to("cpu"), case.step(backend="reference"))
    torch.testing.assert_close(norm.cpu(), grad_norm(case.grads, backend="reference").norm, rtol=1e-6, atol=0)


def test_300_tensors_are_one_launch():
    there = make_case("bf16_sr", "row", [(64, 64)] * 300).to("cuda")
    in_place(there)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        in_place(there)
        torch.cuda.synchronize()
    names = [event.name for event in profile.events()]
    if not any("kernel" in name for name in names):
        pytest.skip("the profiler sees no kernels here")
    assert sum("masked_adamw_kernel" in name for name in names) == 1


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["bf16_split", "int8"])
def test_more_than_2_to_the_31_elements(storage):
    """Of a matrix of 2^31 and some elements all rows but the last two have the factor 0."""
    form, shape = STORAGES[storage], ((1 << 15) + 2, 1 << 16)
    small = make_case(storage, "none", [(2, shape[1])])
    dtypes = {"params": form.weight, "grads": form.weight, "exp_avgs": form.moment, "exp_avg_sqs": form.moment,
              "remainders": torch.int16}
    try:
        lists = {name: [torch.empty(shape, dtype=dtype, device="cuda")] for name, dtype in dtypes.items()
                 if getattr(small, name)}
        if form.scaled:
            lists["scales"] = [torch.empty(shape[0], shape[1] // 256, 2, device="cuda")]
    except torch.OutOfMemoryError:
        pytest.skip("the device's memory is too small")
    for name, tensors in lists.items():
        tensors[0][-2:] = getattr(small, name)[0].cuda()
    case = Case(storage, **lists, masks=[torch.zeros(shape[0], 1, device="cuda")])
    case.masks[0][-2:] = 1
    in_place(case)
    expected = small.step(offsets=[2**31], backend="reference")
    for name, tensors in lists.items():
        assert torch.equal(bits(tensors[0][-2:].cpu()), bits(getattr(expected, name)[0])), name


@pytest.mark.slow
def test_the_norm_of_more_than_2_to_the_31_elements():
    grads = [torch.full((1 << 31,), 0.5, dtype=torch.bfloat16, device="cuda"), torch.ones(3, device="cuda")]
    assert grad_norm(grads, backend="cuda").norm.item() == pytest.approx((2**29 + 3) ** 0.5, rel=1e-6)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device is there")
def test_the_tensors_device_is_used_and_the_current_one_stays():
    case = make_case("bf16", "row", SHAPES)
    there = case.to("cuda:1")
    in_place(there)
    assert torch.cuda.current_device() == 0
    assert_same_bits(there.to("cpu"), case.step(backend="reference"))
