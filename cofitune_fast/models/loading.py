"""Load a model and its tokenizer from a folder, a hub id, a GGUF file or an adapter."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights
from transformers.utils import cached_file

from ..errors import CofituneError, first_line
from ..files import cache_folder
from ..progress import progress
from .adapter import adapter_folder, merged_adapter
from .auto import auto_class, no_progress_bars, read_config
from .checkpoint import Roles, with_roles
from .folder import CONFIG, check_model, refuse_no_model
from .gguf import converted
from .hub import why_not, within_reach
from .quantized import Keep, load_quantized
from .sharded import join, rank_0_first, shard, started_by_torchrun

__all__ = ["LoadedModel", "cache_folder", "default_device", "dtype_name", "load_model", "plain_folder"]
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
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> LoadedModel:
    """Load a causal language model in eval mode, with its tokenizer.

    A missing pad token, or one beyond the embedding, becomes the end of sequence.

    path: a folder as `save_pretrained` writes it, a hub id, a `.gguf` file (also: a folder plus `gguf_file`), or the
        folder of a PEFT adapter.
    dtype: "auto" (the checkpoint's; bfloat16 for GGUF), "bfloat16", "float32" or "float16".
    device: by default the first GPU, else the CPU.
    quantize: "nf4" or "int8" quantises all projections except those named by `keep`, e.g. `keep=region.modules`; see
        `load_quantized`.
    roles: role -> weights of a layer, for a model whose roles are not seen from its structure, such as
        {"ffn.up": "mlp.fc1"}; see `regions.roles.by_map`. It is kept at the model and checked by `resolve_layout`.
    tokenizer: the model's own, if `load_outline` has loaded it before.

    A GGUF file is dequantised once, into an ordinary model folder in the cache (`files.cache_folder`), and an adapter
    is merged into its base once, likewise (`models.adapter`). Code that a model folder brings along is never run. Under
    torchrun (`WORLD_SIZE` above 1) the ranks share the weights, see `models.sharded.shard`; all ranks must call it.

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
    check_model(location)
    try:
        with no_progress_bars(), progress(f"Loading {source}"):
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(location, trust_remote_code=False)
            if quantize == "none":
                model, found = auto_class(read_config(location)).from_pretrained(
                    location, dtype=DTYPES[dtype], attn_implementation=attn_implementation, output_loading_info=True,
                    trust_remote_code=False,
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
        raise _cannot_be_loaded(source, error) from error
    pad = tokenizer.pad_token_id
    if pad is None or pad >= model.get_input_embeddings().weight.shape[0]:
        tokenizer.pad_token = tokenizer.eos_token
    with_roles(model, roles)
    return LoadedModel(model.eval(), tokenizer, source)


def load_tokenizer(path: str | Path, gguf_file: str | None = None, dtype: str = "auto") -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model without its weights; for the arguments see `load_model`.

    Raises:
        CofituneError: the model is missing, or has no tokenizer that transformers reads.
    """
    return load_outline(path, gguf_file=gguf_file, dtype=dtype).tokenizer


@dataclass
class Outline:
    """Tokenizer and configuration of a model, which are known without its weights.

    source: the folder, hub id or GGUF file that the user named.
    """

    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    source: str

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return self.config.get_text_config().vocab_size

    @property
    def positions(self) -> int | None:
        """Longest row that the model was made for, in tokens; None if its configuration does not say."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def has_position_table(self) -> bool:
        """True if the model holds a vector for each position, so that a longer row cannot be computed at all.

        A model with rotary or relative positions computes any row. The model is built without memory to see it, and is
        taken to have a table if it cannot be built.
        """
        try:
            with torch.device("meta"), no_init_weights():
                model = auto_class(self.config).from_config(self.config)
        except Exception:
            return True
        words = model.get_input_embeddings()
        tables = [module.num_embeddings for module in model.modules()
                  if isinstance(module, nn.Embedding) and module is not words]
        tables += [buffer.shape[0] for name, buffer in model.named_buffers()
                   if "position" in name and buffer.dim() == 2]
        # some families keep a few rows more, such as OPT's two for the padding
        return self.positions is not None and any(self.positions <= rows <= self.positions + 8 for rows in tables)


def load_outline(
    path: str | Path, *, gguf_file: str | None = None, dtype: str = "auto", device: torch.device | str | None = None
) -> Outline:
    """Load the tokenizer and the configuration of a model, and no weights.

    For the arguments see `load_model`. A GGUF file is converted first, as there. Under torchrun all ranks must call it.

    Raises:
        CofituneError: the model is missing, or transformers cannot read its configuration or tokenizer.
    """
    source = f"{path}/{gguf_file}" if gguf_file is not None else str(path)
    sharded = started_by_torchrun()
    if sharded:
        join(torch.device(device) if device is not None else default_device())
    with rank_0_first() if sharded else nullcontext():
        location = plain_folder(path, gguf_file, dtype)
    check_model(location)
    try:
        with no_progress_bars():
            config = read_config(location)
            tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
        auto_class(config)
    except CofituneError:
        raise
    except Exception as error:
        raise _cannot_be_loaded(source, error) from error
    return Outline(tokenizer, config, source)


def plain_folder(path: str | Path, gguf_file: str | None = None, dtype: str = "auto") -> Path:
    """Resolve what the user named to the folder or hub id that transformers loads; see `load_model`.

    Where the hub cannot be reached, a hub id becomes its folder in the hub's cache.

    Raises:
        CofituneError: there is no such model here, nor in that cache where the hub cannot be reached.
    """
    source = str(path)
    location = Path(path) / gguf_file if gguf_file is not None else Path(path)
    if location.suffix == ".gguf":
        return converted(location, "bfloat16" if dtype == "auto" else dtype)
    if (adapter := adapter_folder(location)) is not None:
        return merged_adapter(adapter, dtype)
    if location.is_dir():
        refuse_no_model(location)
    elif location.is_file() and ".gguf." in location.name:
        joined = location.name.partition(".gguf.")[0] + ".gguf"
        raise CofituneError(f"{location} is one part of a GGUF file: join all parts in their order, as by "
                            f"`cat {joined}.* > {joined}`, and name the joined file.")
    elif location.exists():
        raise CofituneError(f"{location} is a file, not a model folder, and does not end in .gguf.")
    elif source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise CofituneError(f"No model at {source}: the folder does not exist.")
    elif not within_reach():
        try:
            return Path(cached_file(source, CONFIG, local_files_only=True)).parent
        except (OSError, ValueError) as error:
            raise _cannot_be_loaded(source, error) from error
    return location


def _cannot_be_loaded(source: str, error: Exception) -> CofituneError:
    where, reason = "", None
    if not Path(source).exists():
        where = f"there is no folder {source} here, and as the id of a model on the hub: "
        reason = why_not(error, source)
    return CofituneError(f"The model {source} cannot be loaded: {where}{reason or first_line(error)}.")


def _refuse_missing(source: str, missing: Collection[str]) -> None:
    """Refuse a checkpoint that lacks weights, which would be random and other ones each time it is loaded."""
    if missing:
        raise CofituneError(
            f"The model {source} lacks {len(missing)} of its weights, such as {min(missing)}; it is damaged, or a "
            "checkpoint of another kind of model."
        )
