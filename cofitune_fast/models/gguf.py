"""GGUF files: converted once to an ordinary model folder in the cache, or refused where that would change the model.

transformers reads the weights. What it leaves out of a file without a word is read here: scaled rotary embeddings,
soft caps, window and head sizes, tokens that end a turn. What has no place in the model's configuration is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PretrainedConfig

from ..errors import CofituneError, first_line
from ..progress import progress
from .auto import no_progress_bars
from .fingerprint import named_parameters
from .kept import kept_folder

_FORMAT = 2  # of the conversion; folders of earlier ones may lack what is read now
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_LLAMA3_POSITIONS = 8192

# Key of the file, without the architecture -> names of the configuration's field, of which each family has one at most.
_FIELDS = {
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_eps", "norm_epsilon"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale",),
    "residual_scale": ("residual_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
}
# Values with which such a key says nothing.
_NEUTRAL = {"logit_scale": (0, 1), "residual_scale": (0, 1), "embedding_scale": (0, 1), "expert_count": (0,),
            "expert_used_count": (0,), "attn_logit_softcapping": (0,), "final_logit_softcapping": (0,),
            "attention.sliding_window": (0,), "expert_weights_scale": (0, 1), "attention.clamp_kqv": (0,),
            "attention.max_alibi_bias": (0,), "attention.causal": (True,), "attention.output_scale": (0, 1),
            "expert_feed_forward_length": (0,), "expert_shared_feed_forward_length": (0,),
            "router_logit_softcapping": (0,)}
# Keys that change what a model computes, and that no configuration read here has.
_REFUSED = ("expert_weights_scale", "attention.clamp_kqv", "attention.causal", "attention.output_scale",
            "router_logit_softcapping", "attention.temperature_scale", "attention.temperature_length")
_SCALINGS = ("none", "linear", "yarn", "longrope")


def converted(file: Path, dtype: str) -> Path:
    """Convert a GGUF file to an ordinary model folder in the cache, unless that was done before.

    dtype: name of the dtype of the folder's weights. Where the cache cannot be written, the folder is temporary.

    Raises:
        CofituneError: the file is missing, damaged or of a kind that cannot be read as what it is.
    """
    if not file.is_file():
        raise CofituneError(f"No GGUF file at {file}: the file does not exist.")
    try:
        import gguf  # noqa: F401  (transformers reads the file through it)
    except ImportError:
        raise CofituneError(
            "Reading a GGUF file needs the package gguf: pip install 'cofitune-fast[gguf]'."
        ) from None
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
    try:
        return kept_folder(
            "gguf", f"{file.stem}-{digest}-{dtype}-{_FORMAT}",
            lambda: int(sum(tensor.n_elements for tensor in _Metadata(file).tensors) * getattr(torch, dtype).itemsize),
            lambda folder: _convert(file, dtype, folder))
    except CofituneError:
        raise
    except Exception as error:
        raise CofituneError(
            f"The GGUF file {file} cannot be read ({first_line(error)}); it may be cut off or of an architecture "
            "that transformers does not read: fetch it anew or name an ordinary model folder."
        ) from error


def _convert(file: Path, dtype: str, folder: Path) -> None:
    metadata = _Metadata(file)
    if (parts := metadata.value("split.count")) is not None and parts > 1:
        raise CofituneError(f"{file} is one of the {parts} parts of a split GGUF file: join them by llama.cpp's "
                            "`llama-gguf-split --merge`, and name the joined file.")
    arguments: dict[str, Any] = {"gguf_file": file.name}
    try:
        from transformers import GgufConfig  # newer releases can keep the blocks packed, which cannot be trained
    except ImportError:
        pass
    else:
        arguments["quantization_config"] = GgufConfig(gguf_file=file.name, dequantize=True)
    with no_progress_bars(), progress(f"Converting {file.name}"):
        tokenizer = _tokenizer(file, metadata)
        read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, trust_remote_code=False,
                                                    **arguments)
        _check_weights(file, metadata, read)
        # transformers refuses to save a model read from GGUF, but saves one that is built from its config.
        config = _config(file, metadata, read.config)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.load_state_dict(read.state_dict())
        model.tie_weights()
        model.generation_config = _generation(metadata, read.generation_config)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _forget_how_it_was_loaded(folder / "tokenizer_config.json")
    for kind, wanted in _wrong_ends(AutoTokenizer.from_pretrained(folder, trust_remote_code=False), metadata):
        raise CofituneError(  # transformers 5.5 does not keep this with the tokenizer
            f"{file} says that a text has {'a' if wanted else 'no'} {kind} token, which the "
            "tokenizer of this release of transformers does not keep; update transformers, or name an ordinary model "
            "folder.")


class _Metadata:
    """Keys and tensors of a GGUF file. Keys of the architecture are named without it."""

    def __init__(self, file: Path):
        from gguf import GGUFReader

        self._reader = GGUFReader(file)
        self.architecture = self.value("general.architecture")
        self.tensors = self._reader.tensors

    def value(self, key: str) -> Any:
        field = self._reader.get_field(key)
        return None if field is None else field.contents()

    def of_model(self, key: str) -> Any:
        return self.value(f"{self.architecture}.{key}")

    def factors(self, name: str) -> list[float] | None:
        found = [tensor for tensor in self.tensors if tensor.name == name]
        return found[0].data.astype(float).ravel().tolist() if found else None


def _tokenizer(file: Path, metadata: _Metadata) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    # transformers reads the tokens at both ends of a text, but not whether every text has them.
    for kind, wanted in _wrong_ends(tokenizer, metadata):
        setattr(tokenizer, f"add_{kind}_token", wanted)
    blank = metadata.value("tokenizer.ggml.add_space_prefix")
    if blank is False and len(tokenizer("a", add_special_tokens=False)["input_ids"]) > 1:
        logging.getLogger("cofitune_fast").warning(
            f"{file} begins no text with a blank, and transformers' tokenizer does; name an ordinary model folder if "
            "that matters.")
    return tokenizer


def _wrong_ends(tokenizer: Any, metadata: _Metadata) -> list[tuple[str, bool]]:
    """List "bos" and "eos" if a text does not begin or end as the file says, each with True if it must."""
    wrong = []
    for kind, place in (("bos", 0), ("eos", -1)):
        wanted, token = metadata.value(f"tokenizer.ggml.add_{kind}_token"), getattr(tokenizer, f"{kind}_token_id")
        ids = tokenizer("a")["input_ids"]
        if wanted is not None and token is not None and (bool(ids) and ids[place] == token) != wanted:
            wrong.append((kind, bool(wanted)))
    return wrong


def _generation(metadata: _Metadata, read: GenerationConfig) -> GenerationConfig:
    """Return the generation configuration with the token that ends a turn, where it is not the end of sequence."""
    turn = metadata.value("tokenizer.ggml.eot_token_id")
    ends = read.eos_token_id if isinstance(read.eos_token_id, list) else [read.eos_token_id]
    if turn is not None and read.eos_token_id is not None and turn not in ends:
        read.eos_token_id = [*ends, int(turn)]
    return read


def _config(file: Path, metadata: _Metadata, read: PretrainedConfig) -> PretrainedConfig:
    """Return the configuration that transformers read, with what the file says beyond it."""
    values = {key: value for key, value in read.to_dict().items()
              if key not in ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype")}
    for key, names in _FIELDS.items():
        value = metadata.of_model(key)
        if value is None or isinstance(value, (list, str)) or value in _NEUTRAL.get(key, ()):
            continue
        name = next((name for name in names if name in values), None)
        if name is None:
            if key in _NEUTRAL:
                _refuse(file, metadata, key, value)
        elif values[name] is None or isinstance(values[name], (bool, int, float)):
            values[name] = type(value)(value)
    for key in _REFUSED:
        if (value := metadata.of_model(key)) is not None and value not in _NEUTRAL.get(key, ()):
            _refuse(file, metadata, key, value)
    if values.get("query_pre_attn_scalar") is not None:
        if (scale := metadata.of_model("attention.scale")):
            values["query_pre_attn_scalar"] = round(scale ** -2)
        elif (metadata.architecture, values["num_hidden_layers"]) in (("gemma2", 46), ("gemma3", 62)):
            # The 27B models: llama.cpp knows them by their layers, as the file does not say it.
            values["query_pre_attn_scalar"] = values["hidden_size"] // values["num_attention_heads"]
    elif (scale := metadata.of_model("attention.scale")):
        _refuse(file, metadata, "attention.scale", scale)
    _set_rope(file, metadata, values)
    return type(read)(**values)


def _set_rope(file: Path, metadata: _Metadata, values: dict[str, Any]) -> None:
    """Write base, part and scaling of the rotary embedding into the values of a configuration."""
    if not isinstance(rope := values.get("rope_parameters"), dict):
        return
    # Families with windows have one embedding for these and one for the others; a file's keys are about the others.
    rope = rope.get("full_attention", rope)
    if (base := metadata.of_model("rope.freq_base")) is not None:
        rope["rope_theta"] = float(base)
    heads = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    turned = metadata.of_model("rope.dimension_count")
    if turned is not None and turned != int(heads * rope.get("partial_rotary_factor", 1.0)):
        if "partial_rotary_factor" not in rope:
            _refuse(file, metadata, "rope.dimension_count", turned)
        rope["partial_rotary_factor"] = turned / heads
    if scaling := _scaling(file, metadata, rope, int(heads * rope.get("partial_rotary_factor", 1.0)), values):
        rope.update(scaling)


def _scaling(
    file: Path, metadata: _Metadata, rope: dict[str, Any], turned: int, values: dict[str, Any]
) -> dict[str, Any] | None:
    """Read the scaling of a rotary embedding, as fields of transformers' `rope_parameters`; None if there is none."""
    kind, factor = metadata.of_model("rope.scaling.type"), metadata.of_model("rope.scaling.factor")
    positions = metadata.of_model("rope.scaling.original_context_length")
    freqs = metadata.factors("rope_freqs.weight")
    long, short = (metadata.factors(f"rope_factors_{length}.weight") for length in ("long", "short"))
    if kind not in (None, *_SCALINGS):
        _refuse(file, metadata, "rope.scaling.type", kind)
    if freqs is not None:
        return _llama3(file, freqs, rope["rope_theta"], turned)
    if long is not None and short is not None:
        if not positions:
            _refuse(file, metadata, "rope_factors_long.weight without rope.scaling.original_context_length", None)
        scaling = {"rope_type": "longrope", "long_factor": long, "short_factor": short,
                   "original_max_position_embeddings": int(positions)}
        if (attention := metadata.of_model("rope.scaling.attn_factor")) is not None:
            scaling["attention_factor"] = float(attention)
        if "original_max_position_embeddings" in values:
            values["original_max_position_embeddings"] = int(positions)
        return scaling
    if kind == "longrope":
        _refuse(file, metadata, "rope.scaling.type", kind)
    if factor in (None, 0, 1) or kind == "none":
        return None
    if kind == "yarn":
        scaling = {"rope_type": "yarn", "factor": float(factor)}
        if positions:
            scaling["original_max_position_embeddings"] = int(positions)
        for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
            if (value := metadata.of_model(f"rope.scaling.{key}")) is not None:
                scaling[name] = float(value)
        for key in ("yarn_log_multiplier", "yarn_ext_factor", "yarn_attn_factor", "attn_factor"):
            if (value := metadata.of_model(f"rope.scaling.{key}")) not in (None, 0, 1):
                _refuse(file, metadata, f"rope.scaling.{key}", value)
        return scaling
    return {"rope_type": "linear", "factor": float(factor)}


