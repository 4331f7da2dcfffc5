"""The optimizer and the scheduler through a checkpoint folder: safetensors and JSON, every bit and no pickle."""

from __future__ import annotations

import pytest
import torch
from ops.ops_cases import bits
from safetensors import safe_open

from cofitune_fast.errors import CofituneError
from cofitune_fast.ops._storage import STORAGES
from cofitune_fast.optim import MaskedAdamW, Pull
from cofitune_fast.training.checkpoint import OPTIMIZER_FILE, load_training_state, save_training_state

SHAPES = {"layers.0.up.weight": (5, 300), "layers.0.up.bias": (5,)}


def make_run(storage, steps, **options):
    generator = torch.Generator().manual_seed(0)
    pairs = [(name, torch.nn.Parameter(torch.randn(shape, generator=generator).to(STORAGES[storage].weight)))
             for name, shape in SHAPES.items()]
    optimizer = MaskedAdamW(pairs, storage=storage, pull=Pull("l2", 0.5), **{"lr": 1e-2, **options})
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    advance(pairs, optimizer, scheduler, range(steps))
    return pairs, optimizer, scheduler


def advance(pairs, optimizer, scheduler, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(1 + step)
        for _, p in pairs:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
        scheduler.step()


def float64(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("capturable", [False, True])
def test_a_run_goes_on_from_its_checkpoint_as_if_never_stopped(tmp_path, storage, capturable):
    rates = (float64(1e-2), float64(1.0)) if capturable else (1e-2, 1.0)
    run = make_run(storage, 3, capturable=capturable, lr=rates[0])
    save_training_state(tmp_path, run[1].state_dict(), run[2].state_dict())
    weights = [p.detach().clone() for _, p in run[0]]
    advance(*run, range(3, 6))

    pairs, optimizer, scheduler = make_run(storage, 0, capturable=capturable, lr=rates[1])
    state, schedule, _ = load_training_state(tmp_path)
    optimizer.load_state_dict(state)
    scheduler.load_state_dict(schedule)
    for (_, p), weight in zip(pairs, weights, strict=True):
        p.data.copy_(weight)
    advance(pairs, optimizer, scheduler, range(3, 6))
    for (name, p), (_, q) in zip(run[0], pairs, strict=True):
        assert torch.equal(bits(p.detach()), bits(q.detach())), name
        for key, value in run[1].state[p].items():
            theirs = optimizer.state[q][key]
            if isinstance(value, torch.Tensor) and value.dim():
                assert value.dtype == theirs.dtype and torch.equal(bits(value), bits(theirs)), f"{key} of {name}"
            else:
                assert value == theirs
    assert float(optimizer.param_groups[0]["lr"]) == float(run[1].param_groups[0]["lr"]) != 1e-2


@pytest.mark.parametrize("storage", STORAGES)
def test_the_file_holds_the_tensors_in_their_own_dtypes(tmp_path, storage):
    _, optimizer, scheduler = make_run(storage, 1)
    save_training_state(tmp_path, optimizer.state_dict(), scheduler.state_dict())
    states, form = optimizer.state_dict()["state"], STORAGES[storage]
    with safe_open(tmp_path / OPTIMIZER_FILE, "pt") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    keys = ["exp_avg", "exp_avg_sq", "anchor", *["remainder"] * form.remainder, *["scale"] * form.scaled]
    assert sorted(found) == sorted(f"{name}/{key}" for name in SHAPES for key in keys)
    assert found["layers.0.up.weight/exp_avg"].dtype == form.moment
    for name, state in states.items():
        for key in keys:
            assert torch.equal(bits(found[f"{name}/{key}"]), bits(state[key]))


def test_a_checkpoint_of_another_storage_is_refused(tmp_path):
    _, optimizer, scheduler = make_run("int8", 1)
    save_training_state(tmp_path, optimizer.state_dict(), scheduler.state_dict())
    with pytest.raises(CofituneError, match="is stored as 'int8', but this optimizer stores it as 'bf16_sr'"):
        make_run("bf16_sr", 0)[1].load_state_dict(load_training_state(tmp_path)[0])
