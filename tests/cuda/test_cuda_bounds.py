"""The CUDA kernels, emulated on the host, touch no byte before or behind their tensors."""

from __future__ import annotations

import ctypes
import faulthandler
import itertools
import mmap
import multiprocessing
from dataclasses import replace

import pytest
import torch
from ops.ops_cases import LAYOUTS, MASK_DTYPES, OPTIONS, Case, assert_same_bits, make_case

from cofitune_fast.ops import grad_norm, masked_adamw_
from cofitune_fast.ops._storage import STORAGES

pytestmark = pytest.mark.slow  # the emulated extension is compiled first

SHAPES = [(1,), (17,), (4097,), (3, 5), (64, 32), (), (3, 512), (3, 700), (2, 8448), (30, 8)]
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def fenced(tensor: torch.Tensor | None, at_end: bool) -> torch.Tensor | None:
    """A copy that ends, or else begins, at a page nobody may touch."""
    if tensor is None or not tensor.numel():
        return tensor
    page, size = mmap.PAGESIZE, tensor.nbytes
    inside = -(-size // page) * page
    start = _libc.mmap(None, inside + 2 * page, mmap.PROT_READ | mmap.PROT_WRITE,
                       mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    for fence in (start, start + page + inside):
        assert _libc.mprotect(fence, page, 0) == 0
    data = start + page + (inside - size if at_end else 0)
    memory = (ctypes.c_char * size).from_address(data)
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)


def fenced_case(case: Case, at_end: bool) -> Case:
    lists = {name: getattr(case, name) for name in (*case.written(), "masks", "anchors", "pulls")}
    return replace(case, **{name: tensors and [fenced(t, at_end) for t in tensors] for name, tensors in lists.items()})


def survives(work) -> bool:
    """Whether `work` ends well in a process of its own."""
    def quietly():
        faulthandler.disable()
        work()

    process = multiprocessing.get_context("fork").Process(target=quietly)
    process.start()
    process.join()
    return process.exitcode == 0


def test_the_fence_is_there():
    tensor = fenced(torch.zeros(5), at_end=True)
    assert survives(lambda: tensor[4].item())
    assert not survives(lambda: ctypes.string_at(tensor.data_ptr() + tensor.nbytes, 1))
    assert not survives(lambda: ctypes.string_at(fenced(tensor, at_end=False).data_ptr() - 1, 1))


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("storage", STORAGES)
def test_masked_adamw(emulated, storage, at_end):
    def work():
        for layout, mask_dtype in itertools.product(LAYOUTS, MASK_DTYPES):
            case = make_case(storage, layout, SHAPES, mask_dtype=mask_dtype, anchored=layout)
            there = fenced_case(case, at_end)
            masked_adamw_(**there.arguments(), **OPTIONS, step=3, zero_grad=True, backend="cuda")
            assert_same_bits(there, case.step(backend="reference", zero_grad=True))

    assert survives(work)


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grad_norm(emulated, dtype, at_end):
    def work():
        there = [fenced(torch.ones(shape, dtype=dtype), at_end) for shape in [*SHAPES, (70_000,)]]
        weights = [fenced(tensor, at_end) for tensor in there]
        exact = sum(tensor.numel() for tensor in there) ** 0.5
        for given in (None, weights):
            assert grad_norm(there, weights=given, backend="cuda").norm.item() == pytest.approx(exact, rel=1e-6)

    assert survives(work)
