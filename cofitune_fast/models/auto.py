"""Which of transformers' Auto classes makes the model of a checkpoint."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)


def auto_class(config: PretrainedConfig) -> Any:
    """AutoModelForCausalLM, or the class for models of images and text if the checkpoint is of such a model.

    Some families have both, and the one for text alone would leave out the vision tower: a merged model would lack it.
    """
    whole = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    if whole is not None and (whole in (config.architectures or [])
                              or config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM
