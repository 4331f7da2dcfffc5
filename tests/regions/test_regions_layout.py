"""Roles resolved by structure, or given by hand, and one clear sentence where neither helps."""

from __future__ import annotations

import pytest
import torch
import transformers
from families import FAMILIES as OTHER_FAMILIES
from families import tiny_family
from tiny import make_tiny_model
from torch import nn

from cofitune_fast.errors import CofituneError
from cofitune_fast.regions import GROUPS, Block, Region, resolve_layout

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"]
HIDDEN, INTERMEDIATE, QUERIES, KEYS = 32, 48, 32, 16
SHAPES = {
    "attn.q": (QUERIES, HIDDEN), "attn.k": (KEYS, HIDDEN), "attn.v": (KEYS, HIDDEN), "attn.o": (HIDDEN, QUERIES),
    "ffn.gate": (INTERMEDIATE, HIDDEN), "ffn.up": (INTERMEDIATE, HIDDEN), "ffn.down": (HIDDEN, INTERMEDIATE),
}  # fmt: skip


CLASSIC = tuple(SHAPES)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    model = make_tiny_model(family)
    layout = resolve_layout(model)
    assert layout.model_type == model.config.model_type
    assert (layout.num_layers, layout.hidden_size, layout.in_order) == (4, HIDDEN, True)
    assert layout.roles == CLASSIC
    named = dict(model.named_parameters())
    assert [(cell.layer, cell.role) for cell in layout.cells] == [(i, role) for i in range(4) for role in CLASSIC]
    for cell in layout.cells:
        parent, child = ("self_attn" if cell.role in GROUPS["mha"] else "mlp"), cell.role.split(".")[1] + "_proj"
        assert cell.parameter == cell.name == f"model.layers.{cell.layer}.{parent}.{child}.weight"
        assert (cell.part, cell.out, cell.block) == (None, 0, f"model.layers.{cell.layer}.{parent}")
        assert layout.parameter(cell) is layout.module(cell).weight is named[cell.parameter]
        assert tuple(named[cell.parameter].shape) == SHAPES[cell.role]
    assert layout.blocks["model.layers.1.self_attn"] == Block("model.layers.1.self_attn", 1, "attention", 4, 2)
    assert layout.blocks["model.layers.1.mlp"] == Block("model.layers.1.mlp", 1, "ffn", neurons=INTERMEDIATE)
    assert layout.decoder_layer(2) is model.model.layers[2]
    assert layout.attention(2) is model.model.layers[2].self_attn
    assert layout.ffn(3) is model.model.layers[3].mlp


def roles_of(model, layer: int) -> dict[str, str]:
    """Role -> the places of its weights in the layer, as `path[start:stop/period]`."""
    layout, found = resolve_layout(model), {}
    for cell in layout.cells:
        if cell.layer == layer:
            place = cell.parameter.removesuffix(".weight").split(f".{layer}.", 1)[1]
            part = "" if cell.part is None else f"[{cell.part.start}:{cell.part.stop}/{cell.part.period}]"
            found[cell.role] = f"{found[cell.role]} {place}{part}" if cell.role in found else place + part
    return found


# Expected by hand from the configs in families.py: 4 heads of 16, 2 key-value heads, hidden 64, FFN 96.
STRUCTURES = {
    "phi3": (0, {
        "attn.q": "self_attn.qkv_proj[0:64/128]", "attn.k": "self_attn.qkv_proj[64:96/128]",
        "attn.v": "self_attn.qkv_proj[96:128/128]", "attn.o": "self_attn.o_proj",
        "ffn.gate": "mlp.gate_up_proj[0:96/192]", "ffn.up": "mlp.gate_up_proj[96:192/192]", "ffn.down": "mlp.down_proj",
    }),
    "gpt_neox": (1, {
        "attn.q": "attention.query_key_value[0:16/48]", "attn.k": "attention.query_key_value[16:32/48]",
        "attn.v": "attention.query_key_value[32:48/48]", "attn.o": "attention.dense",
        "ffn.up": "mlp.dense_h_to_4h", "ffn.down": "mlp.dense_4h_to_h",
    }),
    "opt": (0, {
        "attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj",
        "attn.o": "self_attn.out_proj", "ffn.up": "fc1", "ffn.down": "fc2",
    }),
    "gpt_oss": (0, {
        "attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj",
        "attn.o": "self_attn.o_proj", "ffn.gate": "mlp.experts.gate_up_proj[0:1/2]",
        "ffn.up": "mlp.experts.gate_up_proj[1:2/2]", "ffn.down": "mlp.experts.down_proj", "ffn.router": "mlp.router",
    }),
    "mamba2": (0, {"mix.in": "mixer.in_proj", "mix.out": "mixer.out_proj"}),
}


