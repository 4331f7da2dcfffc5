"""The chunked loss against plain cross entropy over all logits, in float64 and in bfloat16."""

import math

import pytest
import torch
from head_cases import FAMILIES, make_model, train_last_layer
from tiny import make_tiny_model

from cofitune_fast.losses import chunked as module
from cofitune_fast.losses.chunked import Term, chunk_rows, chunked_head, response_loss, response_losses
from cofitune_fast.losses.objectives import CrossEntropy, ReverseTopKl, TopKl
from cofitune_fast.models import Head
from cofitune_fast.regions import Region

REGION = Region.parse("ffn.down@1-3")


def case(model, count=11):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 260, (2, 15), generator=generator)
    predictors = torch.randint(0, 30, (count,), generator=generator)  # some places predict twice
    targets = torch.randint(0, 260, (count,), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, predictors, targets


def gradients(model, loss):
    return torch.autograd.grad(loss, [parameter for _, parameter in REGION.parameters(model)])


@pytest.mark.parametrize("rows", [1, 4, 100])
@pytest.mark.parametrize("scale", [1.0, 1 / 7, torch.tensor(0.25)], ids=["one", "number", "tensor"])
def test_chunks_give_the_loss_and_gradients_of_all_logits(monkeypatch, rows, scale):
    model = make_tiny_model().double().train()
    REGION.apply(model)
    call, predictors, targets = case(model)
    logits = model(**call, use_cache=False).logits.flatten(0, 1)[predictors]
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum") * scale
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 260 * rows)
    assert chunk_rows(260) == rows
    loss = response_loss(model, call, predictors, targets, scale, head=chunked_head(model))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    for ours, theirs in zip(gradients(model, 3 * loss), gradients(model, 3 * expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_in_bfloat16_it_rounds_where_plain_autograd_rounds():
    model = make_tiny_model(dtype=torch.bfloat16).train()
    REGION.apply(model)
    call, predictors, targets = case(model)
    found = [response_loss(model, call, predictors, targets, 1 / 11, head=head) for head in (chunked_head(model), None)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=0)
    for ours, theirs in zip(*(gradients(model, loss) for loss in found), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=1e-6)


def test_no_gradient_is_made_where_none_is_wanted():
    model = make_tiny_model()
    call, predictors, targets = case(model)
    with torch.no_grad():
        loss = response_loss(model, call, predictors, targets, 1.0, head=Head.of(model))
    assert not loss.requires_grad
    torch.testing.assert_close(loss, response_loss(model, call, predictors, targets, 1.0, head=None),
                               rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [TopKl, ReverseTopKl])
@pytest.mark.parametrize("masks", [True, False], ids=["masked", "whole"])
def test_divergences_in_chunks_are_those_of_all_logits(monkeypatch, kind, masks):
    model = make_tiny_model().double().train()
    REGION.apply(model)
    call, predictors, targets = case(model)
    base = torch.randn(len(targets), 260, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    if masks:
        base.scatter_(1, targets[:, None], -math.inf)
    top = base.log_softmax(-1).topk(20)
    objective = kind(top.indices.int(), top.values, targets if masks else None)
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 260 * 3)
    found = [response_losses(model, call, [Term(predictors, objective, 1 / 7)], head=head)[0]
             for head in (chunked_head(model), None)]
    torch.testing.assert_close(found[0].double(), found[1].double(), rtol=1e-5, atol=0)
    for ours, theirs in zip(*(gradients(model, loss) for loss in found), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        assert ours.abs().max() > 1e-4


@pytest.mark.parametrize("chunked", [True, False])
def test_of_no_tokens_the_loss_is_0_and_so_is_the_gradient(chunked):
    model = make_tiny_model().train()
    REGION.apply(model)
    call, predictors, targets = case(model)
    loss = response_loss(model, call, predictors[:0], targets[:0], 1.0, head=chunked_head(model) if chunked else None)
    assert loss == 0 and all((gradient == 0).all() for gradient in gradients(model, loss))


@pytest.mark.parametrize("family, trained, expected", [
    ("llama", REGION, True), ("qwen3", REGION, True), ("gemma", REGION, True),
    ("gemma2", REGION, True),
    ("llama", Region.full(), False),
])
def test_which_models_take_chunks(family, trained, expected):
    model = make_tiny_model(family)
    trained.apply(model)
    assert (chunked_head(model) is not None) is expected


@pytest.mark.parametrize("kind", ["ce", "kl"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_gives_the_loss_and_gradients_of_the_models_logits(monkeypatch, family, kind):
    model = make_model(family, torch.float64).train()
    trained = train_last_layer(model)
    call, predictors, targets = case(model)
    objective = CrossEntropy(targets)
    if kind == "kl":
        base = torch.randn(11, 260, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        top = base.scatter_(1, targets[:, None], -math.inf).log_softmax(-1).topk(20)
        objective = TopKl(top.indices.int(), top.values, targets)
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 260 * 4)
    head = chunked_head(model)
    found = [response_losses(model, call, [Term(predictors, objective, 1 / 7)], head=each)[0] for each in (head, None)]
    torch.testing.assert_close(found[0].double(), found[1].double(), rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True) for loss in found]
    assert max(gradient.abs().max() for gradient in gradients[1]) > 1e-4
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["granite", "gemma2"])
def test_a_scale_and_a_cap_in_bfloat16_are_as_exact_as_the_models(family):
    model = make_model(family, torch.bfloat16).train()
    trained = train_last_layer(model)
    call, predictors, targets = case(model)
    found = [response_loss(model, call, predictors, targets, 1 / 11, head=head) for head in (chunked_head(model), None)]
    torch.testing.assert_close(found[0], found[1], rtol=2**-9, atol=0)
    ours, theirs = (torch.cat([part.flatten().float() for part in torch.autograd.grad(loss, trained)])
                    for loss in found)
    assert (ours - theirs).norm() < 2**-6 * theirs.norm()


def test_only_response_positions_reach_the_head():
    model = make_tiny_model()
    REGION.apply(model)
    call, predictors, targets = case(model)
    seen, head = [], Head.of(model)
    model.lm_head.register_forward_hook(lambda head, inputs, output: seen.append(tuple(output.shape)))
    response_loss(model, call, predictors, targets, 1.0, head=None)
    response_loss(model, call, predictors, targets, 1.0, head=head)
    assert seen == [(1, 11, 260), (1, 0, 260)]
