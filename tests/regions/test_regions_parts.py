"""A part of a tensor that trains by itself: gradients, storage, names, and what it leaves behind."""

from __future__ import annotations

import copy

import pytest
import torch
from families import tiny_family

from cofitune_fast.errors import CofituneError
from cofitune_fast.models.fingerprint import fingerprint
from cofitune_fast.regions import FrozenProof, Region, detach_parts, resolve_layout

IDS = torch.tensor([[5, 9, 7, 33, 60, 8], [4, 4, 90, 12, 6, 30]])


def loss_of(model):
    return model(input_ids=IDS, labels=IDS, use_cache=False).loss


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize(("family", "region"), [
    ("phi3", "attn.k+ffn.up@1-2"), ("gpt_neox", "attn.q+attn.v@1"), ("gpt2", "attn.k@0,3"), ("gpt_oss", "ffn.gate@2"),
])
def test_gradients_are_those_of_the_whole_tensor(family, region, checkpointing):
    model = tiny_family(family)
    layout = resolve_layout(model)
    cells = Region.parse(region).cells(layout)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    loss_of(model).backward()
    expected = {cell.name: cell.part.of(layout.whole(cell).grad).clone() for cell in cells}
    model.zero_grad()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    pairs = dict(Region.parse(region).apply(model))
    for _ in range(2):  # gradients add up
        loss_of(model).backward()
    for name, grad in expected.items():
        torch.testing.assert_close(pairs[name].grad, 2 * grad)
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all("cofitune_parts" in name for name in with_gradient) and len(with_gradient) == len(pairs)
    model.zero_grad()
    assert all(parameter.grad is None for parameter in pairs.values())


def test_a_step_on_the_part_is_a_step_on_the_tensor():
    model = tiny_family("phi3")
    whole = model.model.layers[1].self_attn.qkv_proj.weight
    before = whole.detach().clone()
    (name, part), = Region.parse("attn.k@1").apply(model)
    assert name == "model.layers.1.self_attn.qkv_proj.weight[attn.k]"
    with torch.no_grad():
        part.add_(1.0)
    expected = before.clone()
    expected[64:96] += 1.0
    assert torch.equal(whole, expected)


def test_names_and_state_stay_those_of_the_model():
    model = tiny_family("phi3")
    names, states, digest = [name for name, _ in model.named_parameters()], set(model.state_dict()), fingerprint(model)
    Region.parse("attn.k@1").apply(model)
    assert set(model.state_dict()) == states and fingerprint(model) == digest
    assert type(model.model.layers[1].self_attn.qkv_proj).__name__ == "Linear"
    Region.parse("ffn.down@1").apply(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert type(model.model.layers[1].self_attn.qkv_proj) is torch.nn.Linear


def test_a_region_with_all_parts_of_a_tensor_trains_it_whole():
    model = tiny_family("phi3")
    names = [name for name, _ in Region.parse("mha@1;ffn.gate@2").apply(model)]
    assert names == [
        "model.layers.1.self_attn.qkv_proj.weight", "model.layers.1.self_attn.o_proj.weight",
        "model.layers.2.mlp.gate_up_proj.weight[ffn.gate]",
    ]
    assert model.model.layers[1].self_attn.qkv_proj.weight.requires_grad
    assert not model.model.layers[2].mlp.gate_up_proj._parameters["weight"].requires_grad


def test_a_moved_or_copied_model_goes_on_with_its_own_tensors():
    model = tiny_family("phi3")
    (_, part), = Region.parse("attn.k@1").apply(model)
    model.to(torch.bfloat16)
    loss_of(model).backward()
    whole = model.model.layers[1].self_attn.qkv_proj._parameters["weight"]
    assert part.dtype == torch.bfloat16 and part.data_ptr() == whole[64:].data_ptr()
    assert part.grad.shape == (32, 64)
    twin = copy.deepcopy(model)
    loss_of(twin).backward()
    detach_parts(twin)
    assert fingerprint(twin) == fingerprint(model)


def test_the_proof_covers_the_rest_of_the_tensor():
    model = tiny_family("phi3")
    (name, part), = Region.parse("attn.k@1").apply(model)
    proof = FrozenProof.of(model, [name])
    with torch.no_grad():
        part.add_(1.0)
    total = sum(parameter.nbytes for parameter in tiny_family("phi3").parameters())
    assert proof.check(model).bytes == total - part.nbytes
    with torch.no_grad():
        model.model.layers[1].self_attn.qkv_proj._parameters["weight"][0, 0] += 1.0
    with pytest.raises(CofituneError, match=r"1 of 27 frozen tensors changed.*qkv_proj.weight"):
        proof.check(model)
