"""Facts about a checkpoint without loading the model: its structure, the dtype of its weights and their digests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import cached_file

from ..errors import CofituneError
from ..json_text import read_json
from .auto import auto_class, read_config
from .fingerprint import combine_digests, named_tensors, tensor_digest, tensor_digests

Roles = Mapping[str, str | list[str]]
"""Role -> weights of a layer that have it, as `regions.roles.by_map` reads them."""


def checkpoint_fingerprint(location: str | Path, dtype: torch.dtype | str = "auto") -> str:
    """Fingerprint (sha256, hex) of the model at `location` as loaded in `dtype`.

    It equals `fingerprint(load_model(location, dtype=...).model)`. `checkpoint_digests` describes its cost.
    """
    return combine_digests(checkpoint_digests(location, dtype))


def checkpoint_digests(
    location: str | Path, dtype: torch.dtype | str = "auto", only: Collection[str] | None = None
) -> dict[str, str]:
    """Name -> digest of each tensor of the model at `location`, as if loaded in `dtype`.

    location: a folder as `save_pretrained` writes it, or a hub id. only: the names to digest; None: all.

    The safetensors files are read tensor by tensor, at most four at a time. If transformers renames or converts tensors
    of this checkpoint, or if it has no safetensors, the whole model is loaded on the CPU and freed again.
    """
    dtype = checkpoint_dtype(location, dtype)
    wanted = {
        name: tensor.dtype for name, tensor in named_tensors(skeleton(location, dtype)) if only is None or name in only
    }
    files = _tensor_files(location)
    if not wanted.keys() <= files.keys():
        model = auto_class(read_config(location)).from_pretrained(location, dtype=dtype, trust_remote_code=False)
        digests = tensor_digests(model)
        return {name: digests[name] for name in wanted}
    with ExitStack() as stack, ThreadPoolExecutor(max_workers=4) as pool:
        opened = {
            file: stack.enter_context(safe_open(file, framework="pt")) for file in {files[name] for name in wanted}
        }

        def digest(name: str) -> str:
            return tensor_digest(opened[files[name]].get_tensor(name).to(wanted[name]))

        return dict(zip(wanted, pool.map(digest, wanted), strict=True))


def checkpoint_dtype(location: str | Path, dtype: torch.dtype | str = "auto") -> torch.dtype:
    """Dtype of the weights at `location` when loaded: `dtype`, or for "auto" the checkpoint's own.

    Raises:
        CofituneError: "auto", and neither the config nor a safetensors file gives a dtype.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        return getattr(torch, dtype)
    own = getattr(read_config(location), "dtype", None)
    if own is not None:
        return own if isinstance(own, torch.dtype) else getattr(torch, own)
    for file in sorted(set(_tensor_files(location).values())):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (the file is no mapping)
                if (tensor := opened.get_tensor(name)).is_floating_point():
                    return tensor.dtype
    raise CofituneError(f"The checkpoint {location} does not say its dtype; set the model's dtype.")


def with_roles(model: PreTrainedModel, roles: Roles | None) -> PreTrainedModel:
    """Keep the roles that a user gave at the model, where `resolve_layout` reads them."""
    if roles:
        model.cofitune_roles = dict(roles)
    return model


def skeleton(location: str | Path, dtype: torch.dtype, roles: Roles | None = None) -> PreTrainedModel:
    """Build the model at `location` on the meta device: modules, names, shapes and dtypes, but no weights."""
    with torch.device("meta"):
        config = read_config(location)
        model = auto_class(config).from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    return with_roles(model, roles)


def _tensor_files(location: str | Path) -> dict[str, str]:
    """Tensor name -> safetensors file of the checkpoint; empty if it has no such files."""
    try:
        file = cached_file(location, "model.safetensors")
        with safe_open(file, framework="pt") as opened:
            return dict.fromkeys(opened.keys(), file)
    except OSError:
        pass
    try:
        index = Path(cached_file(location, "model.safetensors.index.json"))
        shards = read_json(index, "list of weights", {"weight_map": {str: str}})["weight_map"]
        files = {shard: cached_file(location, shard) for shard in set(shards.values())}
    except OSError:
        return {}
    return {name: files[shard] for name, shard in shards.items()}
