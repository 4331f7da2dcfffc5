"""The reductions on tensors of more than 2^31 elements: the last program alone runs, and touches its own pages alone.

The tensors are maps of sparse files, so that they need neither memory nor a disk of their size.
"""

from __future__ import annotations

import pytest
import torch

from cofitune_fast.ops import triton

ROWS, COLUMNS = 2**16 + 1, 2**15  # the last row begins at 2^31


@pytest.fixture
def sparse(tmp_path):
    def make(dtype):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.bin"
        return torch.from_file(str(path), shared=True, size=ROWS * COLUMNS, dtype=dtype).view(ROWS, COLUMNS)

    return make


@pytest.fixture
def last_program_only(device, monkeypatch):
    if device != "cpu":
        pytest.skip("programs are left out in the interpreter alone")
    from triton.runtime import interpreter

    def last_of_many(*bounds):
        return range(*bounds)[-1:] if len(bounds) == 1 and bounds[0] > 2**10 else range(*bounds)

    monkeypatch.setattr(interpreter, "range", last_of_many, raising=False)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("last_program_only")
def test_squares(sparse):
    kernel, grad = triton.kernel("grad_norm"), sparse(torch.bfloat16)
    pieces = grad.numel() // kernel.PIECE
    grad[-1] = normal(COLUMNS).bfloat16()
    sums = torch.zeros(pieces)
    kernel.squares_kernel[(pieces,)](sums, grad, 0, grad.numel(), kernel.PIECE, kernel.BLOCK)
    torch.testing.assert_close(sums[-1].double(), grad[-1].double().square().sum(), rtol=1e-6, atol=0)


@pytest.mark.usefixtures("last_program_only")
def test_row_dots(sparse):
    weight, grad = sparse(torch.bfloat16), sparse(torch.bfloat16)
    weight[-1], grad[-1] = normal(COLUMNS).bfloat16(), normal(COLUMNS, seed=1).bfloat16()
    [dots] = triton.kernel("grad_norm").row_dots([weight], [grad])
    torch.testing.assert_close(dots[-1].double(), weight[-1].double() @ grad[-1].double(), rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("last_program_only")
@pytest.mark.parametrize("samples", [1, ROWS])
def test_unit_importance(sparse, samples):
    kernel, y, grad_y = triton.kernel("unit_importance"), sparse(torch.bfloat16), sparse(torch.bfloat16)
    y[-1], grad_y[-1] = normal(COLUMNS).bfloat16(), normal(COLUMNS, seed=1).bfloat16()
    tokens = ROWS // samples
    splits = -(-tokens // kernel.SPLIT)
    sums = sparse(torch.float32)[: samples * splits].view(samples, splits, COLUMNS)
    kernel.columns_kernel[(samples * splits * COLUMNS // kernel.COLUMNS,)](
        sums, y, grad_y, None, tokens, COLUMNS, kernel.SPLIT, kernel.TOKENS, kernel.COLUMNS
    )
    last = slice(COLUMNS - kernel.COLUMNS, COLUMNS)
    torch.testing.assert_close(sums[-1, -1, last], y[-1, last].float() * grad_y[-1, last].float())


@pytest.mark.usefixtures("last_program_only")
def test_linear_kl(sparse):
    z_p, z_q = sparse(torch.float32), sparse(torch.float32)
    z_p[-1], z_q[-1] = normal(COLUMNS), normal(COLUMNS, seed=1)
    log_p, log_q = (z[-1].double().log_softmax(-1) for z in (z_p, z_q))
    kl = triton.kernel("linear_kl").kl_rows(z_p, z_q, None, True)[-1]
    torch.testing.assert_close(kl.double(), (log_p.exp() * (log_p - log_q)).sum(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(z_q[-1].double(), log_q.exp() - log_p.exp(), rtol=1e-4, atol=1e-9)


@pytest.mark.usefixtures("last_program_only")
def test_softmax(sparse):
    z = sparse(torch.float32)
    z[-1] = normal(COLUMNS)
    expected = z[-1].double()
    sums = triton.kernel("softmax").log_sum_exp(z)
    torch.testing.assert_close(sums[-1].double(), expected.logsumexp(-1), rtol=1e-6, atol=1e-6)
    triton.kernel("softmax").scaled_softmax(z, sums, torch.full_like(sums, 2.0))
    torch.testing.assert_close(z[-1].double(), 2 * expected.softmax(-1), rtol=1e-5, atol=0)
