"""What two ranks check together, each case a function of the world's mesh; run by test_masked_adamw_sharded."""

from __future__ import annotations

import tempfile
import traceback
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ops.ops_cases import bits
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, init_device_mesh
from torch.distributed.tensor import distribute_tensor as distribute_from_one_rank

from cofitune_fast.errors import CofituneError
from cofitune_fast.ops._storage import STORAGES
from cofitune_fast.optim import MaskedAdamW, Pull

WORLD = 2
# Rows are shared out unevenly, or there are fewer than ranks. A row has two scale blocks, a shard of the vector one.
SHAPES = {"up": (7, 300), "one": (1, 7), "vector": (512,)}


def distribute_tensor(tensor, mesh, placements):
    """Each rank takes its part of a tensor that all have; gloo does not send int16."""
    return distribute_from_one_rank(tensor, mesh, placements, src_data_rank=None)


def make_parameters(storage, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(STORAGES[storage].weight)
            for name, shape in SHAPES.items()}


def make_gradients(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def norm_of(seed, dtype=torch.float32):
    return torch.cat([g.to(dtype).double().flatten() for g in make_gradients(seed).values()]).norm().float()


def optimizer_of(tensors, placed=None, **options):
    """An optimizer over `tensors`; `placed`: name -> placements, in order to make them DTensors."""
    placed = placed or {}
    pairs = [(name, torch.nn.Parameter(distribute_tensor(tensor, *placed[name]) if name in placed else tensor.clone()))
             for name, tensor in tensors.items()]
    return pairs, MaskedAdamW(pairs, **{"lr": 1e-2, "max_grad_norm": None, **options})


def run(pairs, optimizer, seeds, gradients=make_gradients):
    for seed in seeds:
        grads = gradients(seed)
        for name, p in pairs:
            grad = grads[name].to(p.dtype)
            p.grad = distribute_tensor(grad, p.device_mesh, p.placements) if isinstance(p, DTensor) else grad
        optimizer.step()


def assert_part(ours, full):
    """`ours` is the part of `full` on this rank, bit for bit."""
    if isinstance(ours, DTensor):
        assert ours.shape == full.shape
        full = distribute_tensor(full, ours.device_mesh, ours.placements).to_local()
        ours = ours.to_local()
    assert ours.dtype == full.dtype and torch.equal(bits(ours), bits(full))


def assert_same(pairs, optimizer, others, other):
    for (_, p), (_, q) in zip(pairs, others, strict=True):
        assert_part(p.detach(), q.detach())
    states, full = optimizer.state_dict()["state"], other.state_dict()["state"]
    assert states.keys() == full.keys()
    for name, state in states.items():
        assert state.keys() == full[name].keys()
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                assert_part(value, full[name][key])
            else:
                assert value == full[name][key]


def everything(storage):
    """Masks and pulls of every layout, all whole."""
    generator = torch.Generator().manual_seed(9)
    elements = torch.randint(0, 256, (512,), generator=generator, dtype=torch.uint8)
    return {
        "storage": storage,
        "masks": {"up": torch.tensor([0, 0.5, 1, 1, 0, 0.25, 1])[:, None], "one": torch.rand(1, 7, generator=generator),
                  "vector": elements},
        "pull": Pull(
            units={"up": torch.rand(1, 300, generator=generator), "one": torch.tensor(0.5), "vector": torch.ones(512)},
            initial={name: tensor * 0.5 for name, tensor in make_parameters(storage).items()},
        ),
    }


def same_bits(mesh, storage, **options):
    """Three steps of shards and of the whole."""
    tensors, given = make_parameters(storage), {**everything(storage), **options}
    rows = dict.fromkeys(SHAPES, (mesh, [Shard(0)]))
    sharded, full = optimizer_of(tensors, rows, **given), optimizer_of(tensors, **given)
    run(*sharded, range(3))
    run(*full, range(3))
    assert_same(*sharded, *full)
    torch.testing.assert_close(sharded[1].last_grad_norm, norm_of(2, STORAGES[storage].weight), rtol=1e-6, atol=0)


def clipping(mesh):
    """The norm is added up in another order, so the last bit of the factor may differ."""
    tensors, rows = make_parameters("fp32"), dict.fromkeys(SHAPES, (mesh, [Shard(0)]))
    for max_grad_norm in (1.0, 10.0, 1000.0):
        pairs, optimizer = optimizer_of(tensors, rows, max_grad_norm=max_grad_norm)
        run(pairs, optimizer, [0])
        factor = min(1.0, max_grad_norm / (norm_of(0).item() + 1e-6))
        for name, p in pairs:
            grad = distribute_tensor(make_gradients(0)[name], mesh, [Shard(0)]).to_local()
            moment = optimizer.state[p]["exp_avg"].to_local()
            torch.testing.assert_close(moment, 0.1 * factor * grad, rtol=2e-6, atol=0)


def counted_on_the_device(mesh):
    same_bits(mesh, "bf16_sr", capturable=True, lr=torch.tensor(1e-2))


def initial_weights(mesh):
    same_bits(mesh, "bf16", pull=Pull("l1", 3.0))


def fully_sharded_model(mesh, storage):
    """FSDP2's own gradients: both ranks have the same batch, so that their mean is exact."""
    def model():
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(300, 7, bias=False), torch.nn.ReLU(), torch.nn.Linear(7, 1))
        return layers.to(STORAGES[storage].weight)

    results = []
    for sharded in (False, True):
        network = model()
        if sharded:
            fully_shard(network, mesh=mesh)
        pairs = [(name, p) for name, p in network.named_parameters() if p.dim() > 1]
        masks = {"0.weight": torch.tensor([0, 0.5, 1, 1, 0, 0.25, 1])[:, None]}
        optimizer = MaskedAdamW(pairs, lr=1e-2, storage=storage, masks=masks, max_grad_norm=None)
        for seed in range(3):
            x = torch.randn(5, 300, generator=torch.Generator().manual_seed(seed)).to(STORAGES[storage].weight)
            network(x).float().square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        results += [pairs, optimizer]
    assert_same(*results[2:], *results[:2])


