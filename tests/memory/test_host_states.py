"""HostMaskedAdamW against MaskedAdamW: bits, accumulation, saving, what stays on the device."""

from __future__ import annotations

import contextlib
import copy
import weakref

import pytest
import torch
from memory.release_cases import backward_steps, make_trained, network_loss, plain_steps
from ops.ops_cases import MODES, bits
from optim.optim_cases import SHAPES, assert_same, make_pairs, values

from cofitune_fast.errors import CofituneError
from cofitune_fast.memory.host_states import HostMaskedAdamW, _Link, _Mirror
from cofitune_fast.ops._storage import STORAGES

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]


def make_hosted(storage, **options):
    return make_trained(storage, HostMaskedAdamW, **options)


def follow(expected, ordinary, pairs):
    """One step of MaskedAdamW on the host with the gradients that `pairs` have, wherever they lie."""
    for (_, p), (_, q) in zip(pairs, expected, strict=True):
        q.grad = None if p.grad is None else p.grad.to("cpu", copy=True)
    ordinary.step()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("max_grad_norm", [0.3, None])
@pytest.mark.parametrize("mask_mode", MODES)
@pytest.mark.parametrize("storage", STORAGES)
def test_it_is_masked_adamw_on_the_host_bit_for_bit(storage, mask_mode, max_grad_norm, device):
    options = {"mask_mode": mask_mode, "max_grad_norm": max_grad_norm}
    expected, ordinary = make_trained(storage, **options)
    pairs, optimizer = make_hosted(storage, device=device, **options)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 5) for o in (ordinary, optimizer)]
    for step in range(4):
        network_loss(pairs, step).backward()
        follow(expected, ordinary, pairs)  # the same gradients, as a GPU sums in another order
        for _, p in pairs:
            p.grad = None
        optimizer.backward(network_loss(pairs, step))
        assert all(p.grad is None for _, p in pairs)
        norm = optimizer.measure_grad_norm()
        optimizer.step()
        assert norm.item() == ordinary.last_grad_norm.item() == optimizer.last_grad_norm.item()
        for schedule in schedules:
            schedule.step()
        assert_same([p.cpu() for p in values(pairs)], values(expected))
    assert_same(optimizer.state_dict()["state"], ordinary.state_dict()["state"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("storage", ["fp32", "bf16_sr"])
def test_gradients_add_up_as_autograd_adds_them(storage, device):
    expected, ordinary = make_trained(storage, max_grad_norm=0.3)
    pairs, optimizer = make_hosted(storage, device=device, max_grad_norm=0.3)
    for step in range(3):
        for part in range(3):
            network_loss(pairs, 3 * step + part).backward()
        follow(expected, ordinary, pairs)
        optimizer.zero_grad()
        for part in range(3):
            optimizer.backward(network_loss(pairs, 3 * step + part))
        optimizer.step()
        assert_same([p.cpu() for p in values(pairs)], values(expected))


@pytest.mark.parametrize("device", DEVICES)
def test_no_state_and_no_gradient_stays_on_the_device(device):
    pairs, optimizer = make_hosted("bf16_split", device=device)
    backward_steps(pairs, optimizer, optimizer, range(2))
    tensors = [value for state in optimizer.state_dict()["state"].values() for value in state.values()
               if isinstance(value, torch.Tensor)]
    assert len(tensors) == 4 * len(pairs) and {t.device.type for t in tensors} == {"cpu"}
    assert all(p.grad is None and p.device.type == device for _, p in pairs)
    ours = {p.data_ptr() for _, p in pairs}
    assert ours.isdisjoint(p.data_ptr() for group in optimizer.param_groups for p in group["params"])


@pytest.mark.parametrize("device", DEVICES)
def test_a_plain_backward_and_missing_gradients_are_served(device):
    expected, ordinary = make_trained("bf16_sr")
    pairs, optimizer = make_hosted("bf16_sr", device=device)
    for step, missing in enumerate((None, 0, 0, 2, None)):
        network_loss(pairs, step).backward()
        if missing is not None:
            pairs[missing][1].grad = None
        follow(expected, ordinary, pairs)
        optimizer.step()
        assert all(p.grad is None for _, p in pairs)
    assert_same([p.cpu() for p in values(pairs)], values(expected))
    assert_same(optimizer.state_dict()["state"], ordinary.state_dict()["state"])


def test_without_new_gradients_a_step_changes_nothing():
    pairs, optimizer = make_hosted("fp32")
    backward_steps(pairs, optimizer, optimizer, [0])
    before = values(pairs)
    optimizer.step()
    optimizer.backward(network_loss(pairs, 1))
    optimizer.zero_grad()
    optimizer.step()
    assert_same(values(pairs), before)


def test_a_norm_that_is_not_finite_skips_the_step():
    pairs, optimizer = make_hosted("fp32")
    before = values(pairs)
    handle = pairs[1][1].register_hook(lambda grad: grad / 0)
    backward_steps(pairs, optimizer, optimizer, [0])
    handle.remove()
    assert not optimizer.last_grad_norm.isfinite()
    assert_same(values(pairs), before)
    backward_steps(pairs, optimizer, optimizer, [1])
    assert optimizer.last_grad_norm.isfinite() and not torch.equal(values(pairs)[0], before[0])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("to_host", [True, False])
def test_states_can_be_taken_over_and_resuming_is_not_having_stopped(storage, to_host):
    """From one to the other of MaskedAdamW and HostMaskedAdamW, and within the latter."""
    straight, optimizer = make_hosted(storage)
    backward_steps(straight, optimizer, optimizer, range(3))
    saved, weights = copy.deepcopy(optimizer.state_dict()), values(straight)
    backward_steps(straight, optimizer, optimizer, range(3, 6))

    resumed, second = (make_hosted if to_host else make_trained)(storage)
    plain_steps(resumed, second, [9])  # what was kept of before must not matter
    for (_, p), weight in zip(resumed, weights, strict=True):
        p.data.copy_(weight)
    second.load_state_dict(saved)
    plain_steps(resumed, second, range(3, 6))
    assert_same(values(straight), values(resumed))
    assert_same(optimizer.state_dict()["state"], second.state_dict()["state"])


@pytest.mark.parametrize("way", ["in place", "replaced", "unseen"])
def test_weights_changed_between_steps_are_taken_over(way):
    expected, ordinary = make_trained("fp32")
    pairs, optimizer = make_hosted("fp32")
    for step in range(3):
        for (_, p), (_, q) in zip(pairs, expected, strict=True):
            q.data.mul_(0.5)
            if way == "in place":
                with torch.no_grad():
                    p.mul_(0.5)
            elif way == "replaced":
                p.data = p.data * 0.5
            else:
                p.data.mul_(0.5)
        if way == "unseen":
            optimizer.read_weights()
        network_loss(pairs, step).backward()
        follow(expected, ordinary, pairs)
        optimizer.step()
    assert_same(values(pairs), values(expected))


def test_weights_that_nobody_changed_are_not_read_again(monkeypatch):
    pairs, optimizer = make_hosted("fp32")
    monkeypatch.setattr(_Mirror, "read", lambda self: pytest.fail(f"{self.name} is read again"))
    backward_steps(pairs, optimizer, optimizer, range(3))


def test_groups_may_be_added_later_and_have_their_options():
    pairs = make_pairs()
    optimizer = HostMaskedAdamW([{"params": pairs[:1], "lr": 0.0}, {"params": pairs[1:2]}], lr=1e-2)
    optimizer.add_param_group({"params": iter(pairs[2:]), "lr": 1e-3})
    before = values(pairs)
    backward_steps(pairs, optimizer, optimizer, [0])
    moved = [(p.detach() - start).abs().max().item() for (_, p), start in zip(pairs, before, strict=True)]
    assert moved[0] == 0 and moved[1] > 9e-3 and 5e-4 < moved[2] < 2e-3


def test_a_closure_is_called_and_autograd_learns_of_the_change():
    pairs, optimizer = make_hosted("fp32")
    stale = network_loss(pairs, 0)

    def closure():
        loss = network_loss(pairs, 1)
        optimizer.backward(loss)
        return loss

    before = values(pairs)
    assert optimizer.step(closure).requires_grad
    assert not torch.equal(bits(before[0]), bits(values(pairs)[0]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


def twice():
    (name, p), *_ = make_pairs()
    return [(name, p), ("again", p)]


@pytest.mark.parametrize(("pairs", "options", "words"), [
    (make_pairs, {"capturable": True}, "capturable=True is for steps on the device"),
    (lambda: [*SHAPES], {}, r"must come as tensors or \(name, tensor\) pairs"),
    (lambda: [], {}, "no parameters to train"),
    (make_pairs, {"storage": "int8"}, "storage 'int8' does not fit up.weight, which is float32"),
    (twice, {}, "up.weight is the same parameter as another one"),
])
def test_what_does_not_fit_is_refused(pairs, options, words):
    with pytest.raises(CofituneError, match=words):
        HostMaskedAdamW(pairs(), **options)


def test_a_model_cast_after_the_optimizer_was_made_is_refused():
    pairs, optimizer = make_hosted("fp32")
    for _, p in pairs:
        p.data = p.data.bfloat16()
    with pytest.raises(CofituneError, match=r"gradient of down.weight is bfloat16 .* but the parameter was float32"):
        optimizer.backward(network_loss(pairs, 0))


class Streams:
    """Stands for torch.cuda's streams and writes down in which order the host gives them what."""

    def __init__(self, monkeypatch):
        self.log, self.here, self.events = [], "compute", 0
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(self, "side"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream(self, self.here))
        monkeypatch.setattr(torch.cuda, "stream", self.at)

    @contextlib.contextmanager
    def at(self, stream):
        former, self.here = self.here, stream.name
        yield
        self.here = former


class FakeStream:
    def __init__(self, streams, name):
        self.streams, self.name = streams, name

    def wait_stream(self, other):
        self.streams.log.append(f"{self.name} waits for {other.name}")

    def record_event(self):
        self.streams.events += 1
        self.streams.log.append(f"{self.name}: event {self.streams.events}")
        return self.streams.events

    def wait_event(self, event):
        self.streams.log.append(f"{self.name} waits for event {event}")

    def synchronize(self):
        self.streams.log.append(f"host waits for {self.name}")


def test_a_gradient_is_let_go_only_after_its_stream_waits_for_the_copy(monkeypatch):
    streams = Streams(monkeypatch)
    link = _Link(torch.device("cuda"))
    targets, alive = [torch.zeros(3) for _ in range(4)], []
    for index, target in enumerate(targets):
        grad = torch.full((3,), float(index))
        weakref.finalize(grad, streams.log.append, f"gradient {index + 1} is free")
        link.to_host(target, grad, add=False)
        del grad
        alive.append(sum("event" in line and line.startswith("side") for line in streams.log)
                     - sum("is free" in line for line in streams.log))
    assert alive == [1, 2, 2, 2]
    assert streams.log == [
        "side waits for compute", "side: event 1", "side waits for compute", "side: event 2",
        "side waits for compute", "side: event 3", "compute waits for event 1", "gradient 1 is free",
        "side waits for compute", "side: event 4", "compute waits for event 2", "gradient 2 is free",
    ]
    streams.log.clear()
    link.synchronize()
    assert streams.log == ["host waits for side", "gradient 3 is free", "gradient 4 is free"]
    assert [target[0].item() for target in targets] == [0, 1, 2, 3]
    streams.log.clear()
    link.to_device(torch.zeros(3), targets[0])
    link.let_current_wait()
    assert streams.log == ["side waits for compute", "compute waits for side"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("accumulated", [False, True])
def test_on_a_gpu_few_gradients_are_alive_at_once(accumulated):
    size, count = 2**20, 16
    pairs = [(str(i), torch.nn.Parameter(torch.ones(size, dtype=torch.bfloat16, device="cuda"))) for i in range(count)]
    optimizer = HostMaskedAdamW(pairs)

    def loss():
        return sum((p * p).sum() for _, p in pairs)

    optimizer.backward(loss())
    if not accumulated:
        optimizer.step()
    graph = loss()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.backward(graph)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= 8 * 2 * size  # gradients in flight and what the products need; all at once would be 16 and more
    optimizer.step()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before
