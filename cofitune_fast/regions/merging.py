"""Merging: base and delta as an ordinary model folder, whose files are the base's own but for the trained tensors."""

from __future__ import annotations

import copy
import logging
import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from ..errors import CofituneError
from ..files import atomic_folder, foreign_content, require_room, writable_folder, write_text
from ..json_text import read_json, write_json
from ..models.checkpoint import checkpoint_dtype, checkpoint_fingerprint, skeleton
from ..models.fingerprint import base_fingerprint, named_parameters, named_tensors
from ..models.folder import (
    CONFIG,
    check_model,
    check_weights,
    files_beside_weights,
    local_folder,
    weight_files,
)
from ..models.loading import LoadedModel, load_model, plain_folder
from ..models.tensor_file import Header, read_header, rewrite
from ..progress import progress
from .card import merged_card, terms_of
from .cells import Part
from .delta import DeltaInfo, check_tensors, load_delta, opened, read_cells, read_delta, restore, targets_of
from .download import delta_folder

INDEX = "model.safetensors.index.json"
Change = Callable[[Tensor], Tensor]


def merge(
    base: str | Path | LoadedModel | PreTrainedModel | None,
    delta: str | Path,
    out: str | Path,
    dtype: torch.dtype | str | None = None,
    *,
    tokenizer: Any = None,
) -> Path:
    """Write base + delta as an ordinary model folder `out`. The folder appears only when it is complete.

    The folder has the base's files: its shards, tensor names, configuration, tokenizer and templates, byte for byte. In
    the weights only the trained tensors differ. They are copied one tensor at a time, so that the model need not fit
    into memory. Where transformers has no such place for a trained tensor, and where the base's files are not known or
    not safetensors, the weights are written by `save_pretrained`. The model card is a new one and says what was copied.

    Args:
        base: a folder, hub id or GGUF file, the result of load_model, or a model. A given model is left as it was. None
            takes the base that the delta names.
        delta: the delta's folder, or its hub id, "OWNER/NAME" or "OWNER/NAME@REVISION".
        dtype: dtype of the written weights; by default that in which the base was trained.
        tokenizer: written in the place of the base's own.

    Raises:
        CofituneError: as in load_delta; or `out` is not empty.
        WriteFailed: the disk is full or read-only, or the like.
    """
    out, delta = Path(out), delta_folder(delta)
    info = read_delta(delta)
    base = info.base.model if base is None else base
    _check_target(out)
    dtype = _named_dtype(dtype) if isinstance(dtype, str) else dtype
    model, own = None, tokenizer
    if isinstance(base, (str, Path)):
        location: str | Path = plain_folder(base, dtype=info.base.dtype)
        check_model(location)
    else:
        model, own = (base.model, tokenizer or base.tokenizer) if isinstance(base, LoadedModel) else (base, tokenizer)
        _refuse_unmergeable(model)
        location = model.config.name_or_path
    folder = local_folder(location) if location else None
    if folder is not None and not _is_of(folder, model):
        folder = None
    card = partial(merged_card, asdict(info), cells=read_cells(delta), terms=terms_of(folder or info.base.model))
    if folder is not None:
        require_room(out, sum(file.stat().st_size for file in weight_files(folder) if file.is_file()),
                     "the merged model")
        headers = _headers(folder)
        with opened(delta) as file:
            plan = _plan(folder, headers, info, delta, file, dtype)
            if plan is not None:
                changes, dtypes, written = plan
                need = sum(header.size for header in headers.values())
                with progress(f"Writing {out}"), atomic_folder(out, need) as building:
                    _write_shards(folder, headers, building, changes, dtypes)
                    _write_rest(folder, building, card, written, tokenizer)
                return out
    if model is None:
        loaded = load_model(location, dtype=info.base.dtype, device="cpu")
        model, own, borrowed = loaded.model, tokenizer or loaded.tokenizer, False
    else:
        borrowed = True
    replaced = _load(model, delta, info, keep_base=borrowed)
    try:
        _write_model(model, folder, out, info, card, dtype, tokenizer, own, borrowed)
    finally:
        if replaced is not None:
            restore(model, replaced, info.parts)
    return out


def _check_target(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise CofituneError(f"{out} is a file; choose another name for the folder of the merged model.")
    if out.exists() and foreign_content(out):
        raise CofituneError(f"{out} exists and is not empty; choose another folder for the merged model.")
    real = out.resolve()
    writable_folder(real if real.is_dir() else real.parent)


def _refuse_unmergeable(model: PreTrainedModel) -> None:
    name = getattr(model.config, "name_or_path", "") or model.config.model_type
    if getattr(model.config, "quantization_config", None) is not None:
        raise CofituneError(
            f"The base {name} is quantised or was read from GGUF by hand, so no ordinary model folder can be made of "
            "it; pass its path instead, and it is loaded for the merge."
        )
    if getattr(model, "_hf_peft_config_loaded", False) or hasattr(model, "peft_config"):
        raise CofituneError(f"The base {name} has adapters, which a merged folder would lack: merge them first "
                            "(merge_and_unload), or pass the base's path.")


def _is_of(folder: Path, model: PreTrainedModel | None) -> bool:
    """True if the model in `folder` has the tensors of `model`, by names and shapes."""
    if not (folder / CONFIG).is_file() or not weight_files(folder):
        return False
    if model is None:
        return True
    there = skeleton(folder, torch.float32)
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(there)} == {
        name: tuple(tensor.shape) for name, tensor in named_tensors(model)}


