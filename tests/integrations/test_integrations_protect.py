"""protect in loops of one's own: its value and gradient are the book's, in whatever form the loop holds the model."""

from __future__ import annotations

import json

import pytest
import torch
from anchor.anchor_cases import assert_same_weights, nll, step_of_ours, task_data
from integrations.trainer_cases import REGION, SETTINGS, disturbed, mean_kl, protected
from tiny import make_tiny_model, make_tiny_tokenizer

import cofitune_fast as cf


def gradients(loss, params):
    loss.backward()
    found = [param.grad.clone() for param in params]
    for param in params:
        param.grad = None
    return found


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def prepared(model):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True).prepare(model)


FORMS = {"bare": lambda model: model, "compiled": compiled, "compiled in place": compiled_in_place,
         "prepared": prepared}


@pytest.mark.parametrize("form", FORMS)
def test_a_call_is_the_weighted_mean_kl_of_the_next_rows(tmp_path, form):
    model, theirs = disturbed(), disturbed()
    protection = protected(model, tmp_path)
    params = [parameter for _, parameter in cf.Region.parse(REGION).apply(model)]
    expected = [parameter for _, parameter in cf.Region.parse(REGION).apply(theirs)]
    held = FORMS[form](model)
    wanted = []
    for call in range(4):
        loss, book = protection(held), SETTINGS.weight * mean_kl(theirs, protection.anchor, call)
        assert loss.dtype == torch.float32 and loss.shape == () and loss.item() == pytest.approx(book.item(), rel=1e-3)
        for ours, other in zip(gradients(loss, params), gradients(book, expected), strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-6)
        wanted.append(book.item() / SETTINGS.weight)
    assert protection.kl == pytest.approx(sum(wanted) / 4, rel=1e-3) and max(wanted) > 1.1 * min(wanted) > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_goes_on_from_its_state(tmp_path):
    whole, first, second = (protected(disturbed(), tmp_path) for _ in range(3))
    values = [whole().item() for _ in range(5)]
    assert [first().item(), first().item()] == values[:2]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second().item() for _ in range(3)] == values[2:] and second.kl == pytest.approx(whole.kl)


def test_under_autocast_the_loss_is_near_and_the_gradient_is_of_the_weights_dtype(tmp_path):
    model = disturbed()
    protection = protected(model, tmp_path)
    params = [parameter for _, parameter in cf.Region.parse(REGION).apply(model)]
    exact = protection()
    expected, protection.calls = gradients(exact, params), 0
    with torch.autocast("cpu", torch.bfloat16):
        loss = protection()
    assert loss.item() == pytest.approx(exact.item(), rel=0.1)
    for ours, other in zip(gradients(loss, params), expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(ours.flatten(), other.flatten(), dim=0) > 0.98


def test_one_step_of_nll_and_protection_is_cofitune_trainers(tmp_path):
    """The texts in a pass of their own give the gradient that they give joined to the batch."""
    anchor = cf.open_anchor(make_tiny_model(), make_tiny_tokenizer(), SETTINGS, folder=tmp_path / "anchor")
    ours, _ = step_of_ours(tmp_path, task_data(), "region", anchor=anchor)
    model = disturbed()
    params = [parameter for _, parameter in cf.Region.parse(REGION).apply(model)]
    loss = torch.cat([nll(model, row) for row in task_data()]).mean() + cf.protect(model, anchor=anchor)()
    loss.backward()
    torch.optim.AdamW(params, lr=1e-2, betas=(0.9, 0.95), eps=1e-2, weight_decay=0.0).step()
    assert_same_weights(ours, model)


def test_layers_below_the_region_have_no_graph_and_other_places_no_logits(tmp_path):
    model = disturbed()
    protection = protected(model, tmp_path)
    cf.Region.parse(REGION).apply(model)
    graphs, tokens = [], []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, args, output: graphs.append(output.requires_grad))
    model.lm_head.register_forward_hook(lambda module, args, output: tokens.append(output.numel()))
    protection()
    assert graphs[-4:] == [False, False, True, True] and tokens[-1] == 0


def test_what_it_does_not_take_is_said(tmp_path):
    model = make_tiny_model()
    with pytest.raises(cf.CofituneError, match="needs the model's tokenizer"):
        cf.protect(model)
    with pytest.raises(cf.CofituneError, match="an anchor and settings"):
        cf.protect(model, settings=SETTINGS, anchor=protected(model, tmp_path).anchor)
    with pytest.raises(cf.CofituneError, match=r"wrapped in DataParallel, .*; give model\.module"):
        protected(model, tmp_path)(torch.nn.DataParallel(model))


def test_the_texts_are_found_again_for_the_same_model_alone(tmp_path):
    first = cf.protect(make_tiny_model(), make_tiny_tokenizer(), SETTINGS, folder=tmp_path)
    again = cf.protect(make_tiny_model(), make_tiny_tokenizer(), SETTINGS, folder=tmp_path)
    assert [row.input_ids for row in again.anchor.rows] == [row.input_ids for row in first.anchor.rows]
    assert len(list(tmp_path.iterdir())) == 1
    cf.protect(disturbed(), make_tiny_tokenizer(), SETTINGS, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
