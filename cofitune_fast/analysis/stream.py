"""The residual stream at selected positions: its state after every layer, and the addition of each module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..data import label_predictors
from ..errors import CofituneError
from ..models.head import select_positions
from ..regions import Layout

TOLERANCE = 0.1
"""Bound on the part of the last state that is from neither embedding nor modules, such as rounding in bfloat16."""


@dataclass
class Stream:
    """The stream at n positions of one batch, in the model's dtype and on its device.

    targets: int64 [n], the right token at each position. rows: int64 [n], the position's row in the batch.
    states: num_layers + 1 tensors [n, hidden]: the embedding, then the state after each layer.
    attention, ffn: num_layers tensors [n, hidden], the module's addition, after its own norm if the family has one.
    logits: [vocabulary], the model's own logits at the first position.
    """

    targets: Tensor
    rows: Tensor
    states: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    ffn: list[Tensor] = field(default_factory=list)
    logits: Tensor | None = None

    def remainder(self) -> Tensor:
        """Last state minus the embedding and all additions of modules, float32 [n, hidden]: the rounding."""
        rest = self.states[-1].float() - self.states[0].float()
        for write in (*self.attention, *self.ffn):
            rest -= write.float()
        return rest


def read_stream(model: nn.Module, layout: Layout, batch: dict[str, Tensor]) -> Stream:
    """Run one forward of `batch` (from `data.collate`), and read the positions that predict a response token.

    Raises:
        CofituneError: the states are not the sum of the embedding and the outputs of attention and FFN, as with scaled
            residuals or adapters; or they are not finite.
    """
    writers = [_writers(layout, layer) for layer in range(layout.num_layers)]
    device = model.get_input_embeddings().weight.device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    mask, targets = label_predictors(batch["labels"])
    places = mask.nonzero()
    stream = Stream(targets, rows=places[:, 0])
    first = torch.zeros_like(mask)
    first[tuple(places[0])] = True

    def keep(store: list[Tensor]) -> Callable[[Any], None]:
        def taken(value: Any) -> None:
            states = value[0] if isinstance(value, tuple) else value
            if states.numel() != mask.numel() * states.shape[-1]:
                raise CofituneError(
                    f"The states of model type '{layout.model_type}' have the shape {list(states.shape)} and not one "
                    "vector per token; this model cannot be analysed."
                )
            store.append(states.reshape(*mask.shape, -1)[mask])  # experts return [tokens, hidden]

        return taken

    hooks = _hooks(layout, writers, keep(stream.states), keep(stream.attention), keep(stream.ffn))
    with hooks, select_positions(model, first):
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    stream.logits = output.logits[0, 0]
    if not (stream.logits.isfinite().all() and stream.states[-1].isfinite().all()):
        raise CofituneError("The model's states or logits are not finite; its weights may be damaged.")
    off = (stream.remainder().norm() / stream.states[-1].float().norm()).item()
    if off > TOLERANCE:
        raise CofituneError(
            f"The layers of model type '{layout.model_type}' are not residual + attention + FFN: {off:.0%} of the last "
            "state come from elsewhere; this model cannot be analysed."
        )
    return stream


@contextmanager
def _hooks(
    layout: Layout, writers: list[tuple[nn.Module, nn.Module]], state: Callable[[Any], None],
    attention: Callable[[Any], None], ffn: Callable[[Any], None],
) -> Iterator[None]:
    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        state(args[0] if args else kwargs["hidden_states"])

    def after(store: Callable[[Any], None]) -> Callable[..., None]:
        return lambda module, inputs, output: store(output)

    handles = [layout.decoder_layer(0).register_forward_pre_hook(before, with_kwargs=True)]
    for layer in range(layout.num_layers):
        for module, store in zip((*writers[layer], layout.decoder_layer(layer)), (attention, ffn, state), strict=True):
            handles.append(module.register_forward_hook(after(store)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _writers(layout: Layout, layer: int) -> tuple[nn.Module, nn.Module]:
    """Modules whose outputs are added to the residual: attention or other mixer and FFN, or the norms after them.

    The norms are those of Gemma 2 and 3.

    Raises:
        CofituneError: the layer has no single mixer and FFN, or runs more than once.
    """
    block = layout.decoder_layer(layer)
    behind_ffn = getattr(block, "post_feedforward_layernorm", None)
    if behind_ffn is not None:
        return block.post_attention_layernorm, behind_ffn
    mixer, ffn = layout.attention(layer), layout.ffn(layer)
    if mixer is None or ffn is None or not layout.in_order:
        raise CofituneError(
            f"The layers of model type '{layout.model_type}' are not residual + attention + FFN, each once (as layer "
            f"{layer}); this model cannot be analysed."
        )
    return mixer, ffn
