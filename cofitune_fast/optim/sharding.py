"""DTensors (FSDP2, fully_shard): the rows of a parameter on this rank, with their states, masks and pulls.

Each rank updates its own rows. States, masks and pulls are placed like their parameter. Random numbers are counted from
the first element of the whole tensor. So a sharded run has the same bits as an unsharded one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..ops import GradNorm, grad_norm
from ..ops._checks import require
from ..ops._storage import SCALE_BLOCK, STORAGES

Spread = tuple[Any, Any] | None  # device mesh and placements of a parameter; None: it is not a DTensor


def is_sharded(tensor: Tensor) -> bool:
    """True for a DTensor. The check does not import torch.distributed.tensor."""
    return hasattr(tensor, "device_mesh")


def spread(p: Tensor) -> Spread:
    return (p.device_mesh, p.placements) if is_sharded(p) else None


def local(tensor: Tensor) -> Tensor:
    """Part of a tensor on this rank, without a copy. Call it without grad mode."""
    if not is_sharded(tensor):
        return tensor
    part = tensor.to_local()
    return part.wait() if hasattr(part, "wait") else part  # its collective may still be running


def rows(tensor: Tensor) -> tuple[int, int]:
    """First row of a DTensor on this rank, and the number of rows here. Rows are along the first dimension."""
    first, count = 0, tensor.shape[0] if tensor.dim() else 1
    mesh = tensor.device_mesh
    for ranks, rank, placement in zip(mesh.shape, mesh.get_coordinate(), tensor.placements, strict=True):
        if placement.is_shard():
            chunk = -(-count // ranks)  # as in torch.chunk, the last ranks may have fewer rows or none
            skipped = min(rank * chunk, count)
            first, count = first + skipped, min(chunk, count - skipped)
    return first, count


def first_element(p: Tensor) -> int:
    """Index in the whole tensor of the first element on this rank."""
    return rows(p)[0] * math.prod(p.shape[1:]) if is_sharded(p) else 0


def check_placement(op: str, name: str, p: Tensor, storage: str) -> None:
    if not is_sharded(p):
        return
    from torch.distributed.tensor import Replicate, Shard

    known = all(type(x) is Replicate or (type(x) is Shard and x.dim == 0) for x in p.placements)
    require(
        known and local(p.detach()).shape[:1] == (rows(p)[1],) * min(p.dim(), 1),
        f"{op}: {name} is distributed as {_words(p)}; only Shard(0), as of fully_shard, and Replicate are served.",
    )
    shards = math.prod(n for n, x in zip(p.device_mesh.shape, p.placements, strict=True) if x.is_shard())
    require(
        not STORAGES[storage].scaled or p.dim() != 1 or shards == 1 or -(-p.shape[0] // shards) % SCALE_BLOCK == 0,
        f"{op}: the shards of {name} cut through blocks of {SCALE_BLOCK} elements that share a scale; give parameters "
        f"of one dimension a group with another storage than {storage!r}.",
    )


def check_like(op: str, label: str, tensor: Tensor, p: Tensor) -> None:
    """Refuse a DTensor whose rows are placed unlike those of p. A tensor that is not sharded always fits."""
    if not is_sharded(tensor):
        return
    require(is_sharded(p), f"{op}: {label} is a DTensor, but its parameter is not; pass its full_tensor().")
    whole = all(x.is_replicate() for x in tensor.placements)
    require(
        tensor.device_mesh == p.device_mesh
        and (whole or (tensor.placements == p.placements and _same_rows(tensor, p))),
        f"{op}: {label} is distributed as {_words(tensor)} and its parameter as {_words(p)}; distribute it like the "
        "parameter, or pass the whole tensor.",
    )


def like(tensor: Tensor, p: Tensor) -> Tensor:
    """Move a tensor that broadcasts to p to p's device. For a DTensor p the result is a DTensor too.

    A tensor with p's rows is placed like p; other tensors are replicated. Call it without grad mode, and after
    `check_like`.
    """
    if not is_sharded(p):
        return tensor.to(p.device)
    if is_sharded(tensor):
        if tensor.placements == p.placements and tensor.device == p.device:
            return tensor
        tensor = local(tensor)  # it is replicated, so this is the whole tensor
    if _same_rows(tensor, p):
        first, count = rows(p)
        mine = tensor[first : first + count] if tensor.dim() else tensor
        return distributed(mine.to(p.device, copy=True), p, tensor.shape)
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(tensor.to(p.device), p.device_mesh, run_check=False)  # the same on every rank


def distributed(part: Tensor, p: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Make a DTensor of the global `shape`, placed like p, from its `part` here. If p is none, `part` is returned."""
    if not is_sharded(p):
        return part
    from torch.distributed.tensor import DTensor

    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        part, p.device_mesh, p.placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def global_grad_norm(grads: Mapping[Spread, list[Tensor]], max_norm: float | None, backend: str) -> GradNorm:
    """Compute `ops.grad_norm` over the gradients of all ranks, without a host sync. Replicas count once.

    grads: `spread` of the parameters -> this rank's parts of their gradients.
    """
    if set(grads) <= {None}:
        return grad_norm(grads.get(None, []), max_norm, backend=backend)
    norms = [_over_ranks(grad_norm(parts, backend=backend).norm, where) for where, parts in grads.items()]
    return grad_norm(norms, max_norm, backend=backend)  # the norm of norms is the norm of all


def _over_ranks(norm: Tensor, where: Spread) -> Tensor:
    if where is None:
        return norm
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, placements = where
    sums = [Partial() if x.is_shard() else Replicate() for x in placements]
    square = norm.double().square()  # float32 squares would overflow
    return DTensor.from_local(square, mesh, sums, run_check=False).full_tensor().sqrt().float()


def _same_rows(tensor: Tensor, p: Tensor) -> bool:
    return tensor.dim() == p.dim() and tensor.shape[:1] == p.shape[:1]


def _words(tensor: Tensor) -> str:
    return " x ".join(map(repr, tensor.placements))