def _llama3(file: Path, freqs: Sequence[float], theta: float, turned: int) -> dict[str, Any]:
    """Recover the rule of Llama 3.1 from the factors that llama.cpp's converter made of it.

    The factor is 1 for short wavelengths, `factor` for long ones, and between them 1 / f is a straight line in the
    number of turns that a wavelength makes in the original length (llama3 in transformers' modeling_rope_utils).

    Raises:
        CofituneError: the factors are of another rule.
    """
    turns = [_LLAMA3_POSITIONS / (2 * math.pi) * theta ** (-2 * place / turned) for place in range(turned // 2)]
    factor = max(freqs)
    between = [(turn, (1 / value - 1 / factor) / (1 - 1 / factor)) for turn, value in zip(turns, freqs, strict=False)
               if 1 + 1e-4 < value < factor * (1 - 1e-4)]
    low, high = 1.0, 4.0
    if len(between) > 1:
        (first, at_first), (last, at_last) = between[0], between[-1]
        slope = (at_first - at_last) / (first - last)
        low = round(last - at_last / slope, 3)
        high = round(low + 1 / slope, 3)
    rule = {"rope_type": "llama3", "factor": float(factor), "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": _LLAMA3_POSITIONS}
    expected = []
    for turn in turns:
        smooth = min(max((turn - low) / (high - low), 0.0), 1.0)
        expected.append(1 / ((1 - smooth) / factor + smooth))
    if len(freqs) != len(turns) or any(abs(one / other - 1) > 1e-3 for one, other in zip(freqs, expected, strict=True)):
        raise CofituneError(f"The GGUF file {file} scales its rotary embedding (rope_freqs.weight) by a rule that is "
                            "not Llama 3.1's, and transformers would leave it out: name an ordinary model folder.")
    return rule if factor > 1 else {}


def _check_weights(file: Path, metadata: _Metadata, model: Any) -> None:
    """Refuse a file with weights that transformers has left out, or one that lacks some, which would be random.

    Raises:
        CofituneError: the numbers of elements differ.
    """
    there = {tensor.name: int(tensor.n_elements) for tensor in metadata.tensors if tensor.name not in _ROPE_TENSORS}
    if model.config.tie_word_embeddings:
        there.pop("output.weight", None)
    held, wanted = sum(there.values()), sum(parameter.numel() for _, parameter in named_parameters(model))
    if held != wanted:
        raise CofituneError(
            f"The GGUF file {file} holds {held:,} weights, and transformers' {type(model).__name__} has {wanted:,}, so "
            f"{'some would be left out' if held > wanted else 'some would be random'}: name an ordinary model folder."
        )


def _refuse(file: Path, metadata: _Metadata, key: str, value: Any) -> None:
    said = "" if value is None else f" {value}"
    raise CofituneError(f"The GGUF file {file} says {metadata.architecture}.{key}{said}, which transformers would "
                        "leave out, so that the model would compute something else: name an ordinary model folder.")


def _forget_how_it_was_loaded(file: Path) -> None:
    """Remove from a tokenizer's settings what is about this machine and not about the tokenizer."""
    if not file.is_file():
        return
    settings = json.loads(file.read_text(encoding="utf-8"))
    kept = {key: value for key, value in settings.items() if key not in ("is_local", "local_files_only")}
    if kept.get("tokenizer_class") == "TokenizersBackend":  # its name since transformers 5, which older ones lack
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
