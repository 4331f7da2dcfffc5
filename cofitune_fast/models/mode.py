"""Contexts that put a model into evaluation mode and restore its state afterwards."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context with all modules in evaluation mode. Each module's training flag is restored afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def left_as_found(model: nn.Module, tokenizer: Any) -> Iterator[None]:
    """Context for other libraries that generate or evaluate: evaluation mode, no gradients, and all state restored.

    These are restored, also after an error: each module's training flag, the grad mode, `use_cache` of the
    configuration, the generation configuration (object and content), the tokenizer's padding side, truncation side and
    padding token, and the random states of Python, numpy and torch (CPU, and CUDA if it is in use).
    """
    generation = getattr(model, "generation_config", None)
    generation_content = copy.deepcopy(vars(generation)) if generation is not None else {}
    settings = [(config, config.use_cache) for config in {id(c): c for c in (
        model.config, model.config.get_text_config())}.values() if hasattr(config, "use_cache")]
    sides = {name: getattr(tokenizer, name) for name in ("padding_side", "truncation_side", "pad_token")}
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        with evaluation_mode(model), torch.no_grad():
            yield
    finally:
        if generation is not None:
            vars(generation).clear()
            vars(generation).update(generation_content)
            model.generation_config = generation
        for config, use_cache in settings:
            config.use_cache = use_cache
        for name, value in sides.items():
            setattr(tokenizer, name, value)
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
