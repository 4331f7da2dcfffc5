"""PEFT adapters as models: merged once into their base, as an ordinary model folder in the cache.

The merge is PEFT's own (`PeftModel.from_pretrained`, then `merge_and_unload`), so that its bytes are those that a user
of PEFT gets. What PEFT would pass over without a word is refused here: weights that the adapter's file lacks, or has
beside those that are read.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import CofituneError, first_line
from ..json_text import read_json
from ..progress import progress
from .auto import auto_class, no_progress_bars, read_config
from .checkpoint import checkpoint_dtype, skeleton
from .fingerprint import named_tensors
from .folder import (
    ADAPTER,
    CONFIG,
    TOKENIZERS,
    check_model,
    file_of_hub,
    files_beside_weights,
    local_folder,
    quantised,
    weight_files,
)
from .kept import kept_folder
from .tensor_file import read_header, refuse_pointer

_FORMAT = 1  # of the merged folder; later versions must not read folders of a former one
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_OF_TOKENIZER = ("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges", "spiece", "sentencepiece",
                 "tekken", "chat_template")
_BLOCKS, _BLOCK = 64, 1 << 16  # blocks that are read of a file of weights, and their bytes
_said: set[Path] = set()


def adapter_folder(location: str | Path) -> Path | None:
    """Return the folder of a PEFT adapter: `location` itself, or the hub cache's; None if it is none.

    A folder with whole weights beside adapter_config.json is none: `folder.check_model` refuses it.
    """
    folder, name = Path(location), str(location)
    if folder.is_dir():
        alone = not (folder / CONFIG).is_file() or not weight_files(folder)
        return folder if (folder / ADAPTER).is_file() and alone else None
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or local_folder(name) is not None:
        return None
    file = file_of_hub(name, ADAPTER)
    if file is None:
        return None
    for wanted in (*_WEIGHTS, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model",
                   "chat_template.jinja"):
        file_of_hub(name, wanted)  # fetches it
    return file.parent


def merged_adapter(folder: Path, dtype: str) -> Path:
    """Merge an adapter into its base, as an ordinary model folder in the cache, unless that was done before.

    The tokenizer is the adapter's own if its folder has one, else the base's. All other files are the base's.
    dtype: name of the dtype in which base and adapter are merged and stored; "auto" is the base's own.

    Raises:
        CofituneError: PEFT is missing, or the adapter cannot be merged: by its kind, its base or its files.
    """
    peft = require_peft("Merging an adapter into its base")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = peft.PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        raise CofituneError(f"The adapter {folder} cannot be read ({first_line(error)}); make or copy it anew, or "
                            "update peft.") from None
    _refuse_kind(folder, config)
    base = _base(folder, config)
    weights = _adapter_weights(folder)
    kind = checkpoint_dtype(base, dtype)
    digest = _digest(folder, weights, base, peft.__version__)
    name = f"{folder.resolve().name}-{digest}-{str(kind).removeprefix('torch.')}-{_FORMAT}"
    need = sum(math.prod(tensor.shape) for _, tensor in named_tensors(skeleton(base, kind))) * kind.itemsize
    merged = kept_folder("adapter", name, lambda: need,
                         lambda building: _merge(peft, folder, config, base, kind, building))
    if merged not in _said:
        _said.add(merged)
        logging.getLogger("cofitune_fast").warning(
            f"{folder} is an adapter ({_kind(config)}): it is merged into its base {config.base_model_name_or_path} by "
            f"peft, in {merged}.")
    return merged


def require_peft(what: str) -> Any:
    """Import peft, which `what` needs.

    Raises:
        CofituneError: it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise CofituneError(f"{what} needs the package peft: pip install 'cofitune-fast[compare]'.") from None
    return peft


