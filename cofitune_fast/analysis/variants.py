"""Fine-tuned forms of a base: deltas and model folders, put into the base's weights one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..errors import CofituneError
from ..models.checkpoint import skeleton
from ..models.fingerprint import named_parameters
from ..models.loading import dtype_name, load_model
from ..regions import load_delta, read_delta, restore


@dataclass(frozen=True)
class Variant:
    """name: for tables and pictures. path: a delta's folder, or that of a whole model (then `region` is None)."""

    name: str
    path: str
    region: str | None


def find_variants(paths: Sequence[str | Path]) -> list[Variant]:
    """The deltas and model folders at `paths`, named after their folders; `RUN/delta` is named RUN.

    Raises:
        CofituneError: none is given, or a folder is neither a delta nor a model.
    """
    if not paths:
        raise CofituneError("There is nothing to compare with the base; give --delta FOLDER at least once.")
    variants: list[Variant] = []
    for path in map(Path, paths):
        is_model = (path / "config.json").is_file()
        region = None if is_model else read_delta(path).region
        folder = path.resolve()
        name = folder.parent.name if folder.name == "delta" else folder.name
        taken = {"base", *(variant.name for variant in variants)}
        number = next(n for n in range(1, len(paths) + 2) if (name if n == 1 else f"{name} ({n})") not in taken)
        variants.append(Variant(name if number == 1 else f"{name} ({number})", str(path), region))
    return variants


@contextmanager
def applied(model: nn.Module, variant: Variant, fingerprint: str) -> Iterator[dict[str, torch.Tensor]]:
    """Inside the block `model`, the base of that `fingerprint`, has the variant's weights; after it its own again.

    Yields the base's tensors that were replaced, by name: one copy of the region.

    Raises:
        CofituneError: the delta is of another base or damaged, or the model folder has other tensors than the base.
    """
    if variant.region is not None:
        replaced = load_delta(model, variant.path, base_fingerprint=fingerprint, keep_base=True)
    else:
        replaced = _copy_model(model, variant.path)
    try:
        yield replaced
    finally:
        restore(model, replaced)


def _copy_model(model: nn.Module, path: str) -> dict[str, torch.Tensor]:
    mine = dict(named_parameters(model))
    try:
        shapes = {name: weight.shape for name, weight in named_parameters(skeleton(path, torch.float32))}
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise CofituneError(f"The model {path} cannot be read ({reason}); name another folder.") from None
    if shapes != {name: weight.shape for name, weight in mine.items()}:
        raise CofituneError(f"The model {path} is no fine-tuning of {model.config.name_or_path}: its tensors have "
                            "other names or shapes; compare models of one base.")
    other = load_model(path, dtype=dtype_name(model), device="cpu").model
    replaced: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, tensor in named_parameters(other):
            if not torch.equal(tensor, mine[name].cpu()):
                replaced[name] = mine[name].detach().clone()
                mine[name].copy_(tensor)
    return replaced
