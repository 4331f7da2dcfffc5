"""One model on several GPUs of one machine: FSDP2 shards its weights over the processes (ranks) of torchrun.

Each rank keeps a part of every weight, and gathers one decoder layer at a time. A function marked "Collective" waits
for all ranks: each rank must call it, in the same order. In a single process these functions do nothing or return their
argument, so callers need no case of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import CofituneError


def started_by_torchrun() -> bool:
    """True if torchrun (or `accelerate launch`) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def world_size() -> int:
    """Number of processes that share the model."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """Number of this process among the ranks, known before `join`. Rank 0 prints and writes files."""
    if _joined():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if started_by_torchrun() else 0


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def join(device: torch.device) -> torch.device:
    """Join the other ranks unless that was done before; returns this rank's device, of the type of `device`.

    Collective.

    Raises:
        CofituneError: torchrun started more processes than there are GPUs, or its environment variables are missing.
    """
    if any(name not in os.environ for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR")):
        raise CofituneError("WORLD_SIZE is set, but RANK, LOCAL_RANK or MASTER_ADDR is not: start the processes by "
                            "torchrun --nproc-per-node N, or unset WORLD_SIZE.")
    if device.type == "cuda":
        number = int(os.environ["LOCAL_RANK"])
        if number >= torch.cuda.device_count():
            raise CofituneError(f"torchrun started process {number + 1} on this machine, which has "
                                f"{torch.cuda.device_count()} GPUs: give --nproc-per-node that number.")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    if not _joined():
        # gloo beside nccl: the ranks exchange values that lie on the host, without waiting for the GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def leave() -> None:
    """Leave the other ranks when all work is done."""
    if _joined():
        dist.destroy_process_group()


# Values that the ranks exchange ---------------------------------------------------------------------------------------


def total(value: float) -> float:
    """Sum of all ranks' values. Collective."""
    if world_size() == 1:
        return value
    summed = torch.tensor(float(value), dtype=torch.float64, device=_host())
    dist.all_reduce(summed)
    return summed.item()


def highest(value: float) -> float:
    """Return the largest of all ranks' values. Collective."""
    if world_size() == 1:
        return value
    found = torch.tensor(float(value), dtype=torch.float64, device=_host())
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.item()


def any_rank(flag: bool) -> bool:
    """True if the flag is set on any rank. Collective."""
    return total(flag) > 0


def all_ranks(flag: bool) -> bool:
    """True if the flag is set on every rank. Collective."""
    return not any_rank(not flag)


def barrier() -> None:
    """Wait until every rank is here. Collective."""
    total(0)


def broadcast_object(value: Any) -> Any:
    """Return rank 0's value on every rank. It must be picklable. Collective."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device(_host()))
    return box[0]


@contextmanager
def rank_0_first() -> Iterator[None]:
    """Context that runs its block on rank 0 first, and then on the other ranks. Collective."""
    if rank() != 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def _host() -> str:
    return "cpu" if "gloo" in dist.get_backend_config() else "cuda"


# The model ------------------------------------------------------------------------------------------------------------


def is_sharded(model: nn.Module) -> bool:
    return hasattr(model, "reshard")


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Shard `model` over the ranks' devices, in place. Its weights lie on the host and are the same on every rank.

    There is one FSDP2 group per decoder layer, and one for the rest (embeddings, last norm, head). Weights are split by
    rows, Shard(0). Gradients are averaged over the ranks in float32; frozen weights have none to reduce. Outside of a
    forward or backward the parameters are DTensors. Collective.

    Raises:
        CofituneError: the model mixes dtypes, or no list of decoder layers is found in it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    if len(dtypes) > 1:
        raise CofituneError(f"This model mixes the dtypes {', '.join(dtypes)}, so it cannot be sharded: set "
                            "model.dtype.")
    mesh = init_device_mesh(device.type, (world_size(),))
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in _decoder_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    # The rest stays gathered until the end of the backward: the loss needs the head, and the backward the norm.
    fully_shard(model, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
    model.register_forward_hook(_reshard_where_no_backward_comes, always_call=True)
    # FSDP records the dtype of gradients at the first forward, for the parameters that require one at that time.
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    return model


def writes(model: nn.Module) -> bool:
    """True if this process writes the files made from `model`. Of the ranks that share a model only rank 0 does."""
    return rank() == 0 or not is_sharded(model)


def reshard(model: nn.Module) -> None:
    """Free the gathered weights that an interrupted forward or backward has left behind."""
    for module in model.modules():
        if is_sharded(module):
            module.reshard()


def _reshard_where_no_backward_comes(model: nn.Module, inputs: Any, output: Any) -> None:
    if not torch.is_grad_enabled():
        model.reshard()


def _decoder_layers(model: nn.Module) -> nn.ModuleList:
    lists = [module for module in model.get_decoder().children() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise CofituneError(f"{type(model).__name__} has no list of decoder layers, so it cannot be sharded.")
    return max(lists, key=len)


# Tensors --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor on its device; any other tensor is returned as it is. Collective for a sharded one."""
    if not hasattr(tensor, "full_tensor"):
        return tensor
    if tensor.dtype == torch.int16:  # gloo cannot send int16
        return _seen_as(tensor.detach(), torch.bfloat16).full_tensor().view(torch.int16)
    return tensor.detach().full_tensor()


def whole_on_rank_0(tensor: Tensor) -> Tensor | None:
    """Gather a sharded tensor on the host of rank 0, and return None on the other ranks. Collective for a sharded one.

    Any other tensor is returned on the host, on every rank.
    """
    gathered = whole(tensor)
    return gathered.detach().cpu().contiguous() if gathered is tensor or rank() == 0 else None


@torch.no_grad()
def copy_whole(target: Tensor, source: Tensor) -> None:
    """Copy `source` into `target`. A sharded target takes its own rows from a source that is not sharded."""
    if hasattr(target, "full_tensor") and not hasattr(source, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(source)


def _seen_as(tensor: Any, dtype: torch.dtype) -> Any:
    """Reinterpret a DTensor's bytes as another dtype of the same size."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(tensor.to_local().view(dtype), tensor.device_mesh, tensor.placements, run_check=False,
                              shape=tensor.shape, stride=tensor.stride())
