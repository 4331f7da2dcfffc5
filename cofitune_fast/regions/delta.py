"""Deltas: the tensors of a region as safetensors, bound to their base. Save and load them."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .. import __version__
from ..errors import CofituneError
from ..files import WriteFailed, atomic_folder, atomic_path, cache_folder, write_text
from ..json_text import flaw, parse_json, read_json, write_json
from ..models.fingerprint import (
    base_digests,
    base_fingerprint,
    combine_digests,
    digest_all,
    named_parameters,
    tensor_digest,
)
from ..models.loading import dtype_name
from ..models.sharded import barrier, copy_whole, is_sharded, reshard, whole_on_rank_0, writes
from .card import Cells, model_card, terms_of
from .cells import ROLES, Part, part_name
from .download import delta_folder
from .frozen import parts_of, rest_digests
from .layout import resolve_layout, tensors_named
from .region import LayerSet, Region

TENSORS, INFO, CARD = "delta.safetensors", "cofitune.json", "README.md"
_FORMAT, _WITH_PARTS = 1, 2  # a delta without parts of tensors is written as the first version did


@dataclass(frozen=True)
class BaseInfo:
    """Base model of an artefact: hub id or folder, fingerprint (sha256 hex; "" if unknown), dtype such as "bfloat16".

    It is always the full-precision base, also for a model with a quantised part (`load_model(quantize=...)`).
    """

    model: str
    fingerprint: str
    dtype: str

    @classmethod
    def of(cls, model: nn.Module, source: str | Path | None = None) -> BaseInfo:
        """Describe `model` as it is now. Call it before training; it reads all bytes of the model."""
        return cls(str(source or _model_name(model)), base_fingerprint(model), dtype_name(model))


@dataclass(frozen=True)
class DeltaInfo:
    """Description of a delta: the content of cofitune.json.

    parameters: tensor name -> digest.
    parts: name -> {"parameter", "dim", "start", "stop", "period"} of the tensors that are parts of the model's, see
        `cells.Part`.
    frozen_fingerprint: fingerprint of the tensors outside the region. It identifies the base if the base's own
        fingerprint was not recorded, and is "" otherwise.
    """

    format: int
    region: str
    parameters: dict[str, str]
    base: BaseInfo
    frozen_fingerprint: str
    settings: dict[str, Any]
    scores: dict[str, Any]
    versions: dict[str, str]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)


_FORM = {  # of a delta's description, see `json_text.flaw`
    "format": int, "region": str, "parameters": {str: str}, "base": {"model": str, "fingerprint": str, "dtype": str},
    "frozen_fingerprint": str, "settings": dict, "scores": dict, "versions": {str: str},
    "parts?": {str: {"parameter": str, "dim": int, "start": int, "stop": int, "period": int}},
}


def save_delta(
    model: nn.Module,
    region: Region | str,
    path: str | Path,
    *,
    base: BaseInfo | None = None,
    settings: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
) -> Path:
    """Write a delta: the folder `path` with the region's tensors (delta.safetensors), cofitune.json and a model card.

    The tensors keep the model's dtype. A delta that exists at `path` is replaced; a killed process leaves either the
    old one or the new one. All ranks of a sharded model call it, and rank 0 writes the same files as a single process.

    base: the model before training, see BaseInfo.of. Without it the tensors outside the region identify the base, as
        training does not change them.
    settings: JSON values. scores: {name: number} or {row: {column: number}}.

    Where `path` cannot be written, the same files are written elsewhere, and the error names the place.

    Raises:
        CofituneError: `path` holds something else, or the settings or scores are not JSON.
        WriteFailed: the disk is full or read-only, or the like.
    """
    region, path = Region.parse(region), Path(path)
    if writes(model) and path.exists() and not _replaceable(path):
        raise CofituneError(f"{path} exists and is not a delta; choose another folder for the delta.")
    tensors = {name: whole_on_rank_0(parameter) for name, parameter in region.parameters(model)}
    frozen = ""
    if base is None:
        frozen = _frozen_fingerprint(model, tensors, parts_of(model, tensors))
        base = BaseInfo(_model_name(model), "", dtype_name(model))
    try:
        if writes(model):
            described = {name: {"parameter": parameter, **part.as_json()}
                         for name, (parameter, part) in parts_of(model, tensors).items()}
            _save(path, region, tensors, described, base, frozen, settings, scores, _cells(model, tensors))
    finally:
        if is_sharded(model):
            barrier()
    return path


def _save(
    path: Path, region: Region, tensors: dict[str, torch.Tensor], parts: dict[str, Any], base: BaseInfo, frozen: str,
    settings: Mapping[str, Any] | None, scores: Mapping[str, Any] | None, cells: Cells | None,
) -> None:
    info = DeltaInfo(
        _WITH_PARTS if parts else _FORMAT, str(region), digest_all(tensors), base, frozen, dict(settings or {}),
        dict(scores or {}), _versions(), parts,
    )
    content = asdict(info)
    if not parts:
        del content["parts"]
    try:
        # The description is also in the tensors' file, so that one rename replaces both together.
        metadata = {"format": "pt", "cofitune": json.dumps(content, ensure_ascii=False)}
    except (TypeError, ValueError) as error:
        raise CofituneError(
            f"The settings or scores of the delta {path} are not plain JSON values ({error}); pass numbers, texts, "
            "lists and dicts."
        ) from None
    try:
        _write_folder(path, tensors, metadata, content, cells)
    except WriteFailed as error:
        kept = _write_elsewhere(path.name, tensors, metadata, content, cells)
        where = f"The delta is kept in {kept}: move it there once it can be written." if kept else (
            "Nor could it be written anywhere else.")
        error.sentence = f"{error} {where}"
        raise


def _write_folder(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], content: dict[str, Any],
    cells: Cells | None,
) -> None:
    if path.exists():
        _write(path, tensors, metadata, content, cells)
    else:
        with atomic_folder(path, tensor_bytes(tensors.values())) as building:
            _write(building, tensors, metadata, content, cells)


def _write_elsewhere(
    name: str, tensors: dict[str, torch.Tensor], metadata: dict[str, str], content: dict[str, Any],
    cells: Cells | None,
) -> Path | None:
    """Write a delta to the first folder that takes it: the cache's, the home, the one for temporary files, this one."""
    places = (cache_folder() / "rescued", Path(os.path.expanduser("~")), Path(tempfile.gettempdir()), Path.cwd())
    for place in places:
        kept = place / f"cofitune-{name}-{secrets.token_hex(4)}"
        with suppress(WriteFailed):
            _write_folder(kept, tensors, metadata, content, cells)
            return kept
    return None


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that tensors take, such as those of a region in its delta."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _cells(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Cells | None:
    """The delta's cells in the model's grid; None for a model of which no layers and roles are known."""
    try:
        layout = resolve_layout(model)
    except CofituneError:
        return None
    trained: dict[str, set[int]] = {}
    for cell in layout.cells:
        names = {cell.parameter, part_name(cell.parameter, cell.role)}
        trained.setdefault(cell.role, set()).update({cell.layer, *cell.shared} if names & tensors.keys() else ())
    texts = {role: _layers_text(trained[role]) for role in ROLES if role in trained}
    return Cells(layout.num_layers, texts, sum(tensor.numel() for tensor in tensors.values()))


