"""Models with a frozen part quantised by bitsandbytes, and a region whose projections stay in full precision.

Trainer refuses to train a quantised model without an adapter. It asks the model's quantizer, so a subclass of the
quantizer answers that the model is trainable: no trained weight is quantised.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..errors import CofituneError
from .auto import auto_class
from .checkpoint import Roles, checkpoint_digests, checkpoint_dtype, skeleton, with_roles

Quantize = Literal["none", "int8", "nf4"]
METHODS = get_args(Quantize)[1:]

Keep = Collection[str] | Callable[[nn.Module], Iterable[str]]


class _FullPrecisionRegion:
    """Mixin for a quantizer. original_digests: parameter name -> digest of the weight in the checkpoint."""

    method: str

    def __init__(self, config: QuantizationConfigMixin, original_digests: dict[str, str]):
        super().__init__(config, pre_quantized=False)
        self.original_digests = original_digests

    @property
    def is_qat_trainable(self) -> bool:
        """Answer to Trainer that the model can be trained without adapters: no trained weight is quantised."""
        return True


class _Nf4Quantizer(_FullPrecisionRegion, Bnb4BitHfQuantizer):
    method = "nf4"


class _Int8Quantizer(_FullPrecisionRegion, Bnb8BitHfQuantizer):
    method = "int8"


def quantization(model: nn.Module) -> str:
    """Quantisation of the frozen part of `model`: "nf4", "int8", or "none" for an ordinary model."""
    return getattr(getattr(getattr(model, "module", model), "hf_quantizer", None), "method", "none")


def load_quantized(
    location: str | Path,
    method: str,
    keep: Keep = (),
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    attn_implementation: str | None = None,
    roles: Roles | None = None,
) -> PreTrainedModel:
    """Load a causal language model in eval mode, and quantise all projections except those named by `keep`.

    location: a full-precision checkpoint: a folder as `save_pretrained` writes it, or a hub id.
    method: "nf4" (4 bits, blocks of 64, scales quantised too: QLoRA, arXiv 2305.14314) or "int8" (8 bits, one scale per
        row: LLM.int8(), arXiv 2208.07339; activations above 6 are computed in 16 bits).
    keep: full names of the modules that stay as they are, or a function such as `Region.modules` that returns them for
        the model on the meta device. Only `nn.Linear` and Conv1D are quantised, so embeddings, norms, fused experts
        and the head always stay.
    dtype: the dtype of everything that is not quantised, and of the arithmetic: "auto" (the checkpoint's), a dtype or
        its name.
    roles: as in `load_model`.

    The weights are read a second time for their digests, from which `base_fingerprint` makes the base's fingerprint.

    Raises:
        CofituneError: bitsandbytes is missing, an unknown method or name, a checkpoint that is quantised already, or
            nothing is left to quantise.
    """
    if method not in METHODS:
        raise CofituneError(f"Unknown quantisation {method!r}; choose one of {', '.join(METHODS)}.")
    bitsandbytes = _bitsandbytes()
    dtype, device = checkpoint_dtype(location, dtype), _indexed(torch.device(device))
    plan = skeleton(location, dtype, roles)
    if getattr(plan.config, "quantization_config", None) is not None:
        raise CofituneError(f"The checkpoint {location} is quantised already; name the full-precision base instead.")
    modules = dict(plan.named_modules())
    # bitsandbytes' layers replace these types and none derived from them; experts in one tensor stay as they are.
    linear = {name: module for name, module in modules.items() if type(module) in (nn.Linear, Conv1D)}
    kept = set(keep(plan) if callable(keep) else keep)
    if unknown := sorted(kept - modules.keys()):
        raise CofituneError(f"The model {location} has no module named {unknown[0]} that could be kept.")
    head = {name for name, module in linear.items() if module is plan.get_output_embeddings()}
    kept |= head
    if not linear.keys() - head:
        raise CofituneError(f"The layers of {location} hold no nn.Linear or Conv1D, and nothing else can be quantised.")
    if not (chosen := linear.keys() - kept):
        raise CofituneError(
            f"Nothing of the model {location} is left to quantise, as every projection is to be trained; train a "
            "smaller region or load the model unquantised."
        )
    config = _config(method, dtype, sorted(kept & linear.keys()))
    model = auto_class(plan.config).from_pretrained(
        location, dtype=dtype, device_map={"": device}, quantization_config=config,
        attn_implementation=attn_implementation, trust_remote_code=False,
    )
    layers = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    quantised = {name: module for name, module in model.named_modules() if isinstance(module, layers)}
    precise = (*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ()))
    chosen = {name for name in chosen if name in quantised or not any(
        re.search(rf"(^|\.){part}($|\.)", name) for part in precise)}
    if wrong := sorted(quantised.keys() ^ chosen):
        raise CofituneError(
            f"The layers of {location} were not quantised as asked for ({wrong[0]}); use the versions of transformers "
            "and bitsandbytes that constraints.txt names, or load the model unquantised."
        )
    if method == "nf4":
        for module in quantised.values():
            # With this flag the first forward in eval mode on a CPU with AVX512-BF16 repacks the weight for a product
            # without a backward: gradients would silently be wrong, and the weight could not be dequantised any more.
            module.support_avx512bf16_for_cpu = False
        _check_forward(model, location)  # not with int8, whose first forward moves the scales
    digests = checkpoint_digests(location, dtype, {f"{name}.weight" for name in quantised})
    model.hf_quantizer = (_Nf4Quantizer if method == "nf4" else _Int8Quantizer)(config, digests)
    return with_roles(model, roles).eval()


@torch.no_grad()
def _check_forward(model: PreTrainedModel, location: str | Path) -> None:
    """Refuse a family whose code reads a projection's weight itself, which does not work if the weight is packed."""
    try:
        model.eval()(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    except Exception as error:
        raise CofituneError(
            f"The model {location} does not run with quantised projections ({type(error).__name__}), as its code reads "
            "their weights itself; load it unquantised."
        ) from None


def _config(method: str, dtype: torch.dtype, skipped: list[str]) -> BitsAndBytesConfig:
    if method == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )


def _bitsandbytes() -> ModuleType:
    # bitsandbytes warns at import about kernels of another package, and in int8 at every matrix product.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except ImportError:
        raise CofituneError(
            "Quantising the frozen part needs bitsandbytes: pip install 'cofitune-fast[quantize]'."
        ) from None
    return bitsandbytes


def _indexed(device: torch.device) -> torch.device:
    """Add the number to a bare `cuda`, as accelerate compares a quantised model's device with its own by number."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
