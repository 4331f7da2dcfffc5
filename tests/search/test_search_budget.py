"""The counted work against what PyTorch counts on a real step, and the units of a budget."""

from __future__ import annotations

import pytest
import torch
from families import tiny_family
from tiny import make_tiny_model

from cofitune_fast.errors import CofituneError
from cofitune_fast.planning.work import Work as Counter
from cofitune_fast.regions import Region, resolve_layout
from cofitune_fast.search import Budget, Work
from cofitune_fast.search.work import token_weights

LENGTH = 2  # short, so that attention scores, which are not counted, hardly matter


def counted(model, region, *, prefix):
    """Operations of forward and backward of one row of LENGTH tokens, all of them responses, in float32."""
    region.apply(model)
    ids = torch.arange(LENGTH)[None]
    with Counter() as counter:
        if prefix is None:
            model(input_ids=ids, use_cache=False).logits.sum().backward()
        else:
            with torch.no_grad():
                model(input_ids=ids, use_cache=False)
    return counter.count.flops


def work(model, **changes):
    layout = resolve_layout(model)
    per_layer = [token_weights((cell for cell in layout.cells if cell.layer == layer), layout)
                 for layer in range(layout.num_layers)]
    return Work(**{**dict(
        layer_parameters=tuple(per_layer), head_parameters=model.get_input_embeddings().weight.numel(),
        tokens=LENGTH, responses=LENGTH, epochs=1.0,
        full_epochs=1.0, scored_tokens=LENGTH, scored_responses=LENGTH,
    ), **changes})


def test_full_fine_tuning_is_six_per_parameter_and_token():
    model = make_tiny_model()
    assert work(model).full_sft == pytest.approx(counted(model, Region.full(), prefix=None), rel=0.03)


@pytest.mark.parametrize(("family", "text"), [
    ("llama", "ffn.up+ffn.down@2-3"), ("llama", "mha@1"), ("llama", "ffn@0-3"), ("llama", "attn.q@3"),
    ("gpt2", "ffn@1"), ("lfm2", "all@1-3"),
])
def test_a_region_costs_what_its_gradients_cost(family, text):
    """Also in Conv1D, and in layers of different kinds."""
    model = make_tiny_model() if family == "llama" else tiny_family(family)
    region = Region.parse(text)
    lowest = min(cell.layer for cell in region.cells(resolve_layout(model)))
    one = work(model, cached=False)
    ours = one.training(lowest, region.count(model), 0.0, 1.0)
    assert ours == pytest.approx(counted(model, region, prefix=None), rel=0.12)  # the lowest layer's input needs less
    assert one.scoring() == pytest.approx(counted(model, region, prefix="all"), rel=0.03)


def test_what_is_cached_is_computed_once():
    one = work(make_tiny_model(), epochs=2.0)
    layers_below = 2 * LENGTH * sum(one.layer_parameters[:2])  # two layers, one epoch
    first, later = (one.training(2, 100, 0.0, 0.25, seen=seen) for seen in (0.0, 1.0))
    assert first - later == layers_below / 2  # half of the rows so far
    assert one.training(2, 100, 0.25, 0.5, seen=0.5) - one.training(2, 100, 0.25, 0.5, seen=1.0) == layers_below / 2
    assert one.training(2, 100, 0.5, 1.0, seen=1.0) == 2 * later
    uncached = work(make_tiny_model(), epochs=2.0, cached=False)
    assert uncached.training(2, 100, 0.0, 1.0, seen=1.0) - 4 * later == pytest.approx(2 * layers_below)
    assert one.scoring(2, first=True) - one.scoring(2, first=False) == layers_below


@pytest.mark.parametrize(("text", "amount", "unit"), [
    ("2 full-sft", 2.0, "full_sft"), ("2sft", 2.0, "full_sft"), ("1.5h", 1.5, "hours"), ("3M tokens", 3e6, "tokens"),
    ("5e6 tokens", 5e6, "tokens"), ("100k tok", 1e5, "tokens"), ("0.5 hours", 0.5, "hours"),
])
def test_units(text, amount, unit):
    assert Budget.parse(text) == Budget(amount, unit)


@pytest.mark.parametrize("text", ["2", "0h", "-1h", "two sft", "3 days", "", "1e400 tokens x"])
def test_what_is_no_budget(text):
    with pytest.raises(CofituneError, match="write an amount above 0 of full-sft, hours or tokens"):
        Budget.parse(text)