def _headers(folder: Path) -> dict[Path, Header]:
    """Headers of the base's safetensors files; empty if it has others."""
    return {file: read_header(file) for file in weight_files(folder) if file.suffix == ".safetensors"}


def _plan(
    folder: Path, headers: Mapping[Path, Header], info: DeltaInfo, delta: str | Path, file: Any,
    dtype: torch.dtype | None,
) -> tuple[dict[str, Change], dict[str, torch.dtype], torch.dtype | None] | None:
    """Plan a merge without the model: the changes and new dtypes of tensors by name, and the dtype if it is another.

    Returns:
        None if the model's tensors are not those of the files by name, or the delta's base is not this one by its
        fingerprint; with the model in memory more is known.
    """
    stored = {name: entry.dtype for header in headers.values() for name, entry in header.entries.items()}
    loaded = getattr(torch, info.base.dtype)
    model = skeleton(folder, loaded)
    names = _names(model)
    changed: dict[str, list[tuple[str, Part | None]]] = defaultdict(list)
    for name in info.parameters:
        place = info.parts.get(name)
        changed[place["parameter"] if place else name].append((name, Part.from_json(place) if place else None))
    places = {name: [alias for alias in names.get(name, ()) if alias in stored] for name in changed}
    if not all(places.values()) or not info.base.fingerprint:
        return None
    if checkpoint_fingerprint(folder, loaded) != info.base.fingerprint:
        return None
    check_tensors(file, info, targets_of(model, info, delta), delta)
    dtypes_of = {name: tensor.dtype for name, tensor in named_tensors(model)}

    def change(parts: list[tuple[str, Part | None]], kind: torch.dtype) -> Change:
        def apply(old: Tensor) -> Tensor:
            new = old.to(kind)
            for name, part in parts:
                if part is None:
                    new = file.get_tensor(name)
                else:
                    part.of(new).copy_(file.get_tensor(name))
            return new
        return apply

    changes = {alias: change(changed[name], dtypes_of[name]) for name in changed for alias in places[name]}
    exact = all(torch.promote_types(stored[alias], dtypes_of[name]) == stored[alias]
                for name in changed for alias in places[name] if stored[alias] is not None)
    if dtype is None and exact and checkpoint_dtype(folder, "auto") == loaded:
        return changes, {}, None
    wanted = {alias: dtype or dtypes_of[name] for name in dtypes_of for alias in names.get(name, (name,))
              if dtypes_of[name].is_floating_point}
    return changes, wanted, dtype or loaded


