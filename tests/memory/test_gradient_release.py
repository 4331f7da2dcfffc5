"""Gradient release against ordinary steps: bits, clipping, what lives how long, and what it refuses."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from memory.release_cases import backward_steps, make_trained, network_loss, plain_steps
from ops.ops_cases import BACKENDS, MODES, bits
from optim.optim_cases import assert_same, make_pairs, values
from tiny import make_tiny_model
from torch.multiprocessing.reductions import StorageWeakRef

from cofitune_fast.errors import CofituneError
from cofitune_fast.memory.gradient_release import CLIPPING, GradientRelease, refuse_accumulation
from cofitune_fast.memory.host_states import HostMaskedAdamW
from cofitune_fast.ops import grad_norm
from cofitune_fast.ops._storage import STORAGES
from cofitune_fast.optim import MaskedAdamW, OneByOne
from cofitune_fast.optim.batch import Batch
from cofitune_fast.regions import Region


@pytest.mark.parametrize("clipping", CLIPPING)
@pytest.mark.parametrize("mask_mode", MODES)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_where_nothing_is_clipped_it_is_the_ordinary_step_bit_for_bit(storage, mask_mode, clipping, backend):
    options = {"mask_mode": mask_mode, "backend": backend}
    expected, ordinary = make_trained(storage, **options)
    plain_steps(expected, ordinary, range(4))
    pairs, optimizer = make_trained(storage, **options)
    backward_steps(pairs, optimizer, GradientRelease(optimizer, clipping), range(4))
    assert_same(values(pairs), values(expected))
    assert_same(optimizer.state_dict()["state"], ordinary.state_dict()["state"])
    torch.testing.assert_close(optimizer.last_grad_norm, ordinary.last_grad_norm, rtol=1e-6, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("clipping", CLIPPING)
@pytest.mark.parametrize("storage", STORAGES)
def test_on_a_gpu_it_is_the_ordinary_step_bit_for_bit(storage, clipping):
    expected, ordinary = make_trained(storage, device="cuda")
    plain_steps(expected, ordinary, range(4))
    pairs, optimizer = make_trained(storage, device="cuda")
    backward_steps(pairs, optimizer, GradientRelease(optimizer, clipping), range(4))
    assert_same(values(pairs), values(expected))
    assert_same(optimizer.state_dict()["state"], ordinary.state_dict()["state"])


@pytest.mark.parametrize("storage", STORAGES)
def test_exact_clipping_is_the_ordinary_step_with_the_norm_it_measured(storage):
    expected, ordinary = make_trained(storage, max_grad_norm=0.3)
    pairs, optimizer = make_trained(storage, max_grad_norm=0.3)
    release = GradientRelease(optimizer, "exact")
    for step in range(4):
        backward_steps(pairs, optimizer, release, [step])
        network_loss(expected, step).backward()
        measured = ordinary.measure_grad_norm()
        assert measured.item() > 0.5  # so that it is clipped
        torch.testing.assert_close(release.norm, measured, rtol=1e-6, atol=0)
        ordinary._measured["clip"] = grad_norm([release.norm], 0.3).clip
        ordinary.step()
        ordinary.zero_grad()
    assert_same(values(pairs), values(expected))
    assert_same(optimizer.state_dict()["state"], ordinary.state_dict()["state"])


def test_exact_clipping_is_that_of_torch():
    pairs, optimizer = make_trained("fp32", max_grad_norm=0.3, masks=None, pull=None)
    expected = make_pairs()
    other = torch.optim.AdamW([p for _, p in expected], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    release = GradientRelease(optimizer, "exact")
    for step in range(4):
        backward_steps(pairs, optimizer, release, [step])
        network_loss(expected, step).backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in expected], 0.3)
        other.step()
        other.zero_grad()
    for p, q in zip(values(pairs), values(expected), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)  # the roundings of four steps


def test_lagged_clipping_is_by_the_larger_of_the_last_norm_and_the_own():
    pairs, optimizer = make_trained("bf16_split", max_grad_norm=0.3)
    expected, other = make_trained("bf16_split", max_grad_norm=0.3)
    release, single = GradientRelease(optimizer, "lagged"), OneByOne(other)
    last = None
    for step, scale in enumerate((1.0, 1.0, 50.0, 1.0)):  # a jump, and back
        backward_steps(pairs, optimizer, release, [step], scale)
        network_loss(expected, step, scale).backward()
        norms = [grad_norm([p.grad]).norm for _, p in expected]
        total = grad_norm(norms).norm
        larger = [total if last is None else torch.maximum(last, norm) for norm in norms]
        for (_, p), norm in zip(expected, larger, strict=True):
            single.step(p, grad_norm([norm], 0.3).clip)
            p.grad = None
        torch.testing.assert_close(release.norm, total, rtol=1e-6, atol=0)
        last = release.norm
        assert_same(values(pairs), values(expected))


def poison(pairs, name):
    """A hook that makes the gradient of one parameter, and of no other, NaN."""
    return dict(pairs)[name].register_hook(lambda grad: torch.full_like(grad, float("nan")))


@pytest.mark.parametrize(("clipping", "kept"), [("exact", {"up.weight", "up.bias", "down.weight"}),
                                                ("lagged", {"down.weight"})])
def test_a_gradient_that_is_not_finite(clipping, kept):
    """exact: it skips the whole step; lagged: its own parameter alone."""
    pairs, optimizer = make_trained("bf16_sr", max_grad_norm=0.3)
    release = GradientRelease(optimizer, clipping)
    backward_steps(pairs, optimizer, release, range(2))
    before, state = values(pairs), copy.deepcopy(optimizer.state_dict()["state"])
    finite = release.norm.clone()
    handle = poison(pairs, "down.weight")
    backward_steps(pairs, optimizer, release, [2])
    handle.remove()
    assert release.norm.isnan()
    for (name, p), old in zip(pairs, before, strict=True):
        same = [torch.equal(bits(p.detach()), bits(old)),
                torch.equal(optimizer.state[p]["exp_avg"], state[name]["exp_avg"])]
        assert same == [name in kept] * 2, name
        assert optimizer.state[p]["step"] == 3
    if clipping == "lagged":
        assert release.state_dict()["lagged_norm"] == finite.item()
    backward_steps(pairs, optimizer, release, [3])
    assert release.norm.isfinite() and all(p.isfinite().all() for p in values(pairs))
    assert not torch.equal(before[2], values(pairs)[2])


def live_gradients(monkeypatch):
    """How many gradients' memory is alive whenever one is looked at, counted by weak references."""
    seen, counts = {}, []
    gradients = Batch.gradients

    def counting(self):
        for p in self.params:
            ref = StorageWeakRef(p.grad.untyped_storage())
            seen[ref.cdata] = ref
        counts.append(sum(not ref.expired() for ref in seen.values()))
        return gradients(self)

    monkeypatch.setattr(Batch, "gradients", counting)
    return counts


