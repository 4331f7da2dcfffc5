"""The folder that a user names as a model, judged by its files before any weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from ..errors import CofituneError
from ..json_text import read_json
from .hub import within_reach
from .tensor_file import read_header, refuse_pointer

CONFIG, ADAPTER = "config.json", "adapter_config.json"
# In the order in which transformers looks for them: one file, or the list of several.
_WEIGHTS = (("model.safetensors", "model.safetensors.index.json"),
            ("pytorch_model.bin", "pytorch_model.bin.index.json"))
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
               "sentencepiece.bpe.model", "tekken.json", "*.tiktoken")

_BESIDE = {".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".vocab", ".bpe", ".spm", ""}
_LICENCE = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING")
# The names that transformers itself reads or writes beside the weights.
_OF_TRANSFORMERS = {
    CONFIG, "generation_config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "vocab.txt", "vocab.bpe", "encoder.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json", "chat_template.json", "chat_template.jinja", "processor_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "audio_tokenizer_config.json",
}
# Of the base, but not about this model: lists of weights, results and leftovers of its training.
_NOT_COPIED = ("README", "adapter_", "trainer_state", "training_", "optimizer", "scheduler", "rng_state", "all_results",
               "eval_results", "train_results", "cofitune", "model.safetensors", "pytorch_model")


def local_folder(location: str | Path) -> Path | None:
    """Return the folder with a model's files: the folder itself, or the hub cache's; None if there is neither."""
    if Path(location).is_dir():
        return Path(location)
    file = file_of_hub(location, CONFIG)
    return file.parent if file is not None else None


def file_of_hub(location: str | Path, name: str) -> Path | None:
    """Return a file of a model on the hub, from the cache or fetched; None if there is none or no way to it."""
    try:
        file = cached_file(str(location), name, local_files_only=not within_reach(),
                           _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
    except (OSError, ValueError):
        return None
    return Path(file) if file is not None else None


def check_model(location: str | Path) -> None:
    """Refuse what is no full-precision model with a tokenizer, or what is not whole.

    location: a folder, or a hub id of which only the small files are looked at.

    Raises:
        CofituneError: one sentence with the flaw and the way out.
    """
    folder = Path(location)
    if folder.is_dir():
        refuse_no_model(folder)
    elif (folder := local_folder(location)) is None:
        return  # transformers will say why it is not found
    if (folder / ADAPTER).is_file() or (not Path(location).is_dir() and file_of_hub(location, ADAPTER)):
        raise CofituneError(
            f"{location} holds a model and an adapter ({ADAPTER}), and it is not clear which of them is meant: merge "
            f"the adapter into the model (in peft: merge_and_unload), or remove {ADAPTER} to take the model alone."
        )
    config = read_json(folder / CONFIG, "model configuration")
    if not isinstance(config, dict):
        raise CofituneError(f"{folder / CONFIG} is not the configuration of a model; fetch the model anew.")
    if method := quantised(config):
        raise CofituneError(
            f"The model {location} is quantised ({method}), so its weights cannot be trained and a delta could not be "
            "merged: name the full-precision checkpoint; model.quantize makes its frozen part small."
        )
    if Path(location).is_dir():
        if "transformers_weights" not in config:
            check_weights(folder)
        _check_tokenizer(folder)


def quantised(config: dict[str, Any]) -> str | None:
    """Name of the method by which a checkpoint's weights are quantised; None if they are not."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("quantization_config", "compression_config"):
            if isinstance(found := part.get(key), dict):
                return str(found.get("quant_method") or found.get("quant_algo") or "bitsandbytes")
    return None


def weight_files(folder: Path) -> list[Path]:
    """Files that hold the weights of a model folder, as transformers chooses them; empty if there are none.

    Raises:
        CofituneError: the list of files is broken, or names files elsewhere.
    """
    for single, index in _WEIGHTS:
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            try:
                names = sorted(set(read_json(folder / index, "list of weights")["weight_map"].values()))
                if any(Path(name).name != name or not name.isprintable() or len(name) > 200 for name in names):
                    raise ValueError("a file of another folder")
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                if isinstance(error, CofituneError):
                    raise
                raise CofituneError(f"{folder / index} is broken ({error}); fetch the model anew.") from None
            return [folder / name for name in names]
    return []


