"""A region on a model: its cells, its parameters, freezing, counting, and the proof that the rest stayed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from families import tiny_family
from tiny import make_tiny_model
from torch import nn

import cofitune_fast as cf
from cofitune_fast.errors import CofituneError
from cofitune_fast.regions import FrozenProof, Region, resolve_layout

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"]


def test_cells_are_sorted_by_layer_and_role(tiny_model):
    cells = Region.parse("ffn.down@2;attn.o+attn.q@1-2;ffn.up@0%-50%").cells(resolve_layout(tiny_model))
    assert [(cell.layer, cell.role) for cell in cells] == [
        (0, "ffn.up"), (1, "attn.q"), (1, "attn.o"), (1, "ffn.up"), (2, "attn.q"), (2, "attn.o"), (2, "ffn.down"),
    ]  # fmt: skip


def test_cells_and_from_cells_agree(tiny_model):
    layout = resolve_layout(tiny_model)
    cells = Region.parse("mha@25%-75%;ffn.up@3").cells(layout)
    assert str(Region.from_cells(cells)) == "attn.q+attn.k+attn.v+attn.o@1-2;ffn.up@3"
    assert Region.from_cells(cells).cells(layout) == cells


def test_full_has_every_cell(tiny_model):
    assert len(Region.full().cells(resolve_layout(tiny_model))) == 4 * 7


@pytest.mark.parametrize("family", FAMILIES)
def test_apply_trains_the_region_alone(family):
    model = make_tiny_model(family)
    pairs = Region.parse("attn.q+ffn.down@1,3").apply(model)
    weights = [f"model.layers.{i}.{name}.weight" for i in (1, 3) for name in ("self_attn.q_proj", "mlp.down_proj")]
    biases = [f"model.layers.{i}.self_attn.q_proj.bias" for i in (1, 3)] if family == "qwen2" else []
    assert sorted(name for name, _ in pairs) == sorted(weights + biases)
    named = dict(model.named_parameters())
    assert all(named[name] is parameter for name, parameter in pairs)
    assert {name for name, parameter in named.items() if parameter.requires_grad} == set(weights + biases)


def test_apply_undoes_an_earlier_apply(tiny_model):
    Region.full().apply(tiny_model)
    assert all(parameter.requires_grad for parameter in tiny_model.parameters())
    pairs = Region.parse("mha@0").apply(tiny_model)
    assert sum(parameter.requires_grad for parameter in tiny_model.parameters()) == len(pairs) == 4


def test_full_gives_tied_parameters_once(tiny_model):
    pairs = Region.full().parameters(tiny_model)
    assert len(pairs) == len({id(parameter) for _, parameter in pairs}) == len(list(tiny_model.parameters()))
    assert "lm_head.weight" not in dict(pairs)


def test_only_the_region_gets_gradients(tiny_model):
    pairs = dict(Region.parse("ffn.up@2").apply(tiny_model))
    tiny_model(input_ids=torch.arange(8)[None]).logits.sum().backward()
    assert {name for name, parameter in tiny_model.named_parameters() if parameter.grad is not None} == set(pairs)


def test_count_includes_biases():
    assert Region.parse("attn.q@0-1").count(make_tiny_model("llama")) == 2 * 32 * 32
    assert Region.parse("attn.q@0-1").count(make_tiny_model("qwen2")) == 2 * (32 * 32 + 32)


def test_describe(tiny_model):
    total = sum(parameter.numel() for parameter in tiny_model.parameters())
    assert Region.parse("ffn.up+ffn.down@25%-75%").describe(tiny_model) == (
        f"ffn.up+ffn.down, layers 1-2 of 4, 6.1 k of {total / 1000:.1f} k parameters ({6144 / total:.1%})"
    ).replace("%", " %")
    assert Region.parse("ffn.up@1;mha@0,2").describe(tiny_model).startswith("mha, layers 0,2; ffn.up, layer 1 of 4, ")
    assert Region.full().describe(tiny_model).endswith("parameters (100.0 %)")


def test_names_of_a_compiled_model_are_plain(tiny_model):
    region = Region.parse("ffn@1")
    assert [n for n, _ in region.apply(torch.compile(tiny_model))] == [n for n, _ in region.parameters(tiny_model)]


def test_layer_beyond_the_model(tiny_model):
    with pytest.raises(CofituneError, match="'ffn@2-4' names layer 4, but this model has the layers 0-3"):
        Region.parse("ffn@2-4").parameters(tiny_model)


def test_range_without_a_layer(tiny_model):
    with pytest.raises(CofituneError, match="30%-40% of region 'mha@30%-40%' selects no layer in this model of 4"):
        Region.parse("mha@30%-40%").apply(tiny_model)


def test_role_the_model_lacks(tiny_model):
    layout = resolve_layout(tiny_model)
    gateless = replace(layout, cells=tuple(cell for cell in layout.cells if cell.role != "ffn.gate"))
    with pytest.raises(CofituneError, match=r"trains ffn.gate, which this llama model lacks; it has attn.q, "):
        Region.parse("ffn.gate@1").cells(gateless)
    assert [cell.role for cell in Region.parse("ffn@1").cells(gateless)] == ["ffn.up", "ffn.down"]


@pytest.mark.parametrize(("family", "region", "count"), [
    ("llama", "mha@1;attn.q@3", 5), ("llama", "mha@0-1;attn.o@all", 10), ("llama", "all@0;attn.q@1", 8),
    ("gpt2", "ffn@1;ffn.up@2", 3), ("mamba2", "mha@1;mix.out@3", 3),
])
def test_a_group_beside_one_of_its_roles(family, region, count):
    cells = Region.parse(region).cells(resolve_layout(tiny_family(family)))
    assert len(cells) == count
    assert Region.parse(str(Region.parse(region))).cells(resolve_layout(tiny_family(family))) == cells


def test_region_that_selects_nothing():
    layout = resolve_layout(tiny_family("mamba2"))
    with pytest.raises(CofituneError, match=r"Region 'ffn@1-2' selects nothing in this mamba2 .*hold mix.in, mix.out"):
        Region.parse("ffn@1-2").cells(layout)


def test_quantised_weights_are_refused_and_nothing_is_frozen(tiny_model):
    weight = nn.Parameter(torch.zeros(32 * 48 // 2, 1, dtype=torch.uint8), requires_grad=False)  # 4-bit, packed
    tiny_model.model.layers[1].mlp.up_proj.weight = weight
    with pytest.raises(CofituneError, match=r"layers\.1\.mlp\.up_proj\.weight, which is quantised \(torch\.uint8\)"):
        Region.parse("ffn.up@1").apply(tiny_model)
    assert tiny_model.model.layers[0].mlp.up_proj.weight.requires_grad
    assert len(Region.parse("ffn.up@2").apply(tiny_model)) == 1


def train_a_step(model, pairs):
    optimizer = torch.optim.SGD([parameter for _, parameter in pairs], lr=1.0)
    ids = torch.arange(4, 20)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_proof_passes_where_only_the_region_moved(dtype):
    model = make_tiny_model(dtype=dtype)
    pairs = Region.parse("ffn@1").apply(model)
    before = [parameter.detach().clone() for _, parameter in pairs]
    proof = FrozenProof.of(model, [name for name, _ in pairs])
    train_a_step(model, pairs)
    assert all(not torch.equal(old, new) for old, (_, new) in zip(before, pairs, strict=True))
    summary = proof.check(model)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert summary.tensors == len(frozen)
    assert summary.bytes == sum(parameter.numel() * dtype.itemsize for parameter in frozen)


FROZEN = ["model.norm.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"]


@pytest.mark.parametrize("name", FROZEN)
def test_proof_sees_one_bit(name, tiny_model):
    proof = FrozenProof.of(tiny_model, [name for name, _ in Region.parse("ffn@1").apply(tiny_model)])
    tiny_model.get_parameter(name).data.view(torch.int32).view(-1)[-1] ^= 1
    with pytest.raises(CofituneError, match=f"1 of [0-9]+ frozen tensors changed during training: {name};"):
        proof.check(tiny_model)


def test_proof_names_a_few_of_many(tiny_model):
    proof = FrozenProof.of(tiny_model, [])
    for parameter in tiny_model.parameters():
        parameter.data.add_(1)
    with pytest.raises(CofituneError, match=r"38 of 38 .* model\.embed_tokens\.weight(, \S+){4} and 33 more;"):
        proof.check(tiny_model)


def test_proof_sees_a_tensor_that_vanished(tiny_model):
    proof = FrozenProof.of(tiny_model, [])
    del tiny_model.model.norm
    with pytest.raises(CofituneError, match=r"changed during training: model\.norm\.weight"):
        proof.check(tiny_model)


def test_proof_refuses_unknown_names(tiny_model):
    with pytest.raises(CofituneError, match="no tensor named nonsense"):
        FrozenProof.of(tiny_model, ["nonsense"])


@pytest.mark.parametrize("wrap", [
    lambda peft, model, config: peft.get_peft_model(model, config),
    lambda peft, model, config: peft.get_peft_model(model, config).base_model.model,
], ids=["PeftModel", "the model inside"])
def test_adapters_are_refused_until_they_are_merged(wrap):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["up_proj"])
    with pytest.raises(CofituneError, match=r"adapters of PEFT .* merge_and_unload"):
        Region.parse("ffn@2").apply(wrap(peft, make_tiny_model(), config))
    merged = peft.get_peft_model(make_tiny_model(), config).merge_and_unload()
    assert len(Region.parse("ffn@2").apply(merged)) == 3


def test_a_region_is_applied_to_a_model_only():
    with pytest.raises(CofituneError, match="this is str"):
        Region.parse("ffn@2").apply("a/path")


def test_apply_takes_text_or_a_region(tiny_model):
    expected = [(name, id(p)) for name, p in Region.parse("ffn.up@2").apply(tiny_model)]
    for region in ("ffn.up@2", Region.parse("ffn.up@2")):
        cf.apply(tiny_model, "full")
        assert [(name, id(p)) for name, p in cf.apply(tiny_model, region)] == expected
        assert [name for name, p in tiny_model.named_parameters() if p.requires_grad] == [expected[0][0]]
    with pytest.raises(CofituneError, match="A region is applied to a model, and this is str"):
        cf.apply("ffn.up@2")
