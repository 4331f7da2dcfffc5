"""Fine-tuned variants of a base: deltas and model folders, loaded into the base one after another."""

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
    """A variant. name: for tables and pictures. path: folder of a delta or of a model. region: None for a model."""

    name: str
    path: str
    region: str | None


def find_variants(paths: Sequence[str | Path]) -> list[Variant]:
    """Find the deltas and models at `paths`. They are named after their folders; `RUN/delta` is named RUN.

    Raises:
        CofituneError: no path is given, or a folder is neither a delta nor a model.
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
    """Context in which `model`, the base with this `fingerprint`, has the weights of the variant. It is restored after.

    Yields name -> tensor of the base, for all tensors that were replaced.

    Raises:
        CofituneError: the delta has another base or is damaged, or the model has other tensors than the base.
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