@pytest.mark.parametrize("clipping", CLIPPING)
def test_at_most_one_gradient_is_alive(clipping, monkeypatch):
    model = make_tiny_model()
    pairs = Region.parse("all@2-3").apply(model)
    optimizer = MaskedAdamW(pairs, lr=1e-3)
    release = GradientRelease(optimizer, clipping)
    counts = live_gradients(monkeypatch)
    for _ in range(2):
        release.backward(language_loss(model))
        optimizer.step()
    assert set(counts) == {1} and len(counts) == 4 * len(pairs)
    assert all(p.grad is None for p in model.parameters())


def language_loss(model):
    ids = torch.arange(4, 28).reshape(2, 12)
    return model(input_ids=ids, labels=ids, use_cache=False).loss


@pytest.mark.parametrize("clipping", CLIPPING)
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
@pytest.mark.parametrize("region", ["ffn.up+ffn.down+attn.q@2-3", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_models_train_as_without_it(family, region, clipping, checkpointing):
    """full: the head shares the embeddings' weight, which is updated once, after both uses have been added up."""
    def trained():
        model = make_tiny_model(family, dtype=torch.bfloat16, attention_dropout=0.1)
        pairs = Region.parse(region).apply(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.disable_input_require_grads()
        return model.train(), pairs, MaskedAdamW(pairs, lr=1e-3, max_grad_norm=1e6)

    model, pairs, optimizer = trained()
    other, expected, ordinary = trained()
    release = GradientRelease(optimizer, clipping)
    for step in range(3):
        torch.manual_seed(step)
        loss = language_loss(model)
        release.backward(loss)
        optimizer.step()
        torch.manual_seed(step)
        reference = language_loss(other)
        reference.backward()
        ordinary.step()
        ordinary.zero_grad()
        assert loss.item() == reference.item()
    assert_same(values(pairs), values(expected))
    assert {state["step"] for state in optimizer.state.values()} == {3}


def test_a_weight_used_twice_is_updated_once_with_the_sum():
    pairs = [("w", torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0))))]
    expected = [("w", torch.nn.Parameter(pairs[0][1].detach().clone()))]
    x = torch.randn(3, 4)
    optimizer, ordinary = MaskedAdamW(pairs), MaskedAdamW(expected)
    GradientRelease(optimizer, "exact").backward((x @ pairs[0][1]).tanh().matmul(pairs[0][1].T).square().sum())
    (x @ expected[0][1]).tanh().matmul(expected[0][1].T).square().sum().backward()
    ordinary.step()
    assert optimizer.state[pairs[0][1]]["step"] == 1
    torch.testing.assert_close(pairs[0][1], expected[0][1], rtol=1e-6, atol=1e-8)


