"""SDPA over a prefix trie: shared tokens are stored once and expanded per row for attention.

Rows of a batch often begin alike, with a system prompt or an instruction. A trie of the rows holds each distinct prefix
token once. Everything in a layer except attention treats tokens independently, so it can work on the trie. Attention
gathers the rows as [rows, tokens], runs ordinary causal SDPA, and scatters each token's result back to the trie.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..errors import CofituneError

NAME = "cofitune_rows"
SHORT = 256  # tokens


_WINDOWS = re.compile(r"(sliding_|attention_|^)window(_size)?|attention_chunk_size|local_attention")


def takes_sdpa(model: nn.Module) -> bool:
    """True if the model's attention is SDPA, which `trie_attention` stands in for."""
    return model.config.get_text_config()._attn_implementation in ("sdpa", NAME)


def longest_row(model: nn.Module) -> float:
    """Number of tokens that every attention of `model` sees at once: the shortest window of a layer, or infinity."""
    config = model.config.get_text_config().to_dict()
    return min((size for key, size in config.items() if _WINDOWS.fullmatch(key) and isinstance(size, int) and size > 0),
               default=math.inf)


def why_mixed_otherwise(layers: Iterable[nn.Module]) -> str | None:
    """The reason why tokens in `layers` are mixed by more than transformers' attention functions; None if they are not.

    Such a layer can take no trie.
    """
    for index, layer in enumerate(layers):
        modules = list(layer.modules())
        if any(isinstance(module, nn.Conv1d) for module in modules):
            return f"a convolution in layer {index} mixes its tokens"
        if any(type(module).__name__.endswith("Indexer") for module in modules):
            return f"layer {index} chooses the tokens that a token attends to"
        attentions = [module for module in modules if _by_interface(module)]
        if not attentions:
            return f"layer {index} has its own code for attention"
        if any("arange" in _code(module).co_names for module in attentions):
            return f"the attention of layer {index} counts the places of tokens by itself"
    return None


def _by_interface(module: nn.Module) -> bool:
    return "ALL_ATTENTION_FUNCTIONS" in _code(module).co_names


def _code(module: nn.Module) -> Any:
    return inspect.unwrap(type(module).forward).__code__


@contextmanager
def trie_attention(model: PreTrainedModel) -> Iterator[None]:
    """Context in which a forward may take a trie. A forward without `rows` and `owners` is ordinary SDPA.

    Raises CofituneError in a forward with a trie of which an attention gets no rows.

    input_ids, position_ids: [1, tokens].
    attention_mask: [1, 1, 1, 1]. Its value is not read; it keeps transformers from making a mask of its own.
    rows: int64 [rows, length], the place in the trie of each row's tokens, padded with any place.
    owners: int64 [tokens], for each token of the trie one place in the flattened rows that holds it.
    """
    former = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation(NAME)
    handles = [model.register_forward_pre_hook(_begin, with_kwargs=True),
               model.register_forward_hook(_end, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation(former)


class _Running:
    trie = False  # True while a forward runs that was given a trie


def _begin(_model: nn.Module, _given: Any, named: dict[str, Any]) -> None:
    _Running.trie = named.get("rows") is not None


def _end(*_: Any) -> None:
    _Running.trie = False


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    rows: Tensor | None = None, owners: Tensor | None = None, **options: Any,
) -> tuple[Tensor, Any]:
    """Attention function for transformers. query, key, value: [1, heads, tokens, head_dim]; result:
    [1, tokens, heads, head_dim]."""
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if rows is None or owners is None:
        if _Running.trie:
            raise CofituneError(f"{type(module).__name__} is not told which tokens are one row, as a layer does not "
                                "hand on its arguments; set memory.packing to off.")
        return attend(module, query, key, value, attention_mask, **options)
    if attention_mask is not None and attention_mask.numel() > 1:
        raise CofituneError(f"{type(module).__name__} makes a mask of its own, which a trie cannot have; set "
                            "memory.packing to off.")

    def apart(states: Tensor) -> Tensor:
        tokens = states[0].transpose(0, 1).index_select(0, rows.flatten())
        return tokens.unflatten(0, rows.shape).transpose(1, 2)

    query, key, value = apart(query), apart(key), apart(value)
    if _by_products(query, options):
        output, weights = _causal_products(query, key, value, options.get("scaling")), None
    else:
        output, weights = attend(module, query, key, value, None, **{**options, "is_causal": True})
    return output.flatten(0, 1).index_select(0, owners).unsqueeze(0), weights


def _by_products(query: Tensor, options: dict[str, Any]) -> bool:
    """True if plain matrix products are faster than PyTorch's SDPA: for bfloat16 on a CPU and short rows.

    There flash attention takes 3.5 times as long, measured on forward and backward of 8 rows of 121 tokens. Plain
    products keep the probabilities [rows, heads, tokens, tokens], so longer rows do without them.
    """
    short = query.shape[2] <= SHORT and query.device.type == "cpu" and query.dtype == torch.bfloat16
    return short and not options.get("dropout")


def _causal_products(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Causal attention by matrix products, from [rows, heads, tokens, head_dim] to [rows, tokens, heads, head_dim].

    Heads that share keys and values form one product. Scores are rounded to bfloat16, as in transformers' eager form;
    softmax is in float32.
    """
    (count, heads, length, width), groups = query.shape, query.shape[1] // key.shape[1]
    query = query.reshape(-1, groups * length, width)
    key, value = key.reshape(-1, length, width), value.reshape(-1, length, value.shape[-1])
    future = torch.full((length, length), -torch.inf, dtype=query.dtype).triu_(1).repeat(groups, 1)
    scores = torch.baddbmm(future, query, key.transpose(1, 2), alpha=width**-0.5 if scaling is None else scaling)
    output = torch.bmm(scores.softmax(-1), value)
    return output.view(count, heads, length, -1).transpose(1, 2)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