@pytest.mark.parametrize("family", [name for name in STRUCTURES if name in OTHER_FAMILIES])
def test_roles_of_other_structures(family):
    layer, expected = STRUCTURES[family]
    assert roles_of(tiny_family(family), layer) == expected


def test_a_layer_may_lack_roles():
    model = tiny_family("qwen3_5_text")
    kinds = {tuple(roles_of(model, layer)) for layer in range(4)}
    ffn = ("ffn.gate", "ffn.up", "ffn.down")
    assert kinds == {("mix.in", "mix.out", *ffn), ("attn.q", "attn.k", "attn.v", "attn.gate", "attn.o", *ffn)}


@pytest.mark.parametrize("family", sorted({"qwen2_moe", "zaya", "gemma4_text:experts"} & set(OTHER_FAMILIES)))
def test_what_chooses_experts_is_no_part_of_the_ffn(family):
    layout = resolve_layout(tiny_family(family))
    routers = {cell.parameter for cell in layout.cells if cell.role == "ffn.router"}
    assert routers and all("gate" in name or "router" in name for name in routers)
    trained = {cell.parameter for cell in Region.parse("all@all").cells(layout)}
    assert not trained & routers and not any(".router" in name or ".gate." in name for name in trained)


def test_biases_belong_to_their_cells():
    layout = resolve_layout(make_tiny_model("qwen2"))
    biased = [cell for cell in layout.cells if cell.layer == 1 and layout.bias(cell) is not None]
    assert [cell.role for cell in biased] == ["attn.q", "attn.k", "attn.v"]
    name, bias = layout.bias(biased[1])
    assert name == "model.layers.1.self_attn.k_proj.bias"
    assert bias is layout.module(biased[1]).bias


def test_a_fused_bias_is_split_as_its_weight():
    model = tiny_family("gpt2")
    layout = resolve_layout(model)
    (cell,) = layout.at(2, "attn.k")
    name, bias = layout.bias(cell)
    assert name == "transformer.h.2.attn.c_attn.bias[attn.k]"
    whole = model.transformer.h[2].attn.c_attn
    assert torch.equal(bias, whole.bias[64:128]) and torch.equal(layout.parameter(cell), whole.weight[:, 64:128])
    assert bias.data_ptr() == whole.bias[64:].data_ptr()


def test_head_size_other_than_hidden_over_heads():
    layout = resolve_layout(make_tiny_model("qwen3", head_dim=16))
    assert layout.blocks["model.layers.0.self_attn"].heads == 4
    assert layout.parameter(layout.at(0, "attn.q")[0]).shape == (64, HIDDEN)


def test_heads_of_different_sizes_in_one_model():
    layout = resolve_layout(tiny_family("gemma4_text"))
    widths = {layout.parameter(layout.at(layer, "attn.o")[0]).shape[1] for layer in range(layout.num_layers)}
    assert len(widths) > 1
    assert {block.heads for block in layout.blocks.values() if block.kind == "attention"} == {4}


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "data parallel"])
def test_wrapped_model_keeps_plain_names(tiny_model, wrap):
    layout = resolve_layout(wrap(tiny_model))
    assert layout.cells == resolve_layout(tiny_model).cells


def test_text_decoder_inside_a_vision_language_model():
    text = make_tiny_model("gemma3").config.to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    layout = resolve_layout(transformers.Gemma3ForConditionalGeneration(config))
    assert layout.num_layers == 4
    assert layout.at(0, "attn.q")[0].parameter == "model.language_model.layers.0.self_attn.q_proj.weight"


def test_an_encoder_decoder_is_refused():
    config = transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    with pytest.raises(CofituneError, match="'t5' is an encoder-decoder"):
        resolve_layout(transformers.T5ForConditionalGeneration(config))


def test_a_plain_module_is_no_model():
    with pytest.raises(CofituneError, match="Linear is not a transformers model"):
        resolve_layout(nn.Linear(2, 2))


