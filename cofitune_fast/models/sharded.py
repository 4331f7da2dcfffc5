"""Several GPUs of one machine for one model: FSDP2 shards its weights over the processes (ranks) of torchrun.

Each rank keeps a part of every weight and has the whole of one decoder layer at a time. What a function here calls
collective waits for all ranks: each of them must call it, in the same order. In a single process all of them do
nothing or hand their argument back, so callers need not ask.
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
    """Whether torchrun (or `accelerate launch`) has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def world_size() -> int:
    """How many processes hold the model together."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """The number of this process among them, known before it joins; rank 0 is the one that prints and writes files."""
    if _joined():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if started_by_torchrun() else 0


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def join(device: torch.device) -> torch.device:
    """Join the other ranks, if that has not been done; returns the device of this one, of `device`'s type.

    Collective.

    Raises:
        CofituneError: torchrun started more processes than there are GPUs, or did not say which one this is.
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
        # gloo beside nccl: what the ranks agree upon lies on the host, and asking must not wait for the GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def leave() -> None:
    """Part from the other ranks, once all work is done."""
    if _joined():
        dist.destroy_process_group()


# What the ranks agree upon --------------------------------------------------------------------------------------------


def total(value: float) -> float:
    """The sum of every rank's value. Collective."""
    if world_size() == 1:
        return value
    summed = torch.tensor(float(value), dtype=torch.float64, device=_host())
    dist.all_reduce(summed)
    return summed.item()


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank. Collective."""
    return total(flag) > 0


def all_ranks(flag: bool) -> bool:
    """Whether the flag is set on every rank. Collective."""
    return not any_rank(not flag)


def barrier() -> None:
    """Wait until every rank is here. Collective."""
    total(0)


def broadcast_object(value: Any) -> Any:
    """Rank 0's value, on every rank; it must be picklable. Collective."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device(_host()))
    return box[0]


@contextmanager
def rank_0_first() -> Iterator[None]:
    """The block runs on rank 0, and when that is through, on the others. Collective."""
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
    """Shard `model`, whose weights lie on the host and are the same on every rank, over the ranks' devices, in place.

    One FSDP2 group per decoder layer, one for all else (embeddings, last norm, head); rows are shared out, Shard(0).
    Frozen weights have no gradient, so nothing of them is reduced; gradients are averaged over the ranks in float32.
    Parameters are sharded ones (DTensors) whenever no forward or backward runs. Collective.

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
    # The rest stays whole from the forward to the end of the backward: the loss needs the head, the backward the norm.
    fully_shard(model, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
    model.register_forward_hook(_reshard_where_no_backward_comes, always_call=True)
    with torch.no_grad():  # FSDP notes the gradients' dtype at the first forward, of what requires a gradient then
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    return model


def writes(model: nn.Module) -> bool:
    """Whether this process writes what is made from `model`: of the ranks that share it only rank 0 does."""
    return rank() == 0 or not is_sharded(model)


def reshard(model: nn.Module) -> None:
    """Give up whole weights that an interrupted forward or backward has left behind."""
    for module in model.modules():
        if is_sharded(module):
            module.reshard()


def unshard(model: nn.Module) -> None:
    """Make whole what lies outside the decoder layers, for who calls a part of the model and not the model itself.

    It lasts until the end of the backward, of a call of the model without gradients, or `reshard`. Collective.
    """
    if is_sharded(model):
        model.unshard()


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
    """The whole of a sharded tensor, on its device, or the tensor itself. Collective for a sharded one."""
    if not hasattr(tensor, "full_tensor"):
        return tensor
    if tensor.dtype == torch.int16:  # gloo does not send it
        return _seen_as(tensor.detach(), torch.bfloat16).full_tensor().view(torch.int16)
    return tensor.detach().full_tensor()


def whole_on_rank_0(tensor: Tensor) -> Tensor | None:
    """As `whole`, but on the host; None on other ranks than 0 for a sharded tensor, for which it is collective."""
    gathered = whole(tensor)
    return gathered.detach().cpu().contiguous() if gathered is tensor or rank() == 0 else None


@torch.no_grad()
def copy_whole(target: Tensor, source: Tensor) -> None:
    """target.copy_(source); of a whole source a sharded target takes the rows that lie on this rank."""
    if hasattr(target, "full_tensor") and not hasattr(source, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(source)


def _seen_as(tensor: Any, dtype: torch.dtype) -> Any:
    """A DTensor whose bytes are read as another dtype of the same size."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(tensor.to_local().view(dtype), tensor.device_mesh, tensor.placements, run_check=False,
                              shape=tensor.shape, stride=tensor.stride())
