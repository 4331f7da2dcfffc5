"""What a step computes and moves, against formulas, and the time that makes of it."""

from __future__ import annotations

import pytest
import torch
from tiny import make_tiny_model
from torch.utils.flop_counter import FlopCounterMode

from cofitune_fast.planning.plan import Settings
from cofitune_fast.planning.planner import Planner, fake_model
from cofitune_fast.planning.step_time import Rates, measure_rates, step_time
from cofitune_fast.regions import Region

SETTINGS = Settings(batch_size=2, length=16, response_length=4, storage="fp32")
TOKENS, HIDDEN, INNER, KEYS, HEADS, LAYERS, VOCABULARY = 32, 32, 48, 16, 4, 4, 260


def plan(region, **changes):
    config = make_tiny_model().config
    settings = Settings(**{**vars(SETTINGS), **changes})
    return Planner(fake_model(config, torch.float32), Region.parse(region)).plan(settings)


def rotary_products():
    """FLOPs of the rotary table, which older releases of transformers, such as 5.5, make by a matrix product."""
    model = make_tiny_model()
    with FlopCounterMode(display=False) as counter:
        model.model.rotary_emb(torch.zeros(1), torch.arange(SETTINGS.length)[None])
    return counter.get_total_flops()


def products(region_layers, frozen_above, below, *, first_attention_backward=False):
    """FLOPs of a step that trains up and down of `region_layers` layers: 2 per weight and token for each of forward,
    input gradient and weight gradient; attention 4 per pair of places and channel forward, 2.5 times that backward."""
    attention = TOKENS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KEYS) * 2
    ffn, pairs = TOKENS * HIDDEN * INNER * 2, 4 * TOKENS * 16 * HIDDEN
    forward = (below + region_layers + frozen_above) * (attention + 3 * ffn + pairs)
    whole = attention + 3 * ffn + pairs * 5 // 2  # input gradients of a layer
    head = 2 * SETTINGS.batch_size * SETTINGS.response_length * HIDDEN * VOCABULARY
    first = 2 * ffn + ffn  # weight gradients of up and down, input gradient of down; nothing goes on below
    forward += rotary_products()
    return forward + 2 * head + first + (region_layers - 1) * (whole + 2 * ffn) + frozen_above * whole


def test_products_of_forward_and_backward():
    planned = plan("ffn.up+ffn.down@1-2")
    assert planned.work.flops == products(region_layers=2, frozen_above=1, below=1)


def test_a_cached_prefix_is_not_computed():
    assert plan("ffn.up+ffn.down@1-2", prefix="cached").work.flops == products(2, 1, below=0)


def test_checkpointing_computes_the_forward_from_the_region_up_once_more():
    more = plan("ffn.up+ffn.down@1-2", gradient_checkpointing=True).work.flops - products(2, 1, 1)
    forward = products(2, 1, 3) - products(2, 1, 0)  # three layers
    # Recomputation ends with the last tensor that is needed, and the last product of a frozen layer makes none.
    last = TOKENS * HIDDEN * INNER * 2
    assert forward - 3 * last <= more <= forward


def test_exact_release_runs_the_backward_twice_and_lagged_once():
    off, lagged, exact = (plan("ffn@2", gradient_release=release).work.flops for release in ("off", "lagged", "exact"))
    assert off == lagged < exact < 2 * off


@pytest.mark.parametrize(("storage", "moved"), [("bf16_sr", 22 + 2), ("bf16", 14 + 2), ("int8", 10 + 2)])
def test_bytes_of_the_optimizer(storage, moved):
    config = make_tiny_model(dtype=torch.bfloat16).config
    settings = Settings(**{**vars(SETTINGS), "storage": storage})
    planned = Planner(fake_model(config), Region.parse("ffn@2")).plan(settings)
    assert planned.optimizer_bytes == moved * planned.trained_parameters


def test_the_time_is_work_over_rates():
    planned = plan("ffn@2")
    time = step_time(planned, Rates(flops=1e9, bandwidth=1e6))
    assert time.products == planned.work.flops / 1e9 and time.rest == planned.work.moved / 1e6 > 0
    assert time.optimizer == planned.optimizer_bytes / 1e6
    assert time.total == time.products + time.rest + time.optimizer


def test_the_way_to_the_host_needs_its_rate():
    planned = plan("ffn@2", optimizer_states="host")
    unknown = step_time(planned, Rates(1e9, 1e6))
    assert unknown.optimizer is None and unknown.total == unknown.products + unknown.rest
    known = step_time(planned, Rates(1e9, 1e6, host_bandwidth=1e5, transfer=1e4))
    ways = 2 * 4 * planned.trained_parameters / 1e4
    assert known.optimizer == planned.optimizer_bytes / 1e5 + ways


def test_measured_and_given_rates():
    measured = measure_rates(64, 128, 32, torch.float32, seconds=0.01)
    assert 0 < measured.flops < float("inf") and 0 < measured.bandwidth < float("inf")
    assert "measured here" in measured.source and "[32, 64]" in measured.source
    given = measure_rates(64, 128, 32, torch.float32, flops=1e12, bandwidth=2e12, transfer=3e9, seconds=0.01)
    assert (given.flops, given.bandwidth, given.transfer, given.source) == (1e12, 2e12, 3e9, "given")
