"""Digests of a model's bytes: they tell one base from another and prove that frozen tensors did not move."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch import nn

from ..errors import CofituneError
from .sharded import rank, whole, world_size

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # inserted anywhere in a name
_CHUNK_BYTES = 64 << 20  # what is copied from an accelerator at a time


def normalize_name(name: str) -> str:
    """A tensor's name without what torch.compile, DistributedDataParallel and FSDP put into it.

    >>> normalize_name("_orig_mod.module.model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        parts.pop(0)
    return ".".join(parts)


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters under their normalised names; a tied one appears once, under its first name."""
    for name, parameter in model.named_parameters():
        yield normalize_name(name), parameter


def named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters, then the persistent buffers, under their normalised names; each tensor once.

    With a weight that bitsandbytes quantised comes its quantisation state (scales and codes), as WEIGHT.NAME.
    """
    yield from named_parameters(model)
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for key, tensor in _quantization_state(module):
            yield normalize_name(f"{prefix}.weight.{key}" if prefix else f"weight.{key}"), tensor
        for key, buffer in module._buffers.items():
            if buffer is None or key in module._non_persistent_buffers_set or id(buffer) in seen:
                continue
            seen.add(id(buffer))
            yield normalize_name(f"{prefix}.{key}" if prefix else key), buffer


def element_count(parameter: torch.Tensor) -> int:
    """How many numbers a weight holds; a 4-bit one is packed, so its own count of elements is half of that."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def _quantization_state(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    weight = getattr(module, "weight", None)
    if (state := getattr(weight, "quant_state", None)) is not None:  # 4 bits; the scales are in 8 bits themselves
        yield from (("absmax", state.absmax), ("code", state.code))
        if (nested := getattr(state, "state2", None)) is not None:
            yield from (("offset", state.offset), ("nested_absmax", nested.absmax), ("nested_code", nested.code))
    scales = getattr(weight, "SCB", None)  # 8 bits; the first forward moves the scales from the weight to its module
    if scales is None:
        scales = getattr(getattr(module, "state", None), "SCB", None)
    if isinstance(scales, torch.Tensor):
        yield "SCB", scales


def tensor_digest(tensor: torch.Tensor) -> str:
    """sha256 (hex) of a tensor's dtype, shape and bytes, on any device, in any dtype, the whole of a sharded one."""
    tensor = whole(tensor)
    if tensor.is_meta:
        raise CofituneError("A tensor on the meta device has no bytes to digest; load the model's weights first.")
    dtype = str(tensor.dtype).removeprefix("torch.")
    digest = hashlib.sha256(f"{dtype} {tuple(tensor.shape)}\n".encode())
    # numpy knows no bfloat16 or float8, so every dtype is read as bytes
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for start in range(0, flat.numel(), _CHUNK_BYTES):
        digest.update(flat[start : start + _CHUNK_BYTES].cpu().numpy())
    return digest.hexdigest()


def digest_all(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The digest of each tensor. hashlib frees the interpreter lock, so a few threads share the work.

    Of sharded tensors one at a time is whole, and the ranks share the work: all of them must call it.
    """
    if any(hasattr(tensor, "full_tensor") for tensor in tensors.values()):
        return _digests_of_shards(tensors)
    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(tensors, pool.map(tensor_digest, tensors.values()), strict=True))


def _digests_of_shards(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    mine = {}
    for index, (name, tensor) in enumerate(tensors.items()):
        gathered = whole(tensor)
        if index % world_size() == rank():
            mine[name] = tensor_digest(gathered)
    shares: list[dict[str, str]] = [{}] * world_size()
    dist.all_gather_object(shares, mine)
    together = {name: digest for share in shares for name, digest in share.items()}
    return {name: together[name] for name in tensors}


def tensor_digests(model: nn.Module) -> dict[str, str]:
    """Name -> sha256 (hex) of dtype, shape and bytes, for every tensor of `model` (`named_tensors`).

    Tied parameters appear once. Names carry no wrapper prefixes. Memory: at most 64 MB per thread beyond the model.

    Raises:
        CofituneError: a tensor lies on the meta device.
    """
    return digest_all(dict(named_tensors(model)))


def combine_digests(digests: Mapping[str, str]) -> str:
    """One sha256 (hex) over (name, digest) pairs, sorted by name."""
    combined = hashlib.sha256()
    for name in sorted(digests):
        combined.update(f"{name}\0{digests[name]}\n".encode())
    return combined.hexdigest()


def fingerprint(model: nn.Module) -> str:
    """The sha256 (hex) that stands for all of a model's weights, their names and their dtypes.

    The same checkpoint loaded in another dtype has another fingerprint, for its bytes differ.
    """
    return combine_digests(tensor_digests(model))


def base_digests(model: nn.Module, digests: Mapping[str, str] | None = None) -> dict[str, str]:
    """The digests of a model's full-precision base: its own, except that a weight quantised by `load_quantized` counts
    with the bytes it had in the checkpoint. `digests` are `tensor_digests(model)` where they are known already."""
    digests = tensor_digests(model) if digests is None else digests
    originals = getattr(getattr(getattr(model, "module", model), "hf_quantizer", None), "original_digests", {})
    return {
        name: originals.get(name, digest) for name, digest in digests.items()
        if name.rpartition(".")[0] not in originals  # no quantisation state
    }


def base_fingerprint(model: nn.Module) -> str:
    """The fingerprint of a model's full-precision base, to which deltas are bound, also of one partly quantised.

    Of a model without a quantised part it is `fingerprint(model)`.
    """
    return combine_digests(base_digests(model))