def test_a_matrix_of_unknown_role_has_no_cell(tiny_model):
    cells = resolve_layout(tiny_model).cells
    tiny_model.model.layers[2].mlp.extra = nn.Linear(4, 4)
    assert resolve_layout(tiny_model).cells == cells


def test_an_adapter_inside_a_projection_is_no_weight_of_its_own(tiny_model):
    tiny_model.model.layers[2].mlp.up_proj.lora_A = nn.Linear(32, 2)
    (cell,) = resolve_layout(tiny_model).at(2, "ffn.up")
    assert cell.parameter == "model.layers.2.mlp.up_proj.weight"


def test_nothing_with_a_known_name(tiny_model):
    for layer in tiny_model.model.layers:
        layer.first, layer.second = nn.Linear(32, 48), nn.Linear(48, 32)
        del layer.self_attn, layer.mlp
    with pytest.raises(CofituneError, match=r"layer 0 holds first, second, none .*roles: \{ffn\.up: PLACE, "):
        resolve_layout(tiny_model)
    tiny_model.cofitune_roles = {"ffn.up": "first", "ffn.down": "second"}
    assert resolve_layout(tiny_model).roles == ("ffn.up", "ffn.down")


def test_a_fused_projection_of_an_unknown_family(tiny_model):
    for layer in tiny_model.model.layers:
        attention = layer.self_attn
        attention.qkv_proj = nn.Linear(32, 64, bias=False)
        del attention.q_proj, attention.k_proj, attention.v_proj
    with pytest.raises(CofituneError, match=r"'llama': self_attn\.qkv_proj holds queries, keys and values together"):
        resolve_layout(tiny_model)
    tiny_model.cofitune_roles = {"attn.q": "self_attn.qkv_proj[0:8/16]", "attn.v": "self_attn.qkv_proj[12:16/16]"}
    found = roles_of(tiny_model, 1)
    assert found["attn.q"] == "self_attn.qkv_proj[0:8/16]" and found["attn.v"] == "self_attn.qkv_proj[12:16/16]"
    assert "attn.k" not in found and found["ffn.down"] == "mlp.down_proj"


@pytest.mark.parametrize(("roles", "words"), [
    ({"ffn.middle": "mlp.up_proj"}, "names the role 'ffn.middle'; known are attn.q_a, attn.q"),
    ({"ffn.up": "mlp.fc1"}, r"ffn\.up names mlp\.fc1, which no layer of this llama model has; layer 0 has self_attn"),
    ({"ffn.up": "mlp.up_proj[0:60]"}, r"is 'mlp\.up_proj\[0:60\]', but mlp\.up_proj has 48 rows"),
    ({"ffn.up": "mlp.up_proj[0:3/5]"}, "has 48 rows"),
    ({"ffn.up": "mlp.up_proj[:3]"}, "write a weight's place in its layer"),
    ({"attn.q": "self_attn.q_proj[0:16]", "attn.k": "self_attn.q_proj[8:24]"}, r"rows of self_attn\.q_proj to attn"),
    ({"attn.q": ["self_attn.q_proj[0:8]", "self_attn.q_proj[16:24]"]}, "a role one range of rows in a weight"),
    ({"attn.q": "self_attn.q_proj[0:16]", "attn.gate": "self_attn.q_proj"}, "but they have a role already"),
    ({"ffn.up": "self_attn.q_proj"}, r"names self_attn\.q_proj with 32 outputs, but ffn\.down of the layer takes 48"),
])
def test_a_role_map_that_does_not_fit(tiny_model, roles, words):
    tiny_model.cofitune_roles = roles
    with pytest.raises(CofituneError, match=words):
        resolve_layout(tiny_model)


def test_shared_weights_cannot_be_trained_alone(tiny_model):
    tiny_model.model.layers[1].mlp.up_proj.weight = tiny_model.model.layers[0].mlp.up_proj.weight
    layout = resolve_layout(tiny_model)
    with pytest.raises(CofituneError, match=r"model\.layers\.0\.mlp\.up_proj\.weight, which serves the layers 0, 1"):
        Region.parse("ffn@1-2").cells(layout)
    assert len(Region.parse("ffn.down@1-2").cells(layout)) == 2
    assert len(Region.full().parameters(tiny_model)) == len(list(tiny_model.parameters()))


def test_a_config_of_another_depth(tiny_model):
    tiny_model.config.num_hidden_layers = 7
    assert resolve_layout(tiny_model).num_layers == 4
