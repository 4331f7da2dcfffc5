"""PeakMemory sees what was allocated and freed inside its block, and nothing of what came before."""

from __future__ import annotations

import pytest
import torch

from cofitune_fast.memory import PeakMemory, peak

MB = 10**6
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the peak is the GPU's")


def resettable() -> bool:
    try:
        peak._CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


@on_cpu
@pytest.mark.skipif(not resettable(), reason="this system does not reset the high-water mark")
def test_an_allocation_that_is_freed_inside_counts_and_is_forgotten_afterwards():
    with PeakMemory() as before:
        pass
    with PeakMemory() as block:
        tensor = torch.ones(75 * MB)  # float32, every page touched
        del tensor
    with PeakMemory() as after:
        pass
    # 30 MB of slack: what the interpreter and the allocator take and give back meanwhile.
    assert 270 * MB < block.bytes - before.bytes < 330 * MB
    assert block.bytes - after.bytes > 270 * MB
    assert block.measure == "resident memory of the process"


@on_cpu
def test_without_a_reset_the_measure_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(peak, "_CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    with PeakMemory() as block:
        pass
    assert block.measure == "resident memory of the process since its start"
    assert block.bytes > 10 * MB


@on_cpu
def test_without_proc_the_mark_is_that_of_getrusage(monkeypatch, tmp_path):
    monkeypatch.setattr(peak, "_STATUS", tmp_path / "status")
    with PeakMemory() as block:
        pass
    assert block.bytes > 10 * MB


@on_cpu
def test_the_peak_is_there_after_an_exception_too():
    block = PeakMemory()
    with pytest.raises(ZeroDivisionError), block:
        1 / 0  # noqa: B018
    assert block.bytes > 10 * MB


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_counts_what_torch_allocated():
    with PeakMemory() as before:
        pass
    with PeakMemory() as block:
        tensor = torch.ones(75 * MB, device="cuda")
        del tensor
    assert 300 * MB <= block.bytes - before.bytes <= 303 * MB  # the allocator rounds up to 2 MiB
    assert block.measure == "GPU memory allocated by PyTorch"