def test_a_use_without_a_gradient_that_comes_later_in_the_backward_is_refused_by_autograd():
    """The old weight is needed below its last use with a gradient: an error, not a wrong gradient."""
    w, v = (torch.nn.Parameter(torch.randn(4, 4)) for _ in range(2))
    optimizer = MaskedAdamW([("w", w), ("v", v)], max_grad_norm=None)
    loss = (torch.randn(3, 4) @ v @ w.detach() @ w).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        GradientRelease(optimizer, "lagged").backward(loss)


@pytest.mark.parametrize("clipping", CLIPPING)
@pytest.mark.parametrize("storage", STORAGES)
def test_resuming_is_not_having_stopped_bit_for_bit(storage, clipping):
    straight, optimizer = make_trained(storage, max_grad_norm=0.3)
    release = GradientRelease(optimizer, clipping)
    backward_steps(straight, optimizer, release, range(3))
    saved, weights = copy.deepcopy(release.state_dict()), values(straight)
    backward_steps(straight, optimizer, release, range(3, 6))

    resumed, second = make_trained(storage, max_grad_norm=0.3)
    for (_, p), weight in zip(resumed, weights, strict=True):
        p.data.copy_(weight)
    again = GradientRelease(second, clipping)
    backward_steps(resumed, second, again, [9])  # what was kept of before must not matter
    for (_, p), weight in zip(resumed, weights, strict=True):
        p.data.copy_(weight)
    again.load_state_dict(saved)
    backward_steps(resumed, second, again, range(3, 6))
    assert_same(values(straight), values(resumed))
    assert_same(release.state_dict()["state"], again.state_dict()["state"])
    assert (saved["lagged_norm"] is None) == (clipping == "exact")


def test_ordinary_steps_and_released_ones_may_alternate():
    pairs, optimizer = make_trained("bf16_sr")
    expected, ordinary = make_trained("bf16_sr")
    release = GradientRelease(optimizer, "exact")
    for step in range(4):
        if step % 2:
            backward_steps(pairs, optimizer, release, [step])
        else:
            plain_steps(pairs, optimizer, [step])
        plain_steps(expected, ordinary, [step])
    assert_same(values(pairs), values(expected))


def test_schedulers_act_as_ever():
    warnings.simplefilter("error")
    pairs, optimizer = make_trained("fp32")
    expected, ordinary = make_trained("fp32")
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 4) for o in (optimizer, ordinary)]
    release = GradientRelease(optimizer, "lagged")
    for step in range(4):
        backward_steps(pairs, optimizer, release, [step])
        plain_steps(expected, ordinary, [step])
        for schedule in schedules:
            schedule.step()
    assert_same(values(pairs), values(expected))


def test_gradients_cannot_be_accumulated():
    refuse_accumulation(1)
    with pytest.raises(CofituneError, match="gradient_accumulation_steps must be 1, not 4; use a larger"):
        refuse_accumulation(4)
    pairs, optimizer = make_trained("fp32")
    release = GradientRelease(optimizer)
    network_loss(pairs, 0).backward()
    before = values(pairs)
    with pytest.raises(CofituneError, match=r"has a gradient before the backward.*call model.zero_grad\(\) first"):
        release.backward(network_loss(pairs, 1))
    assert_same(values(pairs), before)
    optimizer.zero_grad()
    release.backward(network_loss(pairs, 1))
    with pytest.raises(CofituneError, match=r"there was a backward and no optimizer.step\(\) since"):
        release.backward(network_loss(pairs, 2))


def test_hooks_are_gone_after_the_backward_and_after_an_error():
    pairs, optimizer = make_trained("fp32")
    release = GradientRelease(optimizer)
    backward_steps(pairs, optimizer, release, [0])
    with pytest.raises(RuntimeError, match="does not require grad"):
        release.backward(torch.zeros(()))
    network_loss(pairs, 1).backward()
    assert all(p.grad is not None for _, p in pairs)


@pytest.mark.parametrize(("options", "clipping", "words"), [
    ({}, "none", "clipping must be 'exact' or 'lagged', not 'none'"),
    ({"capturable": True}, "exact", "with capturable=True all parameters step together"),
    ({"optimizer_class": HostMaskedAdamW}, "exact", "not by HostMaskedAdamW"),
])
def test_what_does_not_fit_is_refused(options, clipping, words):
    _, optimizer = make_trained("fp32", **options)
    with pytest.raises(CofituneError, match=words):
        GradientRelease(optimizer, clipping)


def test_several_processes_are_refused(monkeypatch):
    _, optimizer = make_trained("fp32")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(CofituneError, match="gradients of several processes are averaged after the backward"):
        GradientRelease(optimizer)