def _layers_text(layers: set[int]) -> str:
    numbers = LayerSet()
    for layer in layers:
        numbers |= LayerSet(ranges=((layer, layer),))
    return str(numbers)


def read_cells(folder: Path) -> Cells | None:
    """Read where in the model's grid the delta in `folder` lies; None if it is not known."""
    try:
        return Cells.read(read_json(folder / INFO, "description of a delta").get("cells"))
    except (OSError, CofituneError, AttributeError):
        return None


def read_delta(path: str | Path) -> DeltaInfo:
    """Read the description of a delta from the header of its safetensors file.

    path: the delta's folder, or its hub id, "OWNER/NAME" or "OWNER/NAME@REVISION".

    Raises:
        CofituneError: there is no delta, it is damaged, or a newer version wrote it.
    """
    path = delta_folder(path)
    with opened(path) as file:
        content = (file.metadata() or {}).get("cofitune")
    if content is None:
        raise CofituneError(f"{path} is not a delta: {TENSORS} does not say which base and region it belongs to.")
    what = f"The delta {path} is damaged: its description"
    content = parse_json(content, what, {"format": int}, "make or copy it anew")
    if content["format"] not in (_FORMAT, _WITH_PARTS):
        raise CofituneError(
            f"The delta {path} has the format {content['format']}, this version reads {_FORMAT} and {_WITH_PARTS}; "
            "update cofitune-fast."
        )
    if problem := flaw(content, _FORM):
        raise CofituneError(f"{what} cannot be used: {problem}; make or copy it anew.")
    Region.parse(content["region"])  # refuses a text that is none
    base = BaseInfo(*(content["base"][one.name] for one in fields(BaseInfo)))
    known = {one.name: content[one.name] for one in fields(DeltaInfo) if one.name in content}
    return DeltaInfo(**{**known, "base": base})