def check_weights(folder: Path) -> None:
    """Refuse a folder whose weights are missing, in part or as a whole, or cut off.

    Raises:
        CofituneError: the sentence names the file.
    """
    files = weight_files(folder)
    if not files:
        raise CofituneError(f"{folder} has a {CONFIG} but no weights (model.safetensors or pytorch_model.bin); fetch "
                            "or copy the model anew.")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise CofituneError(f"{folder} lacks {len(missing)} of its {len(files)} files of weights, such as "
                            f"{missing[0].name}: the download or the copy is not complete; fetch it again.")
    for file in files:
        if file.suffix == ".safetensors":
            read_header(file)
        else:
            refuse_pointer(file)


def _check_tokenizer(folder: Path) -> None:
    found = [file for name in TOKENIZERS for file in folder.glob(name)]
    if not found:
        raise CofituneError(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model): copy the tokenizer's "
                            "files of the model that it was made from into it.")
    for file in found:
        refuse_pointer(file)


def files_beside_weights(folder: Path) -> list[Path]:
    """Files that belong to a model beside its weights: configurations, tokenizer, templates, code, licence."""
    def belongs(file: Path) -> bool:
        if file.name.upper().startswith(_LICENCE):
            return True
        return file.suffix in _BESIDE and not file.name.startswith((".", *_NOT_COPIED))

    inside = [file for file in folder.iterdir() if file.is_file() and belongs(file)]
    templates = [file for name in ("chat_templates", "additional_chat_templates")
                 for file in (folder / name).glob("*.jinja")]
    return sorted(inside + templates)


def files_to_share(folder: Path) -> tuple[list[Path], list[Path]]:
    """Split `files_beside_weights` into what may go to others, and what merely lies there.

    The first are the names that transformers knows, templates, licences, and modules of code that a configuration's
    `auto_map` names. Any other file may be private.
    """
    code = {f"{name}.py" for file in folder.glob("*config.json") for name in _modules(read_json(file, "configuration"))}

    def known(file: Path) -> bool:
        return (file.name in _OF_TRANSFORMERS or file.name in code or file.parent != folder
                or file.suffix == ".tiktoken" or file.name.upper().startswith(_LICENCE))

    files = files_beside_weights(folder)
    return [file for file in files if known(file)], [file for file in files if not known(file)]


def _modules(config: Any) -> set[str]:
    """Names of the modules in the folder from which a configuration takes its classes ("module.Class")."""
    entries = config.get("auto_map") if isinstance(config, dict) else None
    flat = [one for value in (entries.values() if isinstance(entries, dict) else ())
            for one in (value if isinstance(value, list) else [value])]
    return {one.rpartition(".")[0] for one in flat if isinstance(one, str) and "--" not in one}


def refuse_no_model(folder: Path) -> None:
    """Refuse a folder without config.json, and name what was probably meant.

    Raises:
        CofituneError: there is no config.json.
    """
    if (folder / CONFIG).is_file():
        return
    ordinary = "name a folder as save_pretrained writes it, a hub id or a .gguf file"
    raise CofituneError(f"{folder} is not a model folder: {_what_it_is(folder) or f'it has no {CONFIG}; {ordinary}'}.")


def _what_it_is(folder: Path) -> str | None:
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if (folder / "delta.safetensors").is_file():
        return "it is a delta; name its base as the model, and make one model of both by cofitune merge"
    if (folder / "snapshots").is_dir():
        commits = sorted((folder / "snapshots").iterdir())
        named = folder / "refs" / "main"
        commit = folder / "snapshots" / named.read_text().strip() if named.is_file() else None
        chosen = commit if commit in commits else commits[-1] if commits else None
        name = folder.name.removeprefix("models--").replace("--", "/")
        return f"it is the hub's cache of {name}; name {name}" + (f" or {chosen}" if chosen else "")
    models = sorted((path for path in inside if (path / CONFIG).is_file()), key=_number)
    if models:
        others = f" (one of {len(models)})" if len(models) > 1 else ""
        return f"the model is one level deeper; name {models[-1]}{others}"
    for delta in (path for path in inside if (path / "delta.safetensors").is_file()):
        return f"it is the folder of a run, with the delta {delta}; name the base as the model"
    if (folder.parent / CONFIG).is_file():
        return f"the model is one level higher; name {folder.parent}"
    files = sorted(folder.glob("*.gguf"))
    if files:
        return f"it holds GGUF files; name one of them, such as {files[0]}"
    return None


def _number(path: Path) -> tuple[int, str]:
    end = path.name.rpartition("-")[2]
    return (int(end) if end.isdecimal() else -1, path.name)
