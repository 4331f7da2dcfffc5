"""Objectives against plain formulas in float64, and their gradients against autograd."""

import math

import pytest
import torch

from cofitune_fast.losses.objectives import CrossEntropy, TopKl

TOKENS, VOCABULARY = 7, 40


def logits(seed, spread=2.0):
    return spread * torch.randn(TOKENS, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def targets():
    return torch.randint(0, VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(5))


def top_kl(k, seed=1):
    top = torch.log_softmax(logits(seed), -1).topk(k)
    return TopKl(top.indices.int(), top.values)


def written_out(gradient, z):
    """The gradient by all logits."""
    return (gradient.factors[:, None] * z.softmax(-1)).scatter(1, gradient.ids, gradient.values)


@pytest.mark.parametrize("objective", [
    CrossEntropy(targets()), CrossEntropy(targets(), "dft"), CrossEntropy(targets(), "eaft"), top_kl(1), top_kl(5),
    top_kl(VOCABULARY),
], ids=["ce", "dft", "eaft", "top1", "top5", "all"])
@pytest.mark.parametrize("rows", [slice(None), slice(2, 5)], ids=["all", "chunk"])
def test_the_gradient_is_that_of_the_losses(objective, rows):
    assert len(objective) == TOKENS
    z = logits(2)[rows].requires_grad_()
    expected = objective.token_losses(torch.log_softmax(z, -1), rows).sum()
    (by_autograd,) = torch.autograd.grad(expected, z)
    z = z.detach()
    total, gradient = objective.with_gradient(z, z.logsumexp(-1), rows)
    torch.testing.assert_close(total, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(written_out(gradient, z), by_autograd, rtol=1e-10, atol=1e-12)


def test_the_weights_of_the_losses():
    q = logits(3).softmax(-1)
    nll = -q.log()[torch.arange(TOKENS), targets()]
    top = q.sort(descending=True).values[:, :20]
    top = top / top.sum(-1, keepdim=True)
    entropy = -(top * top.log()).sum(-1) / math.log(20)
    for loss, weights in {"ce": torch.ones_like(nll), "dft": (-nll).exp(), "eaft": entropy}.items():
        found = CrossEntropy(targets(), loss).token_losses(q.log(), slice(None))
        torch.testing.assert_close(found, weights * nll, rtol=1e-12, atol=0, msg=loss)


def test_of_all_tokens_it_is_the_whole_divergence():
    p, q = logits(1).softmax(-1), logits(2).softmax(-1)
    found = top_kl(VOCABULARY).token_losses(q.log(), slice(None))
    torch.testing.assert_close(found, (p * (p / q).log()).sum(-1), rtol=1e-6, atol=2e-5)  # both tails are the least


@pytest.mark.parametrize("k", [1, 5, 20])
def test_of_some_tokens_it_is_the_divergence_with_the_others_as_one(k):
    p, q = logits(1).softmax(-1), logits(2).softmax(-1)
    found = top_kl(k).token_losses(q.log(), slice(None))
    for row in range(TOKENS):
        order = p[row].argsort(descending=True)
        merged_p, merged_q = (torch.cat([x[row][order[:k]], x[row][order[k:]].sum()[None]]) for x in (p, q))
        expected = (merged_p * (merged_p / merged_q).log()).sum()
        torch.testing.assert_close(found[row], expected, rtol=1e-10, atol=0)
        assert found[row] <= (p[row] * (p[row] / q[row]).log()).sum()


def test_no_divergence_where_both_are_one():
    log_q = torch.log_softmax(logits(1), -1)
    objective = top_kl(5)
    torch.testing.assert_close(objective.token_losses(log_q, slice(None)), torch.zeros(TOKENS).double(),
                               rtol=0, atol=1e-12)
    _, gradient = objective.with_gradient(log_q, torch.zeros(TOKENS).double(), slice(None))
    torch.testing.assert_close(written_out(gradient, log_q), torch.zeros_like(log_q), rtol=0, atol=1e-12)


def test_a_tail_that_float32_cannot_see_stays_finite():
    sure = torch.full((1, VOCABULARY), -60.0)
    sure[0, 0] = 0.0
    objective = TopKl(torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, 1))
    z = logits(4)[:1].float()
    for logits_ in (sure, z):
        total, gradient = objective.with_gradient(logits_, logits_.logsumexp(-1), slice(None))
        assert total.isfinite()
        assert written_out(gradient, logits_).isfinite().all()
