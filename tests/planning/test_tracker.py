"""The tracker of live bytes: by hand, against PyTorch's allocator, and fake tensors against real ones."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import accumulate

import pytest
import torch
from plan_cases import TrainingStep, make_batch
from tiny import make_tiny_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from cofitune_fast.planning.tracker import LiveBytes
from cofitune_fast.planning.work import Work
from cofitune_fast.regions import Region

KINDS = pytest.mark.parametrize("mode", [nullcontext, FakeTensorMode], ids=["real", "fake"])


@KINDS
def test_what_is_made_counts_until_its_last_view_is_gone(mode):
    with mode(), LiveBytes() as live:
        x = torch.zeros(1000)
        y = x[10:].view(-1, 10)
        assert live.live == live.peak == 4000
        z = x + 1
        assert live.live == live.peak == 8000
        del x, z
        assert live.live == 4000
        y += 1
        assert (live.live, live.peak) == (4000, 8000)
        del y
        assert (live.live, live.peak) == (0, 8000)


@KINDS
def test_what_stood_before_does_not_count_nor_do_its_views(mode):
    with mode():
        before = torch.zeros(1000)
        with LiveBytes() as live:
            view = before.view(10, 100)
            before.add_(1)
            assert live.live == live.peak == 0
            made = view * 2
            assert live.live == 4000
        assert made.sum() is not None and live.live == 4000  # nothing is followed behind the block


def test_kinds_and_a_restarted_peak():
    weight = torch.zeros(100)
    with LiveBytes() as live:
        live.count([weight], "weights")
        x = torch.zeros(50)
        live.count([x], "inputs")
        y = torch.zeros(500)
        del y
        assert live.at_peak == {"weights": 400, "inputs": 200, "made": 2000} and live.peak == 2600
        live.restart()
        assert live.at_peak == {"weights": 400, "inputs": 200} and live.peak == 600
        live.rename("inputs", "weights")
        assert +live.kinds == {"weights": 600}
        live.exclude([x])
        del x
        assert live.live == 400


def test_a_kernel_that_needs_much_for_itself():
    with LiveBytes() as live:
        x = torch.zeros(4, 1000)
        x.logsumexp(-1)
    assert 2 * x.nbytes <= live.peak <= 2 * x.nbytes + 64 and live.at_peak["made"] == live.peak


def test_the_backward_is_followed():
    with LiveBytes() as live:
        x = torch.zeros(1000, requires_grad=True)
        y = (x * 2).relu().sum()
        forward = live.live
        y.backward()
        assert live.live > forward - 4004 and x.grad.nbytes == 4000
        del y
        assert live.live == 8000  # x and its gradient


def test_an_error_in_the_block_ends_it():
    with pytest.raises(ZeroDivisionError), LiveBytes() as live:
        torch.zeros(10)
        raise ZeroDivisionError
    assert torch.zeros(10).sum() == 0 and live.peak == 40


@pytest.mark.parametrize("region", ["ffn.up+ffn.down@1-2", "full"])
def test_a_training_step_against_the_allocator(region):
    """PyTorch's own account of its CPU allocator; what it sees beyond the tracker is inside kernels."""
    model = make_tiny_model(vocab_size=1000, hidden_size=128, intermediate_size=344, head_dim=32)
    step = TrainingStep(model, Region.parse(region), make_batch(4, 64, 24))
    step()
    with LiveBytes() as live:
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    assert live.peak == pytest.approx(max(accumulate(event.nbytes() for event in events)), rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fake_tensors_take_what_real_ones_take(checkpointing):
    def peak():
        layer = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
        with LiveBytes() as live:
            x = torch.zeros(32, 64, requires_grad=True)
            y = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False) if checkpointing else layer(x)
            y.pow(2).sum().backward()
        return live.peak

    real = peak()
    with FakeTensorMode():
        assert peak() == real > 0


@KINDS
def test_work_counts_products_and_traffic(mode):
    with mode(), Work() as work:
        a, b = torch.zeros(8, 16), torch.zeros(16, 4)
        work.restart()
        c = a @ b
        assert work.count == (2 * 8 * 16 * 4, 0)
        c.view(-1).add_(1)  # read and written; the view moves nothing
        assert work.count == (2 * 8 * 16 * 4, 2 * c.nbytes)
