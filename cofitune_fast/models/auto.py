"""How transformers reads a checkpoint: its configuration, and which Auto class makes the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from ..errors import CofituneError


def read_config(location: str | Path) -> PretrainedConfig:
    """Read the configuration of the model at `location`, a folder or hub id. Code that it brings along is not run.

    Raises:
        CofituneError: transformers does not know the kind of model without that code.
    """
    try:
        return AutoConfig.from_pretrained(location, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise CofituneError(
            f"The model {location} is of a kind that transformers knows only by code which the model brings along, and "
            "such code is never run here; update transformers, or name a model of a kind that it knows."
        ) from None


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
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise CofituneError(f"A {config.model_type} model is no causal language model that transformers knows.")
    return AutoModelForCausalLM


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Context in which transformers shows no progress bars."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
