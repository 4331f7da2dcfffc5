"""Send only selected positions through the language-model head.

The head is the widest matrix of a small model. Only response tokens are scored or trained on, so the other positions
need no logits. A hook on the head selects the positions for every family. Later steps of the model's own code, such as
soft-capping or scaling, still apply.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ..errors import CofituneError
from .sharded import unshard


@contextmanager
def select_positions(model: nn.Module, mask: Tensor) -> Iterator[None]:
    """Context in which `model(...).logits` has shape [1, mask.sum(), vocabulary].

    mask: bool [batch, tokens]; the selected positions come in row-major order, as in `hidden[mask]`.

    Gathering before the head keeps the head's backward a plain matrix product. For a strided slice of the hidden
    states PyTorch would expand the head weight once per sample.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise CofituneError(f"{type(model).__name__} has no language-model head; a causal language model is needed.")

    def gather(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = inputs
        if hidden.shape[:2] != mask.shape:
            raise CofituneError(
                f"The mask of positions is {tuple(mask.shape)}, but the head receives {tuple(hidden.shape[:2])} "
                "positions; call the model without `logits_to_keep`."
            )
        return (hidden[mask.to(hidden.device)].unsqueeze(0), *rest)

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def logits_at(model: nn.Module, batch: dict[str, Tensor], mask: Tensor) -> Tensor:
    """Compute the logits [N, vocabulary] at the N positions of the mask, in row-major order.

    batch: `input_ids` and `attention_mask`, each [batch, tokens]; other entries are not read. mask: bool
    [batch, tokens], on any device.
    """
    with select_positions(model, mask):
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return output.logits[0]


def head_weight(model: nn.Module) -> tuple[Tensor, float | None]:
    """Head weight [vocabulary, hidden], and the soft cap of the logits if the family has one (Gemma 2), else None."""
    head = model.get_output_embeddings()
    if head is None:
        raise CofituneError(f"{type(model).__name__} has no language-model head; a causal language model is needed.")
    return head.weight, getattr(model.config.get_text_config(), "final_logit_softcapping", None)


def hidden_states(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Compute the head's input, [batch, tokens, hidden], from `input_ids` and `attention_mask`."""
    unshard(model)
    decoder = model.get_decoder()
    output = decoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return output.last_hidden_state
