"""Kernels run in Triton's interpreter on CPU tensors (tests/conftest.py sees to it), or compiled where a GPU is."""

from __future__ import annotations

import pytest
import torch

from cofitune_fast.ops import triton


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    """The device whose tensors a kernel is tested on."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device is there")
    if triton.load_error() is not None or request.param not in triton.devices():
        pytest.skip(triton.load_error() or "kernels are interpreted only where TRITON_INTERPRET=1 is set")
    return request.param