def _kind(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


def _refuse_kind(folder: Path, config: Any) -> None:
    if config.is_prompt_learning or _kind(config) in ("ADAPTION_PROMPT", "XLORA"):
        raise CofituneError(
            f"{folder} is an adapter of the kind {_kind(config)}, which works beside the model and cannot be merged "
            "into its weights; name an adapter that changes weights, such as LoRA, or the base alone.")
    task = getattr(config.task_type, "value", config.task_type)
    if task not in (None, "CAUSAL_LM"):
        raise CofituneError(f"The adapter {folder} is made for {task}, not for a causal language model; name another.")


def _base(folder: Path, config: Any) -> Path:
    """Return the folder of the adapter's base, which is looked for from here and from the adapter's folder."""
    name = config.base_model_name_or_path
    if not name or not isinstance(name, str) or "\0" in name:
        raise CofituneError(f"The adapter {folder} does not say its base: write the base's folder or hub id as "
                            f"base_model_name_or_path into {folder / ADAPTER}.")
    places = [Path(name).expanduser(), folder / name]
    base = next((place for place in places if place.is_dir()), None)
    if base is None:
        base = local_folder(name)
        revision = getattr(config, "revision", None)
        if base is not None and revision not in (None, "main", base.name):
            raise CofituneError(f"The adapter {folder} is made for the revision {revision} of {name}: write a folder "
                                f"with that revision as base_model_name_or_path into {folder / ADAPTER}.")
    if base is None:
        raise CofituneError(f"The base {name} of the adapter {folder} is not here: fetch it, or write its folder as "
                            f"base_model_name_or_path into {folder / ADAPTER}.")
    if (base / CONFIG).is_file() and isinstance(content := read_json(base / CONFIG, "model configuration"), dict) \
            and (method := quantised(content)):
        raise CofituneError(
            f"The base {name} of the adapter {folder} is quantised ({method}), and an adapter is merged into full "
            f"precision alone: write the full-precision checkpoint as base_model_name_or_path into {folder / ADAPTER}.")
    if adapter_folder(base) is not None:
        raise CofituneError(f"The base {name} of the adapter {folder} is an adapter itself; merge that one first (in "
                            "peft: merge_and_unload) and name the result as base_model_name_or_path.")
    check_model(base)
    return base


def _adapter_weights(folder: Path) -> Path:
    for name in _WEIGHTS:
        if (file := folder / name).is_file():
            if file.suffix == ".safetensors":
                read_header(file)
            else:
                refuse_pointer(file)
            return file
    raise CofituneError(f"{folder} is an adapter without weights ({_WEIGHTS[0]}); fetch or copy it anew, or remove "
                        f"{ADAPTER} if the folder holds an ordinary model.")


def _digest(folder: Path, weights: Path, base: Path, version: str) -> str:
    """Digest of all that a merge depends on: peft's version, small files by content, and of the base's weights the
    name, size, time and some blocks, as a copy may keep size and time.
    """
    digest = hashlib.sha256(f"peft {version}\n".encode())
    for file in (folder / ADAPTER, weights, *files_beside_weights(folder), *files_beside_weights(base)):
        with file.open("rb") as opened:
            digest.update(f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    for file in weight_files(base):
        stat = file.stat()
        digest.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        with file.open("rb") as opened:
            for part in range(_BLOCKS):  # the first holds the header
                opened.seek(max(0, stat.st_size - _BLOCK) * part // (_BLOCKS - 1))
                digest.update(opened.read(_BLOCK))
    return digest.hexdigest()[:16]


def _merge(peft: Any, folder: Path, config: Any, base: Path, dtype: torch.dtype, building: Path) -> None:
    with no_progress_bars(), progress(f"Merging the adapter {folder}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = auto_class(read_config(base)).from_pretrained(base, dtype=dtype, trust_remote_code=False)
            stored = peft.utils.load_peft_weights(str(folder), device="cpu")
            _fit_vocabulary(model, stored)
            tied = _is_tied(model)
            adapted = peft.PeftModel.from_pretrained(model, str(folder), config=config)
            _check_read(folder, adapted)
            merged = adapted.merge_and_unload()
        except CofituneError:
            raise
        except Exception as error:
            raise CofituneError(f"The adapter {folder} ({_kind(config)}) cannot be merged into "
                                f"{config.base_model_name_or_path} by peft: {first_line(error)}.") from error
        for name, tensor in named_tensors(merged):
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise CofituneError(f"The adapter {folder} makes {name} of its base infinite or not a number; make it "
                                    "anew.")
        if tied:
            _settle_head(merged)
        merged.save_pretrained(building)
    _copy_rest(folder, base, building)


def _fit_vocabulary(model: PreTrainedModel, stored: dict[str, torch.Tensor]) -> None:
    """Give the model as many rows of the embedding as the adapter stores, as it was trained with added tokens."""
    table = model.get_input_embeddings()
    (own,) = (name for name, module in model.named_modules() if module is table)
    rows = {tensor.shape[0] for name, tensor in stored.items() if name.endswith(f"{own}.weight") and tensor.dim() == 2}
    if len(rows) == 1 and rows != {table.weight.shape[0]}:
        model.resize_token_embeddings(rows.pop(), mean_resizing=False)


def _check_read(folder: Path, adapted: Any) -> None:
    """Refuse an adapter of which PEFT read a part only, or which lacks weights, as these would be random."""
    found = adapted.load_adapter(str(folder), "default")  # once more, as from_pretrained does not return what it found
    if missing := found.missing_keys:
        raise CofituneError(f"The adapter {folder} lacks {len(missing)} of its weights, such as {min(missing)}; make "
                            "or copy it anew.")
    if strange := found.unexpected_keys:
        raise CofituneError(f"The adapter {folder} holds {len(strange)} weights that have no place in its base, such "
                            f"as {min(strange)}; it belongs to another base.")


def _is_tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _settle_head(model: PreTrainedModel) -> None:
    """Tie head and embedding again, unless the adapter has changed one of the two alone."""
    if _is_tied(model):
        return
    equal = torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = equal
    if equal:
        model.tie_weights()


def _copy_rest(folder: Path, base: Path, building: Path) -> None:
    """Copy the base's other files, byte for byte, and the adapter's tokenizer in the place of the base's."""
    own_tokenizer = any(True for name in TOKENIZERS for _ in folder.glob(name))
    files = {}
    for source in files_beside_weights(base):
        if source.name != CONFIG and not (own_tokenizer and (source.name.startswith(_OF_TOKENIZER) or
                                                             source.suffix in (".tiktoken", ".jinja"))):
            files[source.relative_to(base)] = source
    for source in files_beside_weights(folder):
        if source.name.startswith(_OF_TOKENIZER) or source.suffix in (".tiktoken", ".jinja"):
            files[source.relative_to(folder)] = source
    for place, source in files.items():
        (building / place).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, building / place)
