"""The description of a head against the model's own logits, for families that scale, cap or shift them."""

import pytest
import torch
from head_cases import FAMILIES, change_logits, make_model
from tiny import make_tiny_model
from torch._subclasses.fake_tensor import FakeTensorMode

from cofitune_fast.anchor.distributions import top_distributions
from cofitune_fast.data import Encoded
from cofitune_fast.models import Head
from cofitune_fast.models.head import final_norm, states_at

IDS = torch.randint(4, 260, (2, 7), generator=torch.Generator().manual_seed(1))
CALL = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def check_form(head, family):
    scale, softcap, has_bias = FAMILIES[family][2]
    assert head.scale == pytest.approx(scale, rel=1e-11) and (head.scale == 1) == (scale == 1)
    assert head.softcap == softcap and (head.bias is not None) == has_bias and head.vocabulary == 260


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_head_gives_the_models_own_logits(family, dtype):
    model = make_model(family, dtype)
    head, places = Head.of(model), torch.tensor([3, 0, 13, 3])
    check_form(head, family)
    own = model(**CALL, use_cache=False).logits.flatten(0, 1)[places]
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2**-6, "atol": 2**-6}
    torch.testing.assert_close(head.logits(states_at(model, CALL, places)), own, **close)
    assert own.std() > 0.05


@pytest.mark.parametrize("family", ["llama", "granite", "gemma2", "phi"])
def test_fake_tensors_give_the_same_description(family):
    model = make_model(family)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        tensors[name] = mode.from_tensor(tensor)
        check_form(Head.of(model), family)
        assert torch.ones(1).add(1).shape == (1,)  # the mode is on again


@pytest.mark.parametrize("break_it", [
    lambda model: model.lm_head.register_forward_hook(lambda _, inputs, output: output / 8),
    lambda model: change_logits(model, lambda logits: logits.log_softmax(-1)),
    lambda model: change_logits(model, lambda logits: logits.index_fill(-1, torch.tensor([9]), -1e9)),
    lambda model: model.set_output_embeddings(torch.nn.Sequential(model.lm_head)),
], ids=["another linear part", "normalised", "one token masked", "not one matrix"])
def test_logits_of_another_kind_have_no_description(break_it):
    model = make_tiny_model()
    break_it(model)
    hooks = len(model.get_output_embeddings()._forward_hooks)
    assert Head.of(model) is None
    assert len(model.get_output_embeddings()._forward_hooks) == hooks


def test_a_damaged_model_still_has_its_head():
    model = make_tiny_model()
    torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    assert Head.of(model).scale == 1


def test_a_padded_vocabulary_is_cut():
    model = change_logits(make_tiny_model(), lambda logits: logits[..., :200])
    head = Head.of(model)
    assert head.vocabulary == 200 and head.scale == 1
    torch.testing.assert_close(head.weight, model.lm_head.weight[:200], rtol=0, atol=0)


def test_the_final_norm_is_what_feeds_the_head():
    assert final_norm(model := make_model("llama")) is model.model.norm
    assert final_norm(model := make_model("phi")) is model.model.final_layernorm
    assert final_norm(make_model("minicpm3")) is None  # divides after the norm


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_anchor_distributions_are_those_of_the_models_logits(family):
    model = make_model(family)
    rows = [Encoded(IDS[0].tolist(), 3), Encoded(IDS[1, :5].tolist(), 2)]
    for index, found in top_distributions(model, rows, 0, 4):
        own = model(torch.tensor([rows[index].input_ids])).logits[0].double().log_softmax(-1)
        own = own[rows[index].response_start - 1 : -1]
        torch.testing.assert_close(found.log_p.double(), own.topk(4).values, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(own.gather(1, found.ids.long()).float(), found.log_p, rtol=1e-5, atol=1e-5)
