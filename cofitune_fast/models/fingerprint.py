"""Digests of a model's bytes. They identify a base, and prove that frozen tensors did not change."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch import nn

from ..errors import CofituneError
from ..progress import tracked
from .sharded import rank, whole, world_size

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # parts of a name, at any position
PARTS = "cofitune_parts"  # module with the trained parts of another module's tensors, see regions.parts
_CHUNK_BYTES = 64 << 20  # bytes copied from an accelerator at a time


def normalize_name(name: str) -> str:
    """Remove from a tensor's name the parts that torch.compile, DistributedDataParallel and FSDP insert.

    >>> normalize_name("_orig_mod.module.model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        parts.pop(0)
    return ".".join(parts)


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters with their normalised names; a tied one appears once, under its first name.

    Trained parts are left out, as they share the storage of the tensors they are parts of.
    """
    for name, parameter in model.named_parameters():
        if f"{PARTS}." not in name:
            yield normalize_name(name), parameter


def named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters and then the persistent buffers with their normalised names; each tensor once.

    The quantisation state (scales and codes) of a weight quantised by bitsandbytes is included, as WEIGHT.NAME.
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
    """Number of elements of a weight. A 4-bit weight packs two in a byte, so its numel() is half of that."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def _quantization_state(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    weight = getattr(module, "weight", None)
    if (state := getattr(weight, "quant_state", None)) is not None:  # 4 bits; the scales are quantised to 8 bits
        yield from (("absmax", state.absmax), ("code", state.code))
        if (nested := getattr(state, "state2", None)) is not None:
            yield from (("offset", state.offset), ("nested_absmax", nested.absmax), ("nested_code", nested.code))
    scales = getattr(weight, "SCB", None)  # 8 bits; the first forward moves SCB to the module
    if scales is None:
        scales = getattr(getattr(module, "state", None), "SCB", None)
    if isinstance(scales, torch.Tensor):
        yield "SCB", scales


def tensor_digest(tensor: torch.Tensor) -> str:
    """sha256 (hex) of a tensor's dtype, shape and bytes, on any device. A sharded tensor is gathered first."""
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
    """Digest each tensor, in four threads, as hashlib releases the interpreter lock.

    Sharded tensors are gathered one at a time, and the ranks share the work: all of them must call it.
    """
    if any(hasattr(tensor, "full_tensor") for tensor in tensors.values()):
        return _digests_of_shards(tensors)
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = tracked(pool.map(tensor_digest, tensors.values()), "Hashing weights", "tensors", len(tensors))
        return dict(zip(tensors, found, strict=True))


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

    Tied parameters appear once. Names are normalised. Memory: at most 64 MiB per thread beside the model.

    Raises:
        CofituneError: a tensor lies on the meta device.
    """
    return digest_all(dict(named_tensors(model)))


def combine_digests(digests: Mapping[str, str]) -> str:
    """Combine (name, digest) pairs, sorted by name, into one sha256 (hex)."""
    combined = hashlib.sha256()
    for name in sorted(digests):
        combined.update(f"{name}\0{digests[name]}\n".encode())
    return combined.hexdigest()


def fingerprint(model: nn.Module) -> str:
    """Compute one sha256 (hex) over the names, dtypes, shapes and bytes of all of a model's tensors.

    The same checkpoint loaded in another dtype has another fingerprint, as its bytes differ.
    """
    return combine_digests(tensor_digests(model))


def base_digests(model: nn.Module, digests: Mapping[str, str] | None = None) -> dict[str, str]:
    """Digests of a model's full-precision base.

    They are the model's own, but a weight quantised by `load_quantized` counts with its bytes in the checkpoint.
    digests: `tensor_digests(model)`, if they are known already.
    """
    digests = tensor_digests(model) if digests is None else digests
    originals = getattr(getattr(getattr(model, "module", model), "hf_quantizer", None), "original_digests", {})
    return {
        name: originals.get(name, digest) for name, digest in digests.items()
        if name.rpartition(".")[0] not in originals  # no quantisation state
    }


def base_fingerprint(model: nn.Module) -> str:
    """Fingerprint of a model's full-precision base. Deltas are bound to it.

    It is `fingerprint(model)` unless a part of the model is quantised.
    """
    return combine_digests(base_digests(model))
