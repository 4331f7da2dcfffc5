"""Soft masks: which unit masks which rows or columns, in every family and preset."""

from __future__ import annotations

import pytest
import torch
from tiny import make_tiny_model

from cofitune_fast.errors import CofituneError
from cofitune_fast.importance import Importance, Preset, compute_importance

SIZES = {"ffn.neuron": 48, "ffn.output": 32, "attn.head": 4}
IDENTITY = {down: Preset("identity", lambda scores: scores, down) for down in ("output", "neuron")}


def make_importance(layers=(1, 2), kinds=tuple(SIZES), seed=0) -> Importance:
    generator = torch.Generator().manual_seed(seed)
    return Importance({kind: torch.rand(len(layers), SIZES[kind], generator=generator) for kind in kinds}, layers)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2"])
@pytest.mark.parametrize("down", ["output", "neuron"])
def test_every_role_is_masked_by_its_unit(family, down):
    model, importance = make_tiny_model(family), make_importance()
    masks = importance.masks(model, "all@1-2", IDENTITY[down])
    for row, layer in enumerate((1, 2)):
        neuron, output, head = (1 - importance.scores[kind][row] for kind in SIZES)
        prefix = f"model.layers.{layer}."
        query = torch.stack([head[unit // 8] for unit in range(32)])  # heads of 8 rows
        group = torch.stack([torch.minimum(head[2 * (unit // 8)], head[2 * (unit // 8) + 1]) for unit in range(16)])
        expected = {
            "mlp.gate_proj.weight": neuron[:, None],
            "mlp.up_proj.weight": neuron[:, None],
            "mlp.down_proj.weight": output[:, None] if down == "output" else neuron[None, :],
            "self_attn.q_proj.weight": query[:, None],
            "self_attn.k_proj.weight": group[:, None],
            "self_attn.v_proj.weight": group[:, None],
            "self_attn.o_proj.weight": query[None, :],
        }
        if family == "qwen2":
            expected |= {"self_attn.q_proj.bias": query, "self_attn.k_proj.bias": group, "self_attn.v_proj.bias": group}
        assert {name for name in masks if name.startswith(prefix)} == {prefix + name for name in expected}
        for name, mask in expected.items():
            torch.testing.assert_close(masks[prefix + name], mask, rtol=0, atol=0)
            weight = model.get_parameter(prefix + name)
            assert torch.broadcast_shapes(mask.shape, weight.shape) == weight.shape
    assert all(mask.dtype == torch.float32 for mask in masks.values())


@pytest.mark.parametrize("preset", ["paper", "rank"])
def test_presets_normalise_before_masking(preset):
    importance = make_importance()
    masks = importance.masks(make_tiny_model(dtype=torch.bfloat16), "ffn@2", preset)
    normalized = importance.normalized(preset)
    torch.testing.assert_close(masks["model.layers.2.mlp.up_proj.weight"], 1 - normalized["ffn.neuron"][1][:, None])
    down = 1 - (normalized["ffn.output"][1][:, None] if preset == "paper" else normalized["ffn.neuron"][1][None, :])
    torch.testing.assert_close(masks["model.layers.2.mlp.down_proj.weight"], down)
    assert len(masks) == 3


def test_masks_in_place_do_not_alias_each_other():
    masks = make_importance().masks(make_tiny_model("qwen2"), "mha@1", IDENTITY["output"])
    before = masks["model.layers.1.self_attn.q_proj.weight"].clone()
    masks["model.layers.1.self_attn.q_proj.bias"].zero_()
    torch.testing.assert_close(masks["model.layers.1.self_attn.q_proj.weight"], before)


def test_several_importances_join_by_maximum_after_normalisation():
    model, first, second = make_tiny_model(), make_importance(seed=1), make_importance(seed=2)
    mask = first.masks(model, "ffn.up@1", "rank", also=[second])["model.layers.1.mlp.up_proj.weight"]
    one, two = (each.normalized("rank")["ffn.neuron"][0] for each in (first, second))
    torch.testing.assert_close(mask, 1 - torch.maximum(one, two)[:, None])
    with pytest.raises(CofituneError, match="must cover the same layers and unit kinds"):
        first.masks(model, "ffn@1", also=[make_importance(layers=(1, 3))])


def test_permuting_neurons_permutes_their_masks():
    ids = torch.randint(4, 260, (2, 12), generator=torch.Generator().manual_seed(3))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    model, order = make_tiny_model(), torch.randperm(48, generator=torch.Generator().manual_seed(4))
    names = ["gate_proj", "up_proj", "down_proj"]

    def measure():
        importance = compute_importance(model, [batch], "ffn@2", proxy="task_nll", base=("", ""))
        masks = importance.masks(model, "ffn@2", "rank")
        return [masks[f"model.layers.2.mlp.{name}.weight"] for name in names]

    gate, up, down = measure()
    mlp = model.model.layers[2].mlp
    with torch.no_grad():
        mlp.gate_proj.weight.copy_(mlp.gate_proj.weight[order])
        mlp.up_proj.weight.copy_(mlp.up_proj.weight[order])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order])
    permuted = measure()
    assert gate.unique().numel() == 48
    for mask, expected in zip(permuted, (gate[order], up[order], down[:, order]), strict=True):
        torch.testing.assert_close(mask, expected, rtol=0, atol=1.01 / 47)  # rounding may swap neighbours in rank


@pytest.mark.parametrize(
    ("importance", "region", "preset", "words"),
    [
        (make_importance(), "ffn@0-1", "paper", "not measured in layer 0, only in layers 1, 2"),
        (make_importance(kinds=("ffn.neuron",)), "ffn@1", "paper", "ffn.down needs the importance of ffn.output"),
        (make_importance(kinds=("ffn.neuron",)), "mha@1", "rank", "attn.q needs the importance of attn.head"),
        (make_importance(), "ffn@1", "rnk", "'rnk' is not known; did you mean 'rank'"),
        (make_importance(), "ffn@9", "paper", "names layer 9"),
    ],
)
def test_what_was_not_measured_is_refused(importance, region, preset, words):
    with pytest.raises(CofituneError, match=words):
        importance.masks(make_tiny_model(), region, preset)


def test_preset_rank_needs_no_output_importance():
    assert len(make_importance(kinds=("ffn.neuron",)).masks(make_tiny_model(), "ffn@1", "rank")) == 3


def test_importance_of_another_shape_is_refused():
    with pytest.raises(CofituneError, match=r"has 48 units ffn.neuron in layer 1, but the model has 64; it was"):
        make_importance().masks(make_tiny_model(intermediate_size=64), "ffn@1")
    with pytest.raises(CofituneError, match=r"has 4 units attn.head in layer 1, but the model has 8"):
        make_importance().masks(make_tiny_model(num_attention_heads=8), "attn.k@1")
