"""The cheapest settings for a budget: the order of losses, the least time among equals, and what is nearest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import make_tiny_model

from cofitune_fast.planning.fit import LOSSES, _candidates, fit, longest_that_fits
from cofitune_fast.planning.plan import Settings
from cofitune_fast.planning.planner import Planner, fake_model
from cofitune_fast.planning.step_time import Rates, step_time
from cofitune_fast.regions import Region

RATES = Rates(flops=1e12, bandwidth=1e11)
ASKED = Settings(batch_size=4, length=64, response_length=24, prefix="cached")
SIZES = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 176, "head_dim": 16}


@pytest.fixture(scope="module")
def planner():
    return Planner(fake_model(make_tiny_model(dtype=torch.bfloat16, **SIZES).config), Region.parse("ffn@1-2"))


@pytest.fixture(scope="module")
def all_choices(planner):
    """Every candidate with what it needs, by itself: the search may stop early, this does not."""
    choices = []
    for candidate in _candidates(ASKED):
        plan = planner.plan(candidate)
        losses = [f"storage {candidate.storage}"] * (candidate.storage != ASKED.storage)
        losses += [f"quantize {candidate.quantize}"] * (candidate.quantize != ASKED.quantize)
        choices.append((max(plan.peak, plan.filling), losses, step_time(plan, RATES), candidate))
    return choices


def harm(losses):
    return sorted((LOSSES.index(loss) for loss in losses), reverse=True)


def test_the_candidates_are_all_that_go_together():
    candidates = list(_candidates(ASKED))
    assert len(candidates) == len(set(candidates)) == 3 * 3 * 2 * 2 * (2 * 3 + 1)
    for candidate in candidates:
        released = candidate.gradient_release != "off"
        assert not (released and (candidate.accumulation > 1 or candidate.optimizer_states == "host"))
        assert candidate.batch_size % candidate.accumulation == 0
        assert (candidate.length, candidate.batch_size, candidate.prefix) == (64, 4, "cached")


def test_nothing_finer_than_what_is_asked_for_is_tried():
    coarse = list(_candidates(replace(ASKED, storage="bf16", quantize="nf4", prefix="computed")))
    assert {candidate.storage for candidate in coarse} == {"bf16", "int8"}
    assert {candidate.quantize for candidate in coarse} == {"nf4"}
    assert {candidate.prefix_weights for candidate in coarse} == {"device"}
    assert {candidate.storage for candidate in _candidates(replace(ASKED, storage="fp32"))} == {"fp32"}
    lagged = {candidate.gradient_release for candidate in _candidates(replace(ASKED, gradient_release="lagged"))}
    assert lagged == {"off", "exact", "lagged"}


@pytest.mark.parametrize("share", [1.5, 1.0, 0.8, 0.6, 0.5, 0.4, 0.35, None])
def test_the_least_loss_then_the_least_time(planner, all_choices, share):
    budget = int(planner.plan(ASKED).peak * share) if share else min(
        need for need, losses, _, _ in all_choices if not losses)  # a single one without a loss
    fitting = [choice for choice in all_choices if choice[0] <= budget]
    found = fit(planner, ASKED, budget, RATES)
    if not fitting:
        assert found.chosen is found.runner_up is None
        assert found.nearest.need == min(choice[0] for choice in all_choices) > budget
        return
    best = min(fitting, key=lambda choice: (harm(choice[1]), choice[2].optimizer is None, choice[2].total, choice[0]))
    assert found.chosen.plan.settings == best[3] and list(found.chosen.losses) == best[1]
    assert found.chosen.need == best[0] <= budget and found.nearest is None
    if len(fitting) > 1:
        assert found.runner_up.need <= budget
        assert harm(found.runner_up.losses) >= harm(found.chosen.losses)


def test_a_budget_of_plenty_changes_nothing_but_what_costs_no_number(planner):
    chosen = fit(planner, ASKED, 2**40, RATES).chosen
    assert chosen.losses == () and not chosen.plan.settings.gradient_checkpointing
    assert chosen.plan.settings.accumulation == 1 and chosen.plan.settings.optimizer_states == "device"


def test_the_tightest_budget_is_met_and_one_byte_less_is_not(planner, all_choices):
    least = min(choice[0] for choice in all_choices)
    assert fit(planner, ASKED, least, RATES).chosen.need == least
    assert fit(planner, ASKED, least - 1, RATES).nearest.need == least


def test_without_memory_of_its_own_the_device_gains_nothing_by_the_host(planner, all_choices):
    """On a CPU what is "on the host" is in the same memory, so that the tightest budget is another one."""
    needs = {}
    for candidate in _candidates(replace(ASKED, own_memory=False)):
        plan = planner.plan(candidate)
        needs[plan.need] = plan
        assert plan.need == max(plan.peak, plan.filling) + sum(plan.host.values())
    least = min(needs)
    assert least > min(choice[0] for choice in all_choices)
    found = fit(planner, replace(ASKED, own_memory=False), least, RATES).chosen
    assert found.need == least and found.plan.settings.optimizer_states == "device"


def test_the_length_that_would_fit(planner, all_choices):
    least = min(all_choices, key=lambda choice: choice[0])
    wide = replace(least[3], length=512, response_length=192)
    need = planner.plan(replace(wide, length=128, response_length=48))
    assert longest_that_fits(planner, wide, max(need.peak, need.filling), RATES) == 128
    assert longest_that_fits(planner, wide, 1000, RATES) is None
