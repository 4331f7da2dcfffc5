"""The plan: what is there throughout, part by part, and what it refuses."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from tiny import make_tiny_model
from transformers import LlamaConfig, T5Config

from cofitune_fast import MaskedAdamW
from cofitune_fast.data import collate
from cofitune_fast.data.encode import Encoded
from cofitune_fast.errors import CofituneError
from cofitune_fast.importance import compute_importance
from cofitune_fast.memory import PeakMemory
from cofitune_fast.memory.host_states import HostMaskedAdamW
from cofitune_fast.ops._storage import STORAGES
from cofitune_fast.planning import fake_model, plan_memory
from cofitune_fast.regions import Region

ALL_STORAGES = {name: form.weight for name, form in STORAGES.items()}
BATCH, LENGTH = 3, 20
LLAMA_13B = LlamaConfig(vocab_size=32000, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40,
                        num_attention_heads=40, num_key_value_heads=40)


def plan(config, region, storage="fp32", batch_size=BATCH, length=LENGTH, **options):
    return plan_memory(fake_model(config, ALL_STORAGES[storage]), Region.parse(region), batch_size=batch_size,
                       length=length, storage=storage, **options)


def states_of(optimizer):
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values()
               if isinstance(value, torch.Tensor) and value.dim())


@pytest.mark.parametrize("storage", ALL_STORAGES)
@pytest.mark.parametrize("region", ["ffn.up+ffn.down@25%-50%", "mha@0", "full"])
def test_weights_gradients_and_states_are_counted_as_they_are(storage, region):
    model = make_tiny_model("qwen2", dtype=ALL_STORAGES[storage])
    pairs = Region.parse(region).apply(model)
    optimizer = MaskedAdamW(pairs, lr=1e-3, storage=storage)
    model(input_ids=torch.randint(4, 200, (2, 8))).logits.float().sum().backward()
    gradients = sum(parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None)
    optimizer.step()
    planned = plan(model.config, region, storage)
    trained = sum(parameter.nbytes for _, parameter in pairs)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    rotary = 4 * sum(buffer.numel() for buffer in model.buffers())  # float32 in a model that is loaded
    assert planned.parts["region_weights"] == trained
    assert planned.parts["frozen_weights"] == weights - trained + rotary
    assert planned.parts["optimizer"] == states_of(optimizer)
    assert planned.trained_parameters == sum(parameter.numel() for _, parameter in pairs)
    assert planned.total_parameters == sum(parameter.numel() for parameter in model.parameters())
    throughout = sum(planned.parts[part] for part in ("frozen_weights", "region_weights", "optimizer"))
    inputs = 8 * (2 * BATCH * LENGTH + 2 * BATCH * LENGTH // 2)
    assert planned.phases["step"] == throughout + gradients + inputs  # the step has all gradients and no activation


def test_states_on_the_host(tiny_model):
    region = Region.parse("ffn@1-2")
    optimizer = HostMaskedAdamW(region.apply(tiny_model), lr=1e-3)
    optimizer.backward(tiny_model(input_ids=torch.randint(4, 200, (2, 8))).logits.sum())
    optimizer.step()
    copies = 2 * sum(p.nbytes for group in optimizer.param_groups for p in group["params"])  # weight and gradient
    planned = plan(tiny_model.config, "ffn@1-2", optimizer_states="host")
    assert planned.host == {"optimizer": states_of(optimizer) + copies}
    assert planned.parts["optimizer"] == 0
    # The device holds two gradients on their way, and in the backward the one being made; none is left for the step.
    largest = 4 * 32 * 48
    assert planned.phases["step"] == planned.parts["frozen_weights"] + planned.parts["region_weights"] + 2 * largest \
        + 8 * (2 * BATCH * LENGTH + 2 * BATCH * LENGTH // 2)


def test_prefix_weights_on_the_host(tiny_model):
    here, there = (plan(tiny_model.config, "ffn@2", prefix="cached", prefix_weights=where)
                   for where in ("device", "host"))
    below = sum(p.nbytes for layer in tiny_model.model.layers[:2] for p in layer.parameters())
    assert here.parts["frozen_weights"] - there.parts["frozen_weights"] == below == there.host["prefix_weights"]
    assert there.peak == here.peak - below
    states = BATCH * LENGTH * 32 * 4
    assert here.parts["prefix_stream"] == there.parts["prefix_stream"] == states
    assert here.cache_per_row == there.cache_per_row == states // BATCH
    # Filling the cache needs all weights, and no gradient nor state; in the first epoch otherwise a whole step.
    assert there.parts["frozen_weights"] + below < there.filling < here.filling
    assert plan(tiny_model.config, "ffn@0").cache_per_row == 0


def test_the_masks_of_a_region_are_counted(tiny_model):
    rows = [Encoded([5, 6, 7, 8, 9], 2, "row")]
    region = Region.parse("ffn.gate+ffn.up@1-2;attn.q@2")
    masks = compute_importance(tiny_model, [collate(rows, 0)], region, base=("tiny", "x")).masks(
        tiny_model, region, preset="rank")
    with_masks, without = (plan(tiny_model.config, str(region), masked=masked) for masked in (True, False))
    assert with_masks.parts["optimizer"] - without.parts["optimizer"] == sum(mask.nbytes for mask in masks.values())


def test_a_region_below_the_middle_keeps_more_than_one_at_the_top(tiny_model):
    by_layer = [plan(tiny_model.config, f"mha@{layer}").phases["loss"] for layer in range(4)]
    steps = {low - high for low, high in pairwise(by_layer)}
    # Each frozen layer above the trained one keeps the same, and one below it keeps nothing.
    assert len(steps) == 1 and min(steps) > 0
    halves = [plan(tiny_model.config, f"ffn@{layers}") for layers in ("0%-50%", "50%-100%")]
    assert halves[0].phases["backward"] > halves[1].phases["backward"]
    assert halves[0].parts["optimizer"] == halves[1].parts["optimizer"]


def test_micro_batches_trade_activations_for_gradients(tiny_model):
    whole, halves = (plan(tiny_model.config, "ffn@1-2", batch_size=4, accumulation=count) for count in (1, 2))
    half = plan(tiny_model.config, "ffn@1-2", batch_size=2)
    gradients = 4 * whole.trained_parameters
    assert halves.parts["gradients"] >= gradients and halves.parts["activations"] == half.parts["activations"]
    assert halves.phases["loss"] == half.phases["loss"] + gradients
    assert halves.work.flops == 2 * half.work.flops


def test_an_anchors_rows_come_with_every_micro_batch(tiny_model):
    anchored = plan(tiny_model.config, "ffn@1-2", batch_size=4, accumulation=2, anchor_rows=1)
    larger = plan(tiny_model.config, "ffn@1-2", batch_size=6, accumulation=2)
    assert (anchored.parts, anchored.phases, anchored.work) == (larger.parts, larger.phases, larger.work)
    assert anchored.settings.rows == 2


def test_only_response_tokens_reach_the_head():
    model = make_tiny_model(vocab_size=4000)
    short, long = (plan(model.config, "ffn@3", response_length=tokens).parts["loss"] for tokens in (1, 15))
    assert long - short > 14 * BATCH * 4000 * 4
    assert plan(model.config, "ffn@3", response_length=500).parts["loss"] == plan(
        model.config, "ffn@3", response_length=LENGTH - 1).parts["loss"]


def test_a_tied_head_is_counted_once():
    tied, untied = (make_tiny_model(tie_word_embeddings=tie) for tie in (True, False))
    plans = {tie: plan(model.config, "full") for tie, model in ((True, tied), (False, untied))}
    assert plans[False].total_parameters - plans[True].total_parameters == 260 * 32
    for tie, model in ((True, tied), (False, untied)):
        assert plans[tie].parts["region_weights"] == sum(parameter.nbytes for parameter in model.parameters())


def test_the_peak_is_the_largest_phase_and_a_plan_is_json(tiny_model):
    planned = plan(tiny_model.config, "mha@1")
    content = json.loads(json.dumps(planned.to_dict()))
    assert content["region"] == "mha@1" and content["settings"]["length"] == LENGTH
    assert content["peak"] == sum(content["parts"].values()) == max(content["phases"].values())
    assert content["phases"][content["phase"]] == content["peak"]
    assert all(value > 0 for value in content["phases"].values())


def test_planning_leaves_a_folder_alone_and_reads_its_config(tiny_model_folder, tiny_model):
    (tiny_model_folder / "model.safetensors").unlink()  # the configuration is enough
    model = fake_model(tiny_model_folder, torch.float32)
    planned = plan_memory(model, Region.parse("ffn@2"), batch_size=BATCH, length=LENGTH, storage="fp32")
    assert planned == plan(tiny_model.config, "ffn@2")


@pytest.mark.parametrize("content", [None, "{", "{}", '{"model_type": "nobody-knows"}'])
def test_a_place_without_a_usable_configuration(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CofituneError, match=f"No model configuration at {tmp_path}: "):
        fake_model(tmp_path)


def test_a_model_that_is_no_causal_language_model():
    with pytest.raises(CofituneError, match="t5"):
        fake_model(T5Config(num_layers=1))


def test_a_region_the_model_lacks(tiny_model):
    with pytest.raises(CofituneError, match="names layer 9"):
        plan(tiny_model.config, "ffn@9")


def test_a_model_of_13_billion_parameters_is_planned_without_its_memory():
    with PeakMemory() as before:
        pass
    with PeakMemory() as peak:
        planned = plan(LLAMA_13B, "ffn.up+ffn.down@25%-50%", "bf16_sr", batch_size=1, length=2048)
    assert peak.bytes - before.bytes < 500e6
    assert planned.total_parameters == 13_015_864_320
    assert planned.trained_parameters == 2 * 10 * 5120 * 13824
    weights = planned.parts["frozen_weights"] + planned.parts["region_weights"]
    assert weights == 26_031_728_640 + 2 * 64 * 4  # and the rotary frequencies
    full = plan(LLAMA_13B, "full", "bf16_sr", batch_size=1, length=2048)
    assert planned.peak < full.peak / 2
