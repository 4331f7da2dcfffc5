"""MaskedAdamW over DTensors on two ranks (gloo, CPU) against the same run in one piece."""

from __future__ import annotations

import pytest
import torch
from optim.sharded_cases import CASES, WORLD, work


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """Per rank: case -> its traceback, or nothing. The ranks start once for all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_do_what_one_does(failures, case):
    for rank, found in enumerate(failures):
        assert not found[case], f"rank {rank}:\n{found[case]}"
