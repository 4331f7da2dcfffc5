"""The priors against their formulas, computed the long way; and that the base is as it was."""

from __future__ import annotations

import math

import pytest
import torch

from cofitune_fast.data import collate
from cofitune_fast.errors import CofituneError
from cofitune_fast.models import load_model
from cofitune_fast.models.fingerprint import tensor_digests
from cofitune_fast.regions import Region
from cofitune_fast.trials import TrialData, Workbench
from cofitune_fast.trials.priors import _batches, make_prior

REGIONS = [Region.parse(text) for text in ("ffn.up@0-1", "attn.q+attn.v@2-3", "ffn@3")]
RATES = [1e-3, 2e-3, 1e-3]


@pytest.fixture
def bench(tiny_run):
    return Workbench(load_model(tiny_run["model"]), TrialData(train=tiny_run["data.train"]))


def loss(bench, rows):
    batch = collate(rows, bench.pad_token_id)
    return bench.model(**batch).loss


def test_first_order_gain_is_the_rate_times_the_absolute_gradients(bench):
    found = make_prior("gradient", bench)(REGIONS, RATES)
    groups = _batches(bench)
    for region, rate, value in zip(REGIONS, RATES, found, strict=True):
        region.apply(bench.model)
        trained = [parameter for _, parameter in region.parameters(bench.model)]
        sums = [sum(g.abs().sum().item() for g in torch.autograd.grad(loss(bench, rows), trained)) for rows in groups]
        assert value == pytest.approx(rate * sum(sums) / len(sums), rel=1e-4)


def test_one_step_of_the_sign_takes_that_much_off_the_loss(bench):
    """The first-order gain is what it says: the loss falls by it, for a small rate."""
    region, rate = REGIONS[2], 1e-5
    (value,) = make_prior("gradient", bench)([region], [rate])
    rows = _batches(bench)
    region.apply(bench.model)
    fall = 0.0
    for group in rows:
        with bench.trial(region):
            region.apply(bench.model)
            before = loss(bench, group)
            trained = [parameter for _, parameter in region.parameters(bench.model)]
            gradients = torch.autograd.grad(before, trained)
            with torch.no_grad():
                for parameter, gradient in zip(trained, gradients, strict=True):
                    parameter -= rate * gradient.sign()
                fall += (before - loss(bench, group)).item()
    assert fall / len(rows) == pytest.approx(value, rel=0.05)


def prompt_distributions(bench, rows, tokens=16):
    found = []
    for row in rows:
        logits = bench.model(input_ids=torch.tensor([row.input_ids])).logits[0].float().log_softmax(-1)
        found.append(logits[max(0, row.response_start - tokens) : row.response_start])
    return torch.cat(found)


def test_gain_minus_kl_is_both_after_steps_along_the_sign(bench):
    before = tensor_digests(bench.model)
    region, rate = REGIONS[2], 1e-3
    (value,) = make_prior("kl", bench)([region], [rate])
    assert tensor_digests(bench.model) == before
    groups, expected = _batches(bench), 0.0
    with torch.no_grad():
        old = [(loss(bench, rows).item(), prompt_distributions(bench, rows)) for rows in groups]
    with bench.trial(region):
        region.apply(bench.model)
        trained = [parameter for _, parameter in region.parameters(bench.model)]
        for rows in groups:
            gradients = torch.autograd.grad(loss(bench, rows), trained)
            with torch.no_grad():
                for parameter, gradient in zip(trained, gradients, strict=True):
                    parameter -= rate * gradient.sign()
        with torch.no_grad():
            for rows, (was, base) in zip(groups, old, strict=True):
                divergence = (base.exp() * (base - prompt_distributions(bench, rows))).sum(-1).mean().item()
                assert divergence > 0
                expected += was - loss(bench, rows).item() - divergence
    assert value == pytest.approx(expected / len(groups), rel=1e-3)


def test_spare_rank_is_one_minus_the_effective_rank(bench):
    weight = dict(bench.model.named_parameters())["model.layers.0.mlp.up_proj.weight"]
    with torch.no_grad():
        weight.zero_()
        weight[0, 0], weight[1, 1] = 3.0, 1.0
    (value,) = make_prior("spectrum", bench)([Region.parse("ffn.up@0")], [1.0])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert value == pytest.approx(1 - math.exp(entropy) / min(weight.shape), rel=1e-5)


def test_an_unknown_prior(bench):
    with pytest.raises(CofituneError, match="Unknown prior 'luck'; known are gradient, kl, spectrum"):
        make_prior("luck", bench)
