"""SDPA over a prefix trie: shared tokens are stored once and expanded per row for attention.

Rows of a batch often begin alike, with a system prompt or an instruction. A trie of the rows holds each distinct prefix
token once. Everything in a layer except attention treats tokens independently, so it can work on the trie. Attention
gathers the rows as [rows, tokens], runs ordinary causal SDPA, and scatters each token's result back to the trie.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "cofitune_rows"
SHORT = 256  # tokens


def takes_tries(model: nn.Module, longest: int) -> bool:
    """True if rows of up to `longest` tokens can be passed as a trie, see `trie_attention`.

    This needs SDPA, and no row may be longer than a sliding window.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    return config._attn_implementation in ("sdpa", NAME) and (not window or longest <= window)


@contextmanager
def trie_attention(model: PreTrainedModel) -> Iterator[None]:
    """Context in which a forward may take a trie. A forward without `rows` and `owners` is ordinary SDPA.

    input_ids, position_ids: [1, tokens].
    attention_mask: [1, 1, 1, 1]. Its value is not read; it keeps transformers from making a mask of its own.
    rows: int64 [rows, length], the place in the trie of each row's tokens, padded with any place.
    owners: int64 [tokens], for each token of the trie one place in the flattened rows that holds it.
    """
    former = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(former)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    rows: Tensor | None = None, owners: Tensor | None = None, **options: Any,
) -> tuple[Tensor, Any]:
    """Attention function for transformers. query, key, value: [1, heads, tokens, head_dim]; result:
    [1, tokens, heads, head_dim]."""
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if rows is None:
        return attend(module, query, key, value, attention_mask, **options)

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