def load_delta(
    model: nn.Module, path: str | Path, *, base_fingerprint: str | None = None, keep_base: bool = False
) -> dict[str, torch.Tensor] | None:
    """Copy a delta's tensors into `model`, in place. Nothing is copied unless everything fits.

    path: the delta's folder, or its hub id, "OWNER/NAME" or "OWNER/NAME@REVISION"; a folder of that name goes before.
    base_fingerprint: fingerprint of the model as it is now, if it is known. Without it all bytes of the model are read
        to check that it is the delta's base.
    keep_base: return the tensors that are replaced, for `restore`.

    Raises:
        CofituneError: `path` is not a delta or is damaged, the model is not the delta's base, or a tensor does not fit.
    """
    folder = delta_folder(path)
    info = read_delta(folder)
    _check_base(model, info, path, base_fingerprint)
    targets = targets_of(model, info, path)
    replaced: dict[str, torch.Tensor] = {}
    with opened(folder) as file:
        check_tensors(file, info, targets, path)
        for name in info.parameters:
            if keep_base:
                replaced[name] = targets[name].detach().clone()
            copy_whole(targets[name], file.get_tensor(name))
    return replaced if keep_base else None


def check_tensors(file: Any, info: DeltaInfo, targets: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Refuse a delta whose tensors changed since it was saved, or do not fit those of a model.

    file: the opened delta. targets: see `targets_of`.
    """
    if others := info.parameters.keys() ^ set(file.keys()):
        raise CofituneError(f"The delta {path} is damaged: {min(others)} stands in its description alone or in its "
                            "tensors alone; make or copy it anew.")
    for name, digest in info.parameters.items():
        tensor = file.get_tensor(name)
        if name in targets and not targets[name].is_floating_point():
            raise CofituneError(
                f"The delta {path} trains {name}, which is quantised in this model; load the model with the region "
                f"{info.region} in full precision."
            )
        if name not in targets or targets[name].shape != tensor.shape or targets[name].dtype != tensor.dtype:
            there = _form(targets[name]) if name in targets else "none of that name"
            raise CofituneError(
                f"The delta {path} does not fit this model: {name} is {_form(tensor)} in the delta, "
                f"but the model has {there}."
            )
        if tensor_digest(tensor) != digest:
            raise CofituneError(f"The delta {path} is damaged: the bytes of {name} changed; make or copy it anew.")


def restore(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], parts: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Copy back the tensors that load_delta(..., keep_base=True) has replaced.

    parts: the delta's `DeltaInfo.parts`; without them names of parts are those of the model's layout.
    """
    reshard(model)  # an error in a forward may have left gathered copies, which would hide the restored weights
    parts = parts or {}
    targets: dict[str, torch.Tensor] = tensors_named(model, [name for name in tensors if name not in parts])
    targets |= _views(model, {name: parts[name] for name in tensors if name in parts})
    for name, target in targets.items():
        copy_whole(target, tensors[name])


def targets_of(model: nn.Module, info: DeltaInfo, path: str | Path) -> dict[str, torch.Tensor]:
    """The model's tensors by name, and views of the parts that the delta holds."""
    targets: dict[str, torch.Tensor] = dict(named_parameters(model))
    for name, place in info.parts.items():
        try:
            targets |= _views(model, {name: place})
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise CofituneError(
                f"The delta {path} does not fit this model: it holds {name}, which the model lacks ({error})."
            ) from None
    if info.parameters.keys() <= targets.keys():  # else `check_tensors` says that the model is another one
        _check_region(model, info, path)
    return targets


def _check_region(model: nn.Module, info: DeltaInfo, path: str | Path) -> None:
    """Refuse a delta that holds other tensors than those of the region that it states."""
    try:
        stated = {name for name, _ in Region.parse(info.region).parameters(model)}
    except CofituneError:
        if info.parts:
            return  # a version that maps this model's roles otherwise; names, places and digests have to do
        raise
    if others := stated ^ info.parameters.keys():
        name = min(others)
        problem = "lacks {}, which belongs" if name in stated else "holds {}, which does not belong"
        raise CofituneError(f"The delta {path} is not what it says: it {problem.format(name)} to its region "
                            f"{info.region}; make or copy it anew.")


def _views(model: nn.Module, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    tensors = dict(named_parameters(model)) if parts else {}
    return {name: Part.from_json(place).of(tensors[place["parameter"]].detach()) for name, place in parts.items()}


def _check_base(model: nn.Module, info: DeltaInfo, path: str | Path, known: str | None) -> None:
    if info.base.fingerprint:
        expected, found = info.base.fingerprint, known or base_fingerprint(model)
    else:
        try:
            places = {name: (place["parameter"], Part.from_json(place)) for name, place in info.parts.items()}
            found = _frozen_fingerprint(model, info.parameters, places)
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError):
            found = ""  # it lacks a tensor of the delta
        expected = info.frozen_fingerprint
    if found != expected:
        raise CofituneError(
            f"The delta {path} belongs to the base {info.base.model} ({expected[:12]}, {info.base.dtype}), but the "
            f"model given is {_model_name(model)} ({found[:12]}, {dtype_name(model)}); load that base, unchanged and "
            "in that dtype."
        )


def _frozen_fingerprint(
    model: nn.Module, trained: Collection[str], parts: Mapping[str, tuple[str, Part]]
) -> str:
    digests = {name: digest for name, digest in base_digests(model).items() if name not in trained}
    return combine_digests({**digests, **rest_digests(dict(named_parameters(model)), parts)})


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    file = Path(path) / TENSORS
    if not file.is_file():
        inside = Path(path) / "delta"
        hint = f"; did you mean {inside}?" if (inside / TENSORS).is_file() else "."
        raise CofituneError(f"{path} is not a delta: there is no {TENSORS} in it{hint}")
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except WriteFailed:
        raise
    except (SafetensorError, OSError) as error:
        raise CofituneError(f"The delta {path} is damaged or incomplete ({error!s:.200}); make or copy it "
                            "anew.") from None


def _write(
    folder: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], content: dict[str, Any],
    cells: Cells | None,
) -> None:
    """Write the three files into `folder`, each atomically. The tensors come first, as they define the delta."""
    with atomic_path(folder / TENSORS, tensor_bytes(tensors.values())) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    write_json(folder / INFO, content if cells is None else {**content, "cells": asdict(cells)})
    write_text(folder / CARD, model_card(content, cells, terms_of(content["base"]["model"])))


def _replaceable(path: Path) -> bool:
    return path.is_dir() and ((path / TENSORS).is_file() or not any(path.iterdir()))


def _model_name(model: nn.Module) -> str:
    config = getattr(model, "config", None)
    return getattr(config, "name_or_path", "") or getattr(config, "model_type", "") or type(model).__name__


def _form(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _versions() -> dict[str, str]:
    return {"cofitune-fast": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
