"""What a training run will need, predicted from a model's configuration alone.

Weights, gradients and optimizer states are counted. Activations are counted too: the model runs once on PyTorch's
fake tensors, which have shapes and no values, and the tensors that autograd keeps for the backward are summed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.initialization import no_init_weights

from ..errors import CofituneError
from ..ops._storage import STORAGES, new_state
from ..regions import Region


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted bytes of one training step. `peak` is their sum: all parts are alive when the backward begins."""

    region: str
    trained_parameters: int
    total_parameters: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def peak(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "peak": self.peak}


def fake_model(source: str | Path | PretrainedConfig, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """The model of a config, folder or hub id without its weights (fake tensors)."""
    if not isinstance(source, PretrainedConfig):
        try:
            source = AutoConfig.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise CofituneError(f"No model configuration at {source}: {str(error).splitlines()[0]}") from None
    try:
        with FakeTensorMode(), no_init_weights():
            model = AutoModelForCausalLM.from_config(source, dtype=dtype)
            model.tie_weights()
    except ValueError:
        raise CofituneError(
            f"A {source.model_type} model is no causal language model; only those can be planned."
        ) from None
    return model


def plan_memory(
    model: nn.Module, region: Region, *, batch_size: int, length: int, response_length: int | None = None,
    storage: str = "bf16_sr", masked: bool = False,
) -> MemoryPlan:
    """Predict the memory of training `region` on batches of [batch_size, length] tokens.

    model: as `fake_model` gives it; its requires_grad flags are set to the region's. response_length: response tokens
    per row (default: half of `length`); only these need logits. storage: how `MaskedAdamW` keeps the weights and their
    states. masked: count one fp32 factor per row.
    """
    trained = region.apply(model)
    count = sum(parameter.numel() for _, parameter in trained)
    total = sum(parameter.numel() for parameter in model.parameters())
    weight_bytes = STORAGES[storage].weight.itemsize
    responses = batch_size * min(response_length or max(1, length // 2), length - 1)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    mask_bytes = sum(4 * parameter.shape[0] for _, parameter in trained) if masked else 0
    return MemoryPlan(
        region=str(region),
        trained_parameters=count,
        total_parameters=total,
        weights=total * weight_bytes,
        gradients=count * weight_bytes,
        optimizer=sum(_state_bytes(parameter, storage) for _, parameter in trained) + mask_bytes,
        activations=_saved_bytes(model, batch_size, length),
        # Logits in the model's dtype and in fp32, their log-softmax, and the gradient of both.
        logits=responses * vocabulary * (2 * weight_bytes + 3 * 4),
    )


def _state_bytes(parameter: Tensor, storage: str) -> int:
    state = new_state(torch.empty(parameter.shape, device="meta"), storage)
    return sum(tensor.nbytes for tensor in state.values())


def _saved_bytes(model: nn.Module, batch_size: int, length: int) -> int:
    """Bytes of the tensors that autograd saves between embedding and head, weights and views of them left out."""
    own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}
    keep: list[Tensor] = []  # storages are told apart by address, so none may be freed while counting

    def pack(tensor: Tensor) -> Tensor:
        key = _storage(tensor)
        if key not in own and key not in seen:
            seen[key] = tensor.untyped_storage().nbytes()
            keep.append(tensor)
        return tensor

    mode = detect_fake_mode(next(model.parameters()))
    model.train()
    with mode, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ids = torch.zeros(batch_size, length, dtype=torch.long)
        output = model.get_decoder()(input_ids=ids, use_cache=False)
    del output
    model.eval()
    return sum(seen.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