def mixed_placements(mesh):
    """Plain, replicated and sharded parameters: the norm counts each once."""
    placed = {"up": (mesh, [Shard(0)]), "vector": (mesh, [Replicate()])}
    tensors, given = make_parameters("bf16_sr"), everything("bf16_sr")
    mixed, full = optimizer_of(tensors, placed, **given), optimizer_of(tensors, **given)
    run(*mixed, range(2))
    run(*full, range(2))
    assert_same(*mixed, *full)
    torch.testing.assert_close(mixed[1].last_grad_norm, norm_of(1, torch.bfloat16), rtol=1e-6, atol=0)


def replicas_of_shards(mesh):
    """A mesh of two dimensions, as of hybrid sharding."""
    for shape in ((WORLD, 1), (1, WORLD)):
        plane = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
        tensors, given = make_parameters("fp32"), everything("fp32")
        placed = dict.fromkeys(SHAPES, (plane, [Replicate(), Shard(0)]))
        sharded, full = optimizer_of(tensors, placed, **given), optimizer_of(tensors, **given)
        run(*sharded, range(2))
        run(*full, range(2))
        assert_same(*sharded, *full)
        torch.testing.assert_close(sharded[1].last_grad_norm, norm_of(1), rtol=1e-6, atol=0)


def factors_that_are_distributed(mesh):
    tensors, given = make_parameters("fp32"), everything("fp32")
    rows = dict.fromkeys(SHAPES, (mesh, [Shard(0)]))
    placements = {"up": [Shard(0)], "one": [Replicate()], "vector": [Replicate()]}
    initial = {name: distribute_tensor(p, mesh, [Shard(0)]) for name, p in given["pull"].initial.items()}
    units = {**given["pull"].units, "vector": distribute_tensor(given["pull"].units["vector"], mesh, [Shard(0)])}
    placed = {
        **given,
        "pull": replace(given["pull"], initial=initial, units=units),
        "masks": {name: distribute_tensor(mask, mesh, placements[name]) for name, mask in given["masks"].items()},
    }
    sharded, full = optimizer_of(tensors, rows, **placed), optimizer_of(tensors, **given)
    run(*sharded, range(2))
    run(*full, range(2))
    assert_same(*sharded, *full)


def infinity_on_one_rank(mesh):
    tensors = make_parameters("fp32")
    pairs, optimizer = optimizer_of(tensors, dict.fromkeys(SHAPES, (mesh, [Shard(0)])), zero_grad_after=True)

    def gradients(seed):
        grads = make_gradients(seed)
        grads["up"][-1, 3] = float("inf")  # a row of the last rank
        return grads

    run(pairs, optimizer, [0], gradients)
    assert not optimizer.last_grad_norm.isfinite()
    for name, p in pairs:
        assert_part(p.detach(), tensors[name])
        assert not p.grad.to_local().any()


def distributed_checkpoint(mesh, storage):
    tensors, rows = make_parameters(storage), dict.fromkeys(SHAPES, (mesh, [Shard(0)]))
    given = everything(storage)
    given["pull"] = replace(given["pull"], initial=None)
    pairs, optimizer = optimizer_of(tensors, rows, **given)
    run(pairs, optimizer, range(2))
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    dcp.save({"optimizer": optimizer.state_dict()}, checkpoint_id=folder[0])
    weights = {name: p.detach().clone() for name, p in pairs}
    run(pairs, optimizer, range(2, 4))

    others, other = optimizer_of(make_parameters(storage, seed=1), rows, **given)
    other.create_states()
    state = {"optimizer": other.state_dict()}
    dcp.load(state, checkpoint_id=folder[0])
    other.load_state_dict(state["optimizer"])
    for name, p in others:
        p.data.copy_(weights[name])
    run(others, other, range(2, 4))
    for (name, p), (_, q) in zip(pairs, others, strict=True):
        assert torch.equal(p.to_local(), q.to_local()), name
        for key, value in optimizer.state[p].items():
            theirs = other.state[q][key]
            same = torch.equal(value.to_local(), theirs.to_local()) if isinstance(value, DTensor) else value == theirs
            assert same, f"{key} of {name}"


