"""Rates that are tensors, schedulers, steps counted on the device, torch.compile, CUDA graphs."""

from __future__ import annotations

import copy

import pytest
import torch
from optim.optim_cases import assert_same, dtype_of, make_masks, make_pairs, run, set_grads, values
from torch.optim import lr_scheduler

from cofitune_fast.errors import CofituneError
from cofitune_fast.ops._storage import STORAGES
from cofitune_fast.optim import MaskedAdamW, Pull

SCHEDULERS = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=8),  # changes beta1 too
    "steps": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "warm-up": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.5)], [3]),
}


def float64(value):
    return torch.tensor(value, dtype=torch.float64)


def make_optimizer(pairs, **options):
    return MaskedAdamW(pairs, **{"lr": 1e-2, "masks": make_masks(), **options})


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers_take_rates_as_numbers_and_as_tensors(kind):
    results = []
    for lr in (1e-2, float64(1e-2), torch.tensor(1e-2)):
        pairs = make_pairs()
        optimizer = make_optimizer(pairs, lr=lr)
        scheduler, rates = SCHEDULERS[kind](optimizer), []
        for step in range(6):
            set_grads(pairs, step)
            optimizer.step()
            scheduler.step()
            rates.append(float(optimizer.param_groups[0]["lr"]))
        assert optimizer.param_groups[0]["lr"] is lr or not isinstance(lr, torch.Tensor)
        assert len(set(rates)) > 1
        results.append((rates, values(pairs)))
    for rates, weights in results[1:]:
        assert rates == pytest.approx(results[0][0], rel=1e-6)
        for x, y in zip(weights, results[0][1], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_a_rate_in_double_precision_is_the_number():
    by_number, by_tensor = make_pairs(), make_pairs()
    run(make_optimizer(by_number, lr=3e-3), by_number, range(3))
    run(make_optimizer(by_tensor, lr=float64(3e-3)[None]), by_tensor, range(3))  # one element, in any shape
    assert_same(values(by_number), values(by_tensor))


@pytest.mark.parametrize("storage", STORAGES)
def test_counting_on_the_device_changes_no_bit(storage):
    plain, counted = make_pairs(dtype_of(storage)), make_pairs(dtype_of(storage))
    options = {"storage": storage, "pull": Pull("l1", 0.5)}
    first, second = make_optimizer(plain, **options), make_optimizer(counted, capturable=True, **options)
    run(first, plain, range(4))
    run(second, counted, range(4))
    assert_same(values(plain), values(counted))
    assert_same(first.state_dict()["state"], second.state_dict()["state"])
    steps = {id(state["step"]) for state in second.state.values()}
    assert len(steps) == 1 and second.state[counted[0][1]]["step"].dtype == torch.int64


@pytest.mark.parametrize("back", [False, True])
def test_a_state_passes_between_counting_on_host_and_device(back):
    pairs, other = make_pairs(), make_pairs()
    first = make_optimizer(pairs, capturable=back, lr=float64(1e-2) if back else 1e-2)
    second = make_optimizer(other, capturable=not back, lr=1.0 if back else float64(1.0))
    run(first, pairs, range(2))
    rate = second.param_groups[0]["lr"]
    tensors = [state["exp_avg"] for state in second.state.values()]
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert float(second.param_groups[0]["lr"]) == 1e-2 and (back or second.param_groups[0]["lr"] is rate)
    for state, tensor in zip(second.state.values(), tensors, strict=False):
        assert state["exp_avg"] is tensor  # a graph would hold it
    for (_, p), weight in zip(other, values(pairs), strict=True):
        p.data.copy_(weight)
    run(first, pairs, range(2, 4))
    run(second, other, range(2, 4))
    assert_same(values(pairs), values(other))


def test_loading_an_empty_state_begins_anew():
    pairs, fresh = make_pairs(), make_pairs()
    optimizer = make_optimizer(pairs, capturable=True)
    run(optimizer, pairs, range(2))
    optimizer.load_state_dict({**copy.deepcopy(optimizer.state_dict()), "state": {}})
    assert all(state["step"] == 0 and not state["exp_avg"].any() for state in optimizer.state.values())
    for (_, p), weight in zip(fresh, values(pairs), strict=True):
        p.data.copy_(weight)
    run(optimizer, pairs, range(2))
    run(make_optimizer(fresh), fresh, range(2))
    assert_same(values(pairs), values(fresh))


def test_unequal_steps_are_refused():
    pairs = make_pairs()
    optimizer = make_optimizer(pairs)
    run(optimizer, pairs[:2], range(1))
    run(optimizer, pairs, range(1, 2))
    words = "the state of up.weight is at step 2 and that of down.weight at step 1, but with capturable=True"
    with pytest.raises(CofituneError, match=words):
        make_optimizer(make_pairs(), capturable=True).load_state_dict(optimizer.state_dict())


def test_every_parameter_needs_a_gradient():
    pairs = make_pairs()
    optimizer = make_optimizer(pairs, capturable=True)
    set_grads(pairs, 0)
    pairs[1][1].grad = None
    with pytest.raises(CofituneError, match=r"up.bias has no gradient; with capturable=True every parameter needs one"):
        optimizer.step()
    assert all(state["step"] == 0 for state in optimizer.state.values())


class Counting:
    """A torch.compile backend that counts the graphs it gets; each runs through AOTAutograd's functionalization."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_compiled_step_is_compiled_once_and_has_the_same_bits(storage):
    torch._dynamo.reset()
    eager, compiled = make_pairs(dtype_of(storage)), make_pairs(dtype_of(storage))
    options = {"storage": storage, "pull": Pull("l2", 0.5), "capturable": True, "zero_grad_after": True}
    first, second = (make_optimizer(pairs, lr=float64(1e-2), **options) for pairs in (eager, compiled))
    count = Counting()
    step = torch.compile(second.step, backend=count, fullgraph=True)
    graphs = []
    for index in range(4):
        for pairs, optimizer, advance in ((eager, first, first.step), (compiled, second, step)):
            set_grads(pairs, index)
            advance()
            optimizer.param_groups[0]["lr"].mul_(0.7)
        graphs.append(count.graphs)  # torch traces twice at once if the rate lies on the CPU
        assert first.last_grad_norm == second.last_grad_norm
        assert all(not p.grad.any() for _, p in compiled)
    assert graphs[0] > 0 and graphs[1:] == graphs[:1] * 3
    assert_same(values(eager), values(compiled))
    assert_same(first.state_dict()["state"], second.state_dict()["state"])


def test_compiling_a_step_and_its_scheduler_together_does_not_recompile():
    torch._dynamo.reset()
    eager, compiled = make_pairs(), make_pairs()
    first, second = (make_optimizer(pairs, lr=float64(1e-2), capturable=True) for pairs in (eager, compiled))
    schedulers = [SCHEDULERS["cosine"](optimizer) for optimizer in (first, second)]
    count = Counting()
    step = torch.compile(lambda: second.step(), backend=count)
    graphs = []
    for index in range(4):
        for pairs, advance in ((eager, first.step), (compiled, step)):
            set_grads(pairs, index)
            advance()
        for scheduler in schedulers:
            scheduler.step()
        graphs.append(count.graphs)
    assert graphs[0] > 0 and graphs[1:] == graphs[:1] * 3
    assert_same(values(eager), values(compiled))


def test_without_capturable_a_compiled_step_is_right_too():
    torch._dynamo.reset()
    eager, compiled = make_pairs(), make_pairs()
    first, second = make_optimizer(eager), make_optimizer(compiled)
    step = torch.compile(second.step, backend=Counting())
    for index in range(3):
        for pairs, advance in ((eager, first.step), (compiled, step)):
            set_grads(pairs, index)
            advance()
    assert_same(values(eager), values(compiled))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("storage", STORAGES)
def test_a_cuda_graph_of_a_step_has_the_bits_of_steps(storage):
    device = torch.device("cuda")

    def on_device():
        return [(name, torch.nn.Parameter(p.detach().to(device))) for name, p in make_pairs(dtype_of(storage))]

    def fill_grads(pairs, seed):
        drawn = make_pairs(dtype_of(storage), seed=100 + seed)
        for (_, p), (_, value) in zip(pairs, drawn, strict=True):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad.copy_(value.detach())

    eager, graphed = on_device(), on_device()
    first, second = (make_optimizer(pairs, storage=storage, capturable=True, lr=float64(1e-2).to(device))
                     for pairs in (eager, graphed))
    fill_grads(graphed, 0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        second.step()  # warm-up: kernels are compiled and loaded
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        second.step()
    fill_grads(eager, 0)
    first.step()
    for index in range(1, 4):
        for pairs, optimizer, advance in ((eager, first, first.step), (graphed, second, graph.replay)):
            fill_grads(pairs, index)
            optimizer.param_groups[0]["lr"].mul_(0.7)
            advance()
    assert_same([p.cpu() for p in values(eager)], [p.cpu() for p in values(graphed)])
    assert {int(state["step"]) for state in second.state.values()} == {4}
