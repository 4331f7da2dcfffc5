"""DTensors (FSDP2, fully_shard): the rows of a parameter that lie on this rank, and what goes with them.

Each rank updates its own rows. States, masks and pulls are placed like their parameter, and random numbers are
counted from the first element of the whole, so that a sharded run gives the bits of an unsharded one.
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

Spread = tuple[Any, Any] | None  # of a parameter: its device mesh and placements; None: it is no DTensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor; asked so that a run without one need not import torch.distributed.tensor."""
    return hasattr(tensor, "device_mesh")


def spread(p: Tensor) -> Spread:
    return (p.device_mesh, p.placements) if is_sharded(p) else None


def local(tensor: Tensor) -> Tensor:
    """The part on this rank: no copy. To be called without grad mode."""
    if not is_sharded(tensor):
        return tensor
    part = tensor.to_local()
    return part.wait() if hasattr(part, "wait") else part  # the collective that makes it may still run


def rows(tensor: Tensor) -> tuple[int, int]:
    """The first row of a DTensor on this rank, and how many lie here. A row is an index of the first dimension."""
    first, count = 0, tensor.shape[0] if tensor.dim() else 1
    mesh = tensor.device_mesh
    for ranks, rank, placement in zip(mesh.shape, mesh.get_coordinate(), tensor.placements, strict=True):
        if placement.is_shard():
            chunk = -(-count // ranks)  # as torch.chunk: the last ranks may have fewer or none
            skipped = min(rank * chunk, count)
            first, count = first + skipped, min(chunk, count - skipped)
    return first, count


def first_element(p: Tensor) -> int:
    """Where the part on this rank begins in the whole tensor, in elements."""
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
    """Refuse a DTensor whose rows do not lie where p's do. A whole tensor fits any placement."""
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
    """A tensor that broadcasts to p, on p's device; for a DTensor p a DTensor whose rows, if p's, lie where p's do.

    To be called without grad mode, and after `check_like`.
    """
    if not is_sharded(p):
        return tensor.to(p.device)
    if is_sharded(tensor):
        if tensor.placements == p.placements and tensor.device == p.device:
            return tensor
        tensor = local(tensor)  # replicated: the whole
    if _same_rows(tensor, p):
        first, count = rows(p)
        mine = tensor[first : first + count] if tensor.dim() else tensor
        return distributed(mine.to(p.device, copy=True), p, tensor.shape)
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(tensor.to(p.device), p.device_mesh, run_check=False)  # the same on every rank


def distributed(part: Tensor, p: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor of the global `shape`, placed like p, of which `part` lies here; `part` itself if p is no DTensor."""
    if not is_sharded(p):
        return part
    from torch.distributed.tensor import DTensor

    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        part, p.device_mesh, p.placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def global_grad_norm(grads: Mapping[Spread, list[Tensor]], max_norm: float | None, backend: str) -> GradNorm:
    """`ops.grad_norm` over the gradients of all ranks, replicas counted once. Nothing waits for it.

    grads: this rank's parts, by the `spread` of their parameters.
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