def _names(model: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter, by the first: tied ones have several."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[first.setdefault(id(parameter), name)].append(name)
    return names


def _write_shards(
    folder: Path, headers: Mapping[Path, Header], building: Path, changes: Mapping[str, Change],
    dtypes: Mapping[str, torch.dtype],
) -> None:
    """Write the base's shards with the changes, and prove that every tensor of the base is there."""
    for file in headers:
        rewrite(file, building / file.name, changes, dtypes)
    written = {name: entry for file in headers for name, entry in read_header(building / file.name).entries.items()}
    missing = {name for header in headers.values() for name in header.entries} - written.keys()
    if missing or not changes.keys() <= written.keys():
        raise CofituneError(f"The merged model lacks tensors, such as {min(missing | changes.keys() - written.keys())};"
                            " copy the base anew.")
    if (folder / INDEX).is_file() and len(headers) > 1:
        index = read_json(folder / INDEX, "list of weights", dict)
        size = sum(entry.end - entry.begin for entry in written.values())
        if dtypes and isinstance(index.get("metadata"), dict) and index["metadata"].get("total_size", size) != size:
            index["metadata"]["total_size"] = size
            write_json(building / INDEX, index)
        else:
            shutil.copyfile(folder / INDEX, building / INDEX)


def _write_model(
    model: PreTrainedModel, folder: Path | None, out: Path, info: DeltaInfo, card: Callable[..., str],
    dtype: torch.dtype | None, tokenizer: Any, own: Any, borrowed: bool,
) -> None:
    """Write a model that holds the delta, in the base's shards if transformers can give its tensors their names."""
    headers = _headers(folder) if folder else {}
    changes = _changes(model, headers, info) if headers and dtype is None else None
    need = sum(tensor.numel() * (dtype or tensor.dtype).itemsize for _, tensor in named_tensors(model))
    with progress(f"Writing {out}"), atomic_folder(out, need) as building:
        written = None
        if changes is not None:
            _write_shards(folder, headers, building, changes, {})
        else:
            merged = model
            if dtype is not None:
                merged = (copy.deepcopy(model) if borrowed else model).to(dtype)
            with _ordinary_generation(merged) as generation:
                merged.save_pretrained(building)
            if generation is not None:
                generation.to_json_file(building / "generation_config.json")
            _check_whole(building, merged)
            written = next(merged.parameters()).dtype
        if folder is not None:
            _write_rest(folder, building, card, written, tokenizer)
        else:
            if own is not None:
                own.save_pretrained(building)
            write_text(building / "README.md", card([], []))


def _changes(model: PreTrainedModel, headers: Mapping[Path, Header], info: DeltaInfo) -> dict[str, Change] | None:
    """Changes of the base's files, by the names that transformers gives the model's tensors when it saves them.

    Returns:
        None if these are not the names, shapes and dtypes of the files.
    """
    wanted = {place["parameter"] if (place := info.parts.get(name)) else name for name in info.parameters}
    tensors = {name: tensor.detach().cpu() for name, tensor in named_parameters(model) if name in wanted}
    try:
        from transformers.core_model_loading import revert_weight_conversion

        tensors = revert_weight_conversion(model, tensors)
    except Exception:  # an older release, or a conversion that needs all tensors
        return None
    stored = {name: entry for header in headers.values() for name, entry in header.entries.items()}
    if any(name not in stored or stored[name].shape != tuple(tensor.shape) or stored[name].dtype != tensor.dtype
           for name, tensor in tensors.items()):
        return None
    return {name: lambda old, new=tensor: new for name, tensor in tensors.items()}


@contextmanager
def _ordinary_generation(model: PreTrainedModel) -> Iterator[GenerationConfig | None]:
    """Context with an empty generation configuration, as transformers refuses to save one that it warns of.

    Yields the model's own.
    """
    own = getattr(model, "generation_config", None)
    try:
        if own is not None:
            model.generation_config = GenerationConfig()
        yield own
    finally:
        if own is not None:
            model.generation_config = own


def _check_whole(building: Path, model: PreTrainedModel) -> None:
    """Refuse a written folder that does not hold all of a model's tensors."""
    check_weights(building)
    headers = [read_header(file) for file in weight_files(building)]
    held = sum(math.prod(entry.shape) for header in headers for entry in header.entries.values())
    wanted = sum(tensor.numel() for _, tensor in named_tensors(model))
    if held < wanted:
        raise CofituneError(f"transformers saved {held:,} of the merged model's {wanted:,} weights, so that nothing is "
                            "kept of it; pass the base's path instead of the model.")


def _write_rest(
    folder: Path, building: Path, card: Callable[..., str], written: torch.dtype | None, tokenizer: Any
) -> None:
    """Copy the base's other files, and write the model card.

    card: makes it of the names of what was copied and of what changed. written: dtype of the weights if it may be
        another than the base's.
    """
    copied = []
    for source in files_beside_weights(folder):
        target = building / source.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
        copied.append(str(source.relative_to(folder)))
    config = read_json(folder / CONFIG, "model configuration", dict)
    changed = _set_dtype(config, str(written).removeprefix("torch.")) if written is not None else []
    if changed:
        write_json(building / CONFIG, config)
        copied.remove(CONFIG)
        logging.getLogger("cofitune_fast").warning(
            f"The merged model's {CONFIG} differs from the base's: {', '.join(changed)}.")
    if tokenizer is not None:
        tokenizer.save_pretrained(building)
    write_text(building / "README.md", card(sorted(copied), changed))


def _set_dtype(config: dict[str, Any], dtype: str, where: str = "") -> list[str]:
    """Set the dtype wherever a configuration names another one; returns what changed, in words."""
    changed = []
    for key, value in config.items():
        if isinstance(value, dict):
            changed += _set_dtype(value, dtype, f"{where}{key}.")
        elif key in ("dtype", "torch_dtype") and isinstance(value, str) and value.removeprefix("torch.") != dtype:
            config[key] = dtype
            changed.append(f"{where}{key} is {dtype}, was {value}")
    return changed


def _load(model: PreTrainedModel, delta: str | Path, info: DeltaInfo, *, keep_base: bool) -> dict[str, Tensor] | None:
    found = base_fingerprint(model) if info.base.fingerprint else None
    if found is not None and found != info.base.fingerprint and _holds(model, info, delta):
        raise CofituneError(f"The model given for the merge holds the tensors of the delta {delta} already; name the "
                            f"base, {info.base.model}.")
    return load_delta(model, delta, base_fingerprint=found, keep_base=keep_base)


def _holds(model: PreTrainedModel, info: DeltaInfo, delta: str | Path) -> bool:
    try:
        targets = targets_of(model, info, delta)
    except CofituneError:
        return False
    with opened(delta) as file:
        return all(name in targets and torch.equal(targets[name].cpu(), file.get_tensor(name))
                   for name in info.parameters)


def _named_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise CofituneError(f"Unknown dtype '{name}' for the merged model; use bfloat16, float16 or float32.")
    return dtype
