"""LoRA on the live model: what it computes, what it trains, and that nothing of it is left."""

from __future__ import annotations

import pytest
import torch
from families import tiny_family
from tiny import make_tiny_model

from cofitune_fast.errors import CofituneError
from cofitune_fast.methods.lora import LoraAdapter
from cofitune_fast.methods.recipe import LoraSettings
from cofitune_fast.models.fingerprint import tensor_digests
from cofitune_fast.regions import resolve_layout

pytest.importorskip("peft")
IDS = torch.tensor([[5, 6, 7, 8]])
SETTINGS = {"all-linear": LoraSettings(4, 8.0), "ffn": LoraSettings(4, 8.0, "ffn"),
            "a region": LoraSettings(2, 2.0, "attn.q+ffn.down@2-3")}


@pytest.fixture(params=[("llama", torch.float32), ("qwen2", torch.bfloat16)], ids=["llama fp32", "qwen2 bf16"])
def model(request):
    return make_tiny_model(request.param[0], dtype=request.param[1])


@torch.no_grad()
def set_adapters(adapter, model):
    generator = torch.Generator().manual_seed(1)
    for _, parameter in adapter.parameters(model):
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_taken_off_the_model_is_the_one_of_before(model, settings):
    digests, modules = tensor_digests(model), list(model.named_modules())
    attributes = [set(vars(module)) for _, module in modules]
    adapter = LoraAdapter(settings)
    with pytest.raises(ZeroDivisionError), adapter.attached(model):
        set_adapters(adapter, model)
        raise ZeroDivisionError
    assert tensor_digests(model) == digests
    after = list(model.named_modules())
    assert [name for name, _ in after] == [name for name, _ in modules]
    assert all(now is then for (_, now), (_, then) in zip(after, modules, strict=True))
    assert [set(vars(module)) for _, module in after] == attributes


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_it_trains_the_adapters_of_its_cells_in_float32_and_nothing_else(model, settings):
    adapter, layout = LoraAdapter(settings), resolve_layout(model)
    expected = {
        f"{cell.parameter.removesuffix('weight')}lora_{part}.default.weight": shape for cell in adapter.cells(layout)
        for rows, columns in [layout.parameter(cell).shape]
        for part, shape in (("A", (settings.rank, columns)), ("B", (rows, settings.rank)))
    }
    before = adapter.count(model)
    with adapter.attached(model):
        pairs = adapter.apply(model)
        assert {name: tuple(parameter.shape) for name, parameter in pairs} == expected
        assert all(parameter.dtype == torch.float32 for _, parameter in pairs)
        assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == set(expected)
        assert adapter.count(model) == before == sum(parameter.numel() for _, parameter in pairs)
        assert [(cell.layer, cell.role) for cell in adapter.cells(resolve_layout(model))] == [
            (cell.layer, cell.role) for cell in adapter.cells(layout)]
    with pytest.raises(CofituneError, match="no LoRA adapters"):
        adapter.parameters(model)


@pytest.mark.parametrize(("family", "targets"), [
    ("llama", "attn.q+ffn.down@2-3"), ("phi3", "mha+ffn.down@1"), ("gpt2", "attn.q+attn.k+attn.v@0;ffn@2"),
    ("qwen3_5_text", "mix.in+mha@0-3"), ("deepseek_v3", "attn.k+attn.v@2;attn.q_a@0"),
])
@torch.no_grad()
def test_attached_it_computes_the_merged_weights_which_the_endpoint_gives(family, targets):
    model, adapter = tiny_family(family), LoraAdapter(LoraSettings(2, 2.0, targets))
    base = {name: parameter.clone() for name, parameter in adapter.changes.parameters(model)}
    plain = model(IDS).logits
    count = adapter.count(model)
    with adapter.attached(model):
        torch.testing.assert_close(model(IDS).logits, plain, rtol=0, atol=0)  # B is 0 at first
        assert sum(parameter.numel() for _, parameter in adapter.parameters(model)) == adapter.count(model) == count
        set_adapters(adapter, model)
        factors = {name: parameter.double() for name, parameter in adapter.parameters(model)}
        adapted, endpoint = model(IDS).logits, adapter.endpoint(model)
    for name, weight in adapter.changes.parameters(model):
        if name.endswith("bias"):
            assert torch.equal(endpoint(name, base[name]), base[name])
            continue
        first, second = (factors[f"{name.removesuffix('weight')}lora_{part}.default.weight"] for part in "AB")
        merged = endpoint(name, base[name])
        change = second @ first
        if family == "gpt2":  # its projections are Conv1D, with weights [in, out]
            change = change.T
        torch.testing.assert_close(merged, (base[name].double() + change).float(), rtol=1e-6, atol=1e-6)
        weight.copy_(merged)
    torch.testing.assert_close(model(IDS).logits, adapted, rtol=1e-4, atol=1e-4)
    assert (adapted - plain).abs().max() > 0.01


def test_the_seed_draws_the_first_matrices_and_leaves_the_global_one_alone(model):
    def first(seed):
        adapter = LoraAdapter(SETTINGS["ffn"], seed)
        with adapter.attached(model):
            return [parameter.clone() for name, parameter in adapter.parameters(model) if "lora_A" in name]

    torch.manual_seed(5)
    one, again, other = first(1), first(1), first(2)
    left = torch.rand(3)
    torch.manual_seed(5)
    torch.testing.assert_close(left, torch.rand(3), rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("family", "targets", "message"), [
    ("phi3", "attn.q@0", r"a part of a projection, such as model.layers.0.self_attn.qkv_proj.weight\[attn.q\]; name"),
    ("qwen3_moe", "ffn@1", "on model.layers.1.mlp.experts.gate_up_proj, which is the weight of a Qwen3MoeExperts"),
    ("gpt2", "ffn.gate@0", "ffn.gate, which this gpt2 model lacks"),
])
def test_where_it_cannot_be_put_is_said_in_a_sentence(family, targets, message):
    model = tiny_family(family)
    with pytest.raises(CofituneError, match=message), LoraAdapter(LoraSettings(2, 2.0, targets)).attached(model):
        pass
