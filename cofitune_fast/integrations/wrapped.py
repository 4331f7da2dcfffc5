"""Models as other people's loops hold them: wrapped, compiled or prepared."""

from __future__ import annotations

from torch import nn

from ..errors import CofituneError

_REFUSED = {
    "DistributedDataParallel": "give model.module, and start one process",
    "DataParallel": "give model.module, and let one GPU be seen (CUDA_VISIBLE_DEVICES=0)",
    "FullyShardedDataParallel": "shard the model by FSDP2 (fully_shard, or fsdp_version: 2 in accelerate)",
    "DeepSpeedEngine": "train without DeepSpeed; FSDP2 shards a model too",
}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that torch.compile has wrapped, or the model itself.

    Raises:
        CofituneError: it is wrapped in something else.
    """
    while hasattr(model, "_orig_mod"):
        model = model._orig_mod
    kind = next((base.__name__ for base in type(model).__mro__ if base.__name__ in _REFUSED), None)
    if kind is not None:
        raise CofituneError(f"The model is wrapped in {kind}, which the anchor's own backward does not work with; "
                            f"{_REFUSED[kind]}.")
    return model
