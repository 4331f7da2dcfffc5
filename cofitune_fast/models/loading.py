"""Load a model and its tokenizer from a folder, a hub id or a GGUF file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..errors import CofituneError
from ..files import atomic_folder
from ..progress import progress
from .auto import auto_class
from .checkpoint import Roles, with_roles
from .quantized import Keep, load_quantized
from .sharded import join, rank_0_first, shard, started_by_torchrun

DTYPES = {"auto": "auto", "bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


@dataclass
class LoadedModel:
    """A model with its tokenizer. source: the folder, hub id or GGUF file that the user named."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def checked_device(name: str | torch.device) -> torch.device:
    """Return the device of that name.

    Raises:
        CofituneError: there is no such kind of device, or this machine has none of it or fewer.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise CofituneError(f"model.device is {name!r}, which is no device; choose cpu, cuda, cuda:0 or mps.") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise CofituneError(f"model.device is {name}, but torch sees no GPU here; leave it out to use the CPU, or "
                                "install a torch with CUDA.")
        if device.index is not None and device.index >= count:
            raise CofituneError(f"model.device is {name}, but there are {count} GPUs here, cuda:0 to cuda:{count - 1}.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise CofituneError(f"model.device is {name}, but torch has no MPS here; leave it out.")
    return device


def dtype_name(model: PreTrainedModel) -> str:
    """Name of the weights' dtype as `load_model` takes it, e.g. "bfloat16"."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def load_model(
    path: str | Path,
    *,
    dtype: str = "auto",
    device: torch.device | str | None = None,
    gguf_file: str | None = None,
    attn_implementation: str | None = None,
    quantize: str = "none",
    keep: Keep = (),
    roles: Roles | None = None,
) -> LoadedModel:
    """Load a causal language model in eval mode, with its tokenizer. A missing pad token becomes the end of sequence.

    path: a folder as `save_pretrained` writes it, a hub id, or a `.gguf` file (also: a folder plus `gguf_file`).
    dtype: "auto" (the checkpoint's; bfloat16 for GGUF), "bfloat16", "float32" or "float16".
    device: by default the first GPU, else the CPU.
    quantize: "nf4" or "int8" quantises all projections except those named by `keep`, e.g. `keep=region.modules`; see
        `load_quantized`.
    roles: role -> weights of a layer, for a model whose roles are not seen from its structure, such as
        {"ffn.up": "mlp.fc1"}; see `regions.roles.by_map`. It is kept at the model and checked by `resolve_layout`.

    A GGUF file is dequantised once, into an ordinary model folder in the cache (COFITUNE_CACHE, else
    ~/.cache/cofitune_fast). Under torchrun (`WORLD_SIZE` above 1) the ranks share the weights, see
    `models.sharded.shard`; all ranks must call it.

    Raises:
        CofituneError: the model is missing, damaged or of an unknown kind, or an option does not fit.
    """
    if dtype not in DTYPES:
        raise CofituneError(f"model dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}.")
    source = f"{path}/{gguf_file}" if gguf_file is not None else str(path)
    device = checked_device(device) if device is not None else default_device()
    sharded = started_by_torchrun()
    if sharded:
        if quantize != "none":
            raise CofituneError("A quantised model cannot be sharded: leave model.quantize out, or start one process "
                                "without torchrun.")
        device = join(device)
    with rank_0_first() if sharded else nullcontext():  # a GGUF file is converted once
        location = plain_folder(path, gguf_file, dtype)
    try:
        with _no_progress_bars(), progress(f"Loading {source}"):
            tokenizer = AutoTokenizer.from_pretrained(location)
            if quantize == "none":
                model, found = auto_class(AutoConfig.from_pretrained(location)).from_pretrained(
                    location, dtype=DTYPES[dtype], attn_implementation=attn_implementation, output_loading_info=True
                )
                _refuse_missing(source, found["missing_keys"])
                model = shard(model.eval(), device) if sharded else model.to(device)
            else:
                model = load_quantized(
                    location, quantize, keep, dtype=DTYPES[dtype], device=device,
                    attn_implementation=attn_implementation, roles=roles,
                )
    except CofituneError:
        raise
    except Exception as error:
        raise CofituneError(f"The model {source} cannot be loaded: {_first_line(error)}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    with_roles(model, roles)
    return LoadedModel(model.eval(), tokenizer, source)


def plain_folder(path: str | Path, gguf_file: str | None = None, dtype: str = "auto") -> Path:
    """Resolve what the user named to the folder or hub id that transformers loads; see `load_model`."""
    source = str(path)
    location = Path(path) / gguf_file if gguf_file is not None else Path(path)
    if location.suffix == ".gguf":
        return _converted_gguf(location, "bfloat16" if dtype == "auto" else dtype)
    if location.is_dir():
        if not (location / "config.json").is_file():
            raise CofituneError(f"{location} is not a model folder: it has no config.json; name a folder as "
                                "save_pretrained writes it, a hub id or a .gguf file.")
    elif location.is_file() and ".gguf." in location.name:
        joined = location.name.partition(".gguf.")[0] + ".gguf"
        raise CofituneError(f"{location} is one part of a GGUF file: join all parts in their order, as by "
                            f"`cat {joined}.* > {joined}`, and name the joined file.")
    elif location.exists():
        raise CofituneError(f"{location} is a file, not a model folder, and does not end in .gguf.")
    elif source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise CofituneError(f"No model at {source}: the folder does not exist.")
    return location


def _converted_gguf(file: Path, dtype: str) -> Path:
    """Convert a GGUF file to an ordinary model folder in the cache, unless that was done before."""
    if not file.is_file():
        raise CofituneError(f"No GGUF file at {file}: the file does not exist.")
    try:
        import gguf  # noqa: F401  (transformers reads the file through it)
    except ImportError:
        raise CofituneError(
            "Reading a GGUF file needs the package gguf: pip install 'cofitune-fast[gguf]'."
        ) from None
    digest = hashlib.file_digest(file.open("rb"), "sha256").hexdigest()[:16]
    folder = cache_folder() / "gguf" / f"{file.stem}-{digest}-{dtype}"
    if (folder / "config.json").is_file():
        return folder
    arguments: dict[str, Any] = {"gguf_file": file.name}
    try:
        from transformers import GgufConfig  # newer releases can keep the blocks packed, which cannot be trained
    except ImportError:
        pass
    else:
        arguments["quantization_config"] = GgufConfig(gguf_file=file.name, dequantize=True)
    try:
        with _no_progress_bars(), progress(f"Converting {file.name}"), atomic_folder(folder) as temporary:
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            if tokenizer.bos_token and tokenizer.bos_token_id not in tokenizer("")["input_ids"] and _begins_texts(file):
                tokenizer.add_bos_token = True  # transformers 5.5 reads the token, but not that it begins every text
            read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **arguments)
            # transformers refuses to save a model read from GGUF, but saves one that is built from its config.
            config = type(read.config)(**{
                key: value for key, value in read.config.to_dict().items()
                if key not in ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype")
            })
            model = AutoModelForCausalLM.from_config(config)
            model.load_state_dict(read.state_dict())
            model.tie_weights()
            model.generation_config = read.generation_config
            model.to(DTYPES[dtype]).save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    except Exception as error:
        raise CofituneError(
            f"The GGUF file {file} cannot be read ({_first_line(error)}); it may be cut off or of an architecture "
            "that transformers does not read: fetch it anew or name an ordinary model folder."
        ) from error
    return folder


def _begins_texts(file: Path) -> bool:
    """True if a GGUF file asks for the beginning-of-sequence token before every text."""
    from gguf import GGUFReader

    field = GGUFReader(file).get_field("tokenizer.ggml.add_bos_token")
    return field is not None and bool(field.contents())


def _refuse_missing(source: str, missing: Collection[str]) -> None:
    """Refuse a checkpoint that lacks weights, which would be random and other ones each time it is loaded."""
    if missing:
        raise CofituneError(
            f"The model {source} lacks {len(missing)} of its weights, such as {min(missing)}; it is damaged, or a "
            "checkpoint of another kind of model."
        )


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def cache_folder() -> Path:
    """Folder of converted models and caches: COFITUNE_CACHE, else cofitune_fast in the user's cache folder."""
    if "COFITUNE_CACHE" in os.environ:
        return Path(os.environ["COFITUNE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cofitune_fast"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
