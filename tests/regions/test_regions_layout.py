"""Roles resolved by structure, for every supported family, and one clear sentence for every other layout."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny import make_tiny_model
from torch import nn

from cofitune_fast.errors import CofituneError
from cofitune_fast.regions import GROUPS, ROLES, Cell, resolve_layout

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"]
HIDDEN, INTERMEDIATE, QUERIES, KEYS = 32, 48, 32, 16
SHAPES = {
    "attn.q": (QUERIES, HIDDEN), "attn.k": (KEYS, HIDDEN), "attn.v": (KEYS, HIDDEN), "attn.o": (HIDDEN, QUERIES),
    "ffn.gate": (INTERMEDIATE, HIDDEN), "ffn.up": (INTERMEDIATE, HIDDEN), "ffn.down": (HIDDEN, INTERMEDIATE),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    model = make_tiny_model(family)
    layout = resolve_layout(model)
    assert layout.model_type == model.config.model_type
    assert (layout.num_layers, layout.hidden_size, layout.intermediate_size) == (4, HIDDEN, INTERMEDIATE)
    assert (layout.num_heads, layout.num_key_value_heads, layout.head_dim) == (4, 2, 8)
    assert layout.roles == ROLES
    assert set(layout.cells) == {(layer, role) for layer in range(4) for role in ROLES}
    named = dict(model.named_parameters())
    for (layer, role), cell in layout.cells.items():
        parent, child = ("self_attn" if role in GROUPS["mha"] else "mlp"), role.split(".")[1] + "_proj"
        assert cell == Cell(layer, role, f"model.layers.{layer}.{parent}.{child}.weight")
        assert layout.parameter(cell) is named[cell.parameter]
        assert layout.module(layer, role).weight is named[cell.parameter]
        assert tuple(named[cell.parameter].shape) == SHAPES[role]
    assert layout.decoder_layer(2) is model.model.layers[2]
    assert layout.attention(2) is model.model.layers[2].self_attn
    assert layout.ffn(3) is model.model.layers[3].mlp


def test_biases_belong_to_their_cells():
    layout = resolve_layout(make_tiny_model("qwen2"))
    assert [role for role in ROLES if layout.bias(layout.cells[1, role])] == ["attn.q", "attn.k", "attn.v"]
    name, bias = layout.bias(layout.cells[1, "attn.k"])
    assert name == "model.layers.1.self_attn.k_proj.bias"
    assert bias is layout.module(1, "attn.k").bias


def test_head_size_other_than_hidden_over_heads():
    layout = resolve_layout(make_tiny_model("qwen3", head_dim=16))
    assert layout.head_dim == 16
    assert layout.parameter(layout.cells[0, "attn.q"]).shape == (64, HIDDEN)


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
    assert layout.cells[0, "attn.q"].parameter == "model.language_model.layers.0.self_attn.q_proj.weight"


def tiny(name: str, **sizes):
    common = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
              "eos_token_id": 2}  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**{**common, **sizes})
    return getattr(transformers, f"{name}ForCausalLM")(config)


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4))


def t5():
    config = transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return transformers.T5ForConditionalGeneration(config)


UNSUPPORTED = {
    "fused projections": (
        lambda: tiny("Phi3"),
        r"'phi3': layer 0 holds .*self_attn\.qkv_proj.*mlp\.gate_up_proj.*; supported are decoders .*\(Llama, Mistral",
    ),
    "Conv1D": (gpt2, r"'gpt2': layer 0 holds attn\.c_attn, attn\.c_proj, mlp\.c_fc, mlp\.c_proj; supported"),
    "two-matrix FFN": (lambda: tiny("Starcoder2"), r"'starcoder2': layer 0 holds .*mlp\.c_fc, mlp\.c_proj; supported"),
    "experts": (
        lambda: tiny("Mixtral", num_local_experts=2),
        r"'mixtral': layer 0 holds .*mlp\.experts\.gate_up_proj, mlp\.experts\.down_proj; supported",
    ),
    "shared expert": (
        lambda: tiny("Qwen2Moe", num_experts=2, moe_intermediate_size=16, shared_expert_intermediate_size=16),
        r"'qwen2_moe': layer 0 holds .*shared_expert",
    ),
    "encoder-decoder": (t5, "'t5' is an encoder-decoder; supported"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_layouts_are_named(case):
    make, words = UNSUPPORTED[case]
    with pytest.raises(CofituneError, match=words):
        resolve_layout(make())


def test_a_plain_module_is_no_model():
    with pytest.raises(CofituneError, match="Linear is not a transformers model"):
        resolve_layout(nn.Linear(2, 2))


def test_a_matrix_of_unknown_role_is_named(tiny_model):
    tiny_model.model.layers[2].mlp.extra = nn.Linear(4, 4)
    with pytest.raises(CofituneError, match=r"layer 2 holds .*mlp\.extra"):
        resolve_layout(tiny_model)


def test_an_adapter_inside_a_projection_is_no_unknown_role(tiny_model):
    tiny_model.model.layers[2].mlp.up_proj.lora_A = nn.Linear(32, 2)
    assert resolve_layout(tiny_model).cells[2, "ffn.up"].parameter == "model.layers.2.mlp.up_proj.weight"


def test_a_layer_without_a_role_is_named(tiny_model):
    del tiny_model.model.layers[1].mlp.gate_proj
    with pytest.raises(CofituneError, match=r"layer 1 holds .*mlp\.up_proj, mlp\.down_proj; supported"):
        resolve_layout(tiny_model)


def test_shapes_are_verified(tiny_model):
    tiny_model.model.layers[3].self_attn.q_proj = nn.Linear(32, 64, bias=False)  # a gated query, say
    with pytest.raises(CofituneError, match=r"q_proj of layer 3 has the shape \(64, 32\) where \(32, 32\) was"):
        resolve_layout(tiny_model)


def test_layers_of_different_sizes_are_refused(tiny_model):
    mlp = tiny_model.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj, mlp.down_proj = nn.Linear(32, 40), nn.Linear(32, 40), nn.Linear(40, 32)
    with pytest.raises(CofituneError, match=r"sizes of layer 1 are \(32, 40, 4, 2, 8\), those of layer 0 \(32, 48"):
        resolve_layout(tiny_model)


def test_shared_weights_are_refused(tiny_model):
    tiny_model.model.layers[1].mlp.up_proj.weight = tiny_model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(CofituneError, match=r"model\.layers\.0\.mlp\.up_proj\.weight serves several layers"):
        resolve_layout(tiny_model)


def test_a_config_of_another_depth_is_refused(tiny_model):
    tiny_model.config.num_hidden_layers = 7
    with pytest.raises(CofituneError, match=r"config says 7 layers, but LlamaModel holds lists of \[4\] modules"):
        resolve_layout(tiny_model)