def state_of_torchs_checkpoint(mesh, named):
    """get_state_dict and set_state_dict; as with accelerate the model is sharded after the optimizer was made."""
    def made(seed):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(torch.nn.Linear(300, 7), torch.nn.ReLU(), torch.nn.Linear(7, 2))
        names = [name for name, p in network.named_parameters() if p.dim() > 1]
        pairs = [(name, network.get_parameter(name)) for name in names]
        optimizer = MaskedAdamW(pairs if named else [p for _, p in pairs], lr=1e-2, pull=Pull(strength=0.5))
        fully_shard(network, mesh=mesh)
        optimizer.param_groups[0]["params"] = [network.get_parameter(name) for name in names]
        return network, optimizer

    def steps(network, optimizer, seeds):
        for seed in seeds:
            network(torch.randn(5, 300, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    for options in (StateDictOptions(), StateDictOptions(full_state_dict=True)):
        (network, optimizer), (other, its_optimizer) = made(0), made(1)
        steps(network, optimizer, range(3))
        weights, states = get_state_dict(network, optimizer, options=options)
        set_state_dict(other, its_optimizer, model_state_dict=weights, optim_state_dict=states, options=options)
        for one in ((network, optimizer), (other, its_optimizer)):
            steps(*one, range(3, 6))
        for name, p in network.named_parameters():
            assert torch.equal(p.to_local(), other.get_parameter(name).to_local()), (name, options)


def whole_state(mesh, storage):
    """A state saved without shards goes on in shards."""
    tensors, given = make_parameters(storage), everything(storage)
    full = optimizer_of(tensors, **given)
    run(*full, range(2))
    now = {name: p.detach().clone() for name, p in full[0]}
    sharded = optimizer_of(now, dict.fromkeys(SHAPES, (mesh, [Shard(0)])), **given)
    sharded[1].load_state_dict(full[1].state_dict())
    run(*full, range(2, 4))
    run(*sharded, range(2, 4))
    assert_same(*sharded, *full)


def refusals(mesh):
    tensors, rows = make_parameters("fp32"), dict.fromkeys(SHAPES, (mesh, [Shard(0)]))
    with pytest.raises(CofituneError, match=r"up is distributed as Shard\(dim=1\); only Shard\(0\), as of fully_shard"):
        optimizer_of(tensors, {"up": (mesh, [Shard(1)])})
    half = torch.zeros(7, 300, dtype=torch.bfloat16)
    with pytest.raises(CofituneError, match="the shards of short cut through blocks of 256 elements that share"):
        optimizer_of({"up": half, "short": half[0].clone()}, {"short": (mesh, [Shard(0)])}, storage="int8")
    mask = distribute_tensor(torch.ones(7, 1), mesh, [Shard(0)])
    with pytest.raises(CofituneError, match="the mask of up is a DTensor, but its parameter is not; pass its full_"):
        optimizer_of(tensors, masks={"up": mask})
    with pytest.raises(CofituneError, match=r"mask of up is distributed as Shard\(dim=0\) and its parameter as Replic"):
        optimizer_of(tensors, {"up": (mesh, [Replicate()])}, masks={"up": mask})

    pairs, optimizer = optimizer_of(tensors, rows)
    run(pairs, optimizer, [0])
    with pytest.raises(CofituneError, match="exp_avg of up is a DTensor, but its parameter is not"):
        optimizer_of(tensors)[1].load_state_dict(optimizer.state_dict())
    pairs[0][1].grad = DTensor.from_local(torch.ones(7, 300), mesh, [Partial()])
    with pytest.raises(CofituneError, match=r"the gradient of up is distributed as .*Partial.*, but the param"):
        optimizer.step()


CASES = {
    **{f"same bits: {s}": (same_bits, s) for s in STORAGES},
    **{f"fully_shard: {s}": (fully_sharded_model, s) for s in ("fp32", "bf16_sr", "int8")},
    **{f"distributed checkpoint: {s}": (distributed_checkpoint, s) for s in ("bf16_split", "int8")},
    **{f"torch's state, {words}": (state_of_torchs_checkpoint, named)
       for named, words in ((True, "names"), (False, "no names"))},
    **{f"whole state: {s}": (whole_state, s) for s in ("bf16_split", "int8")},
    **{case.__name__: (case,) for case in (
        clipping, counted_on_the_device, initial_weights, mixed_placements, replicas_of_shards,
        factors_that_are_distributed, infinity_on_one_rank, refusals)},
}


def work(rank, folder):
    """Runs every case on one rank and writes what went wrong: case -> text, empty if nothing did."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD,
                            timeout=timedelta(seconds=60))  # a rank that failed alone is not waited for forever
    mesh, failures = init_device_mesh("cpu", (WORLD,)), {}
    for name, (case, *arguments) in CASES.items():
        try:
            case(mesh, *arguments)
            failures[name] = ""
        except Exception:
            failures[name] = traceback.format_exc()
        dist.barrier()
    torch.save(failures, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
