"""Which of transformers' Auto classes makes the model of a checkpoint."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from ..errors import CofituneError


def auto_class(config: PretrainedConfig) -> Any:
    """AutoModelForCausalLM, or the class for models of images and text if the checkpoint is of such a model.

    Some families have both, and the one for text alone would leave out the vision tower: a merged model would lack it.

    Raises:
        CofituneError: the model is an encoder-decoder, or no language model.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise CofituneError(f"A {config.model_type} model is an encoder-decoder; a causal language model is needed.")
    whole = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    if whole is not None and (whole in (config.architectures or [])
                              or config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        return AutoModelForImageTextToText
    remote = getattr(config, "auto_map", None) or {}
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and "AutoModelForCausalLM" not in remote:
        raise CofituneError(f"A {config.model_type} model is no causal language model that transformers knows.")
    return AutoModelForCausalLM
