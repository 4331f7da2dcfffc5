"""Objectives against plain formulas in float64, and their gradients against autograd."""

import itertools
import math

import pytest
import torch

from cofitune_fast.losses.objectives import CrossEntropy, ReverseTopKl, TopKl

TOKENS, VOCABULARY = 7, 40


def logits(seed, spread=2.0):
    return spread * torch.randn(TOKENS, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def targets():
    return torch.randint(0, VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(5))


def top_kl(k, seed=1, kind=TopKl):
    top = torch.log_softmax(logits(seed), -1).topk(k)
    return kind(top.indices.int(), top.values)


def masked(k, kind=TopKl):
    """The divergence without the targets; some of them are among the most probable tokens, and some are not."""
    others = logits(1).scatter(1, targets()[:, None], -math.inf)
    top = torch.log_softmax(others, -1).topk(k)
    return kind(top.indices.int(), top.values, targets())


def written_out(gradient, z):
    """The gradient by all logits."""
    return (gradient.factors[:, None] * z.softmax(-1)).scatter(1, gradient.ids, gradient.values)


@pytest.mark.parametrize("objective", [
    CrossEntropy(targets()), CrossEntropy(targets(), "dft"), CrossEntropy(targets(), "eaft"), top_kl(1), top_kl(5),
    top_kl(VOCABULARY), *[top_kl(k, kind=ReverseTopKl) for k in (1, 5, VOCABULARY)], masked(1), masked(5),
    masked(VOCABULARY - 1), masked(5, ReverseTopKl),
], ids=["ce", "dft", "eaft", "top1", "top5", "all", "reverse1", "reverse5", "reverse-all", "masked1", "masked5",
        "masked-all", "masked-reverse5"])
@pytest.mark.parametrize("rows", [slice(None), slice(2, 5)], ids=["all", "chunk"])
def test_the_gradient_is_that_of_the_losses(objective, rows):
    assert len(objective) == TOKENS
    z = logits(2)[rows].requires_grad_()
    expected = objective.token_losses(torch.log_softmax(objective.visible(z, rows), -1), rows).sum()
    (by_autograd,) = torch.autograd.grad(expected, z)
    z = objective.visible(z.detach(), rows)
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
@pytest.mark.parametrize("kind", [TopKl, ReverseTopKl])
def test_of_some_tokens_it_is_the_divergence_with_the_others_as_one(k, kind):
    p, q = logits(1).softmax(-1), logits(2).softmax(-1)
    found = top_kl(k, kind=kind).token_losses(q.log(), slice(None))
    for row in range(TOKENS):
        order = p[row].argsort(descending=True)
        merged = [torch.cat([x[row][order[:k]], x[row][order[k:]].sum()[None]]) for x in (p, q)]
        one, other = merged if kind is TopKl else reversed(merged)
        torch.testing.assert_close(found[row], (one * (one / other).log()).sum(), rtol=1e-10, atol=0)
        one, other = (p[row], q[row]) if kind is TopKl else (q[row], p[row])
        assert found[row] <= (one * (one / other).log()).sum()


@pytest.mark.parametrize("k", [5, VOCABULARY - 1])
def test_without_the_target_it_is_the_divergence_of_the_other_tokens_renormalised(k):
    p, q = logits(1).softmax(-1), logits(2).softmax(-1)
    objective = masked(k)
    log_q = torch.log_softmax(objective.visible(logits(2), slice(None)), -1)
    found = objective.token_losses(log_q, slice(None))
    for row, target in enumerate(targets()):
        others = [torch.cat([x[row][:target], x[row][target + 1:]]) for x in (p, q)]
        one, other = (x / x.sum() for x in others)
        order = one.argsort(descending=True)
        if k < VOCABULARY - 1:
            one, other = (torch.cat([x[order[:k]], x[order[k:]].sum()[None]]) for x in (one, other))
        torch.testing.assert_close(found[row], (one * (one / other).log()).sum(), rtol=1e-6, atol=2e-5)
    assert (objective.ids != targets()[:, None]).all()


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
    z = logits(4)[:1].float()
    for kind, logits_ in itertools.product((TopKl, ReverseTopKl), (sure, z)):
        objective = kind(torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, 1))
        total, gradient = objective.with_gradient(logits_, logits_.logsumexp(-1), slice(None))
        assert total.isfinite()
        assert written_out(gradient, logits_).isfinite().all()
