"""The plan against what a real model of the same configuration holds and saves."""

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
from cofitune_fast.memory import PeakMemory, fake_model, plan_memory
from cofitune_fast.models import response_logits
from cofitune_fast.ops._storage import STORAGES
from cofitune_fast.regions import Region

DTYPES = {"fp32": torch.float32, "bf16_sr": torch.bfloat16}
ALL_STORAGES = {name: form.weight for name, form in STORAGES.items()}
BATCH, LENGTH = 3, 20


def plan(config, region, storage="fp32", batch_size=BATCH, length=LENGTH, **options):
    return plan_memory(fake_model(config, ALL_STORAGES[storage]), Region.parse(region), batch_size=batch_size,
                       length=length, storage=storage, **options)


def saved_by_autograd(model, attention_mask):
    """Bytes of the distinct storages that a real forward of the decoder keeps for its backward, weights left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # holding it keeps its address from being given to another tensor
        return tensor

    ids = torch.randint(4, 200, attention_mask.shape)
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_decoder()(input_ids=ids, attention_mask=attention_mask, use_cache=False)
    model.eval()
    return sum(storage.nbytes() for storage in kept.values())


def padded(batch_size=BATCH, length=LENGTH):
    mask = torch.ones(batch_size, length, dtype=torch.long)
    mask[-1, length // 2:] = 0
    return mask


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"])
@pytest.mark.parametrize(("region", "storage"), [
    ("ffn.up@3", "fp32"), ("ffn@0-1", "bf16_sr"), ("mha@2-3", "fp32"), ("all@1", "bf16_sr"), ("full", "fp32"),
])
def test_activations_are_those_of_the_real_model(family, region, storage):
    model = make_tiny_model(family, dtype=DTYPES[storage])
    Region.parse(region).apply(model)
    planned = plan(model.config, region, storage).activations
    # Fake tensors have no values, so the plan cannot see that a batch has no padding and takes it to have some: equal
    # to the byte there. Without padding transformers builds no mask and need not repeat the KV heads: never more.
    assert planned == saved_by_autograd(model, padded())
    even = saved_by_autograd(model, torch.ones(BATCH, LENGTH, dtype=torch.long))
    assert 0.8 * planned <= even <= planned


@pytest.mark.parametrize("storage", ALL_STORAGES)
@pytest.mark.parametrize("region", ["ffn.up+ffn.down@25%-50%", "mha@0", "full"])
def test_weights_gradients_and_states_are_counted_as_they_are(storage, region):
    model = make_tiny_model("qwen2", dtype=ALL_STORAGES[storage])
    pairs = Region.parse(region).apply(model)
    optimizer = MaskedAdamW(pairs, lr=1e-3, storage=storage)
    model(input_ids=torch.randint(4, 200, (2, 8))).logits.float().sum().backward()
    gradients = sum(parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None)
    optimizer.step()
    states = sum(
        value.nbytes for state in optimizer.state.values() for value in state.values()
        if isinstance(value, torch.Tensor) and value.dim()
    )
    planned = plan(model.config, region, storage)
    assert planned.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert planned.gradients == gradients
    assert planned.optimizer == states
    assert planned.trained_parameters == sum(parameter.numel() for _, parameter in pairs)
    assert planned.total_parameters == sum(parameter.numel() for parameter in model.parameters())


def test_the_masks_of_a_region_are_counted(tiny_model):
    rows = [Encoded([5, 6, 7, 8, 9], 2, "row")]
    region = Region.parse("ffn.gate+ffn.up@1-2;attn.q@2")
    masks = compute_importance(tiny_model, [collate(rows, 0)], region, base=("tiny", "x")).masks(
        tiny_model, region, preset="rank")
    with_masks, without = (plan(tiny_model.config, str(region), masked=masked) for masked in (True, False))
    assert with_masks.optimizer - without.optimizer == sum(mask.nbytes for mask in masks.values())


def test_a_region_below_the_middle_keeps_more_than_one_at_the_top(tiny_model):
    by_layer = [plan(tiny_model.config, f"mha@{layer}").activations for layer in range(4)]
    steps = {low - high for low, high in pairwise(by_layer)}
    # Each frozen layer above the trained one keeps the same, and one below it keeps nothing.
    assert len(steps) == 1 and min(steps) > 0
    halves = [plan(tiny_model.config, f"ffn@{layers}") for layers in ("0%-50%", "50%-100%")]
    assert halves[0].activations > 2 * halves[1].activations
    assert halves[0].weights == halves[1].weights and halves[0].optimizer == halves[1].optimizer


def test_activations_grow_with_the_batch(tiny_model):
    sizes = [plan(tiny_model.config, "mha@2", batch_size=size).activations for size in (1, 2, 4)]
    # The rotary tables are the batch's common part; what is left doubles.
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0]) > 0


@pytest.mark.parametrize("storage", DTYPES)
def test_the_logits_allow_for_what_the_loss_saves(storage):
    model = make_tiny_model(dtype=DTYPES[storage], vocab_size=2000)
    Region.parse("ffn@3").apply(model)
    labels = torch.randint(4, 200, (BATCH, LENGTH))
    labels[:, : LENGTH // 2] = -100
    batch = {"input_ids": torch.randint(4, 200, (BATCH, LENGTH)), "labels": labels, "attention_mask": padded()}
    wide, targets = {}, BATCH * LENGTH // 2

    def pack(tensor):
        if tensor.dtype == torch.float32 and tensor.shape == (targets, 2000):
            wide[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits, tokens = response_logits(model, batch)
        torch.nn.functional.cross_entropy(logits.float(), tokens)
    assert wide
    held = logits.nbytes + sum(tensor.nbytes for tensor in wide.values())
    gradients = logits.nbytes + logits.numel() * 4  # by the logits in their dtype, and by their fp32 copy
    planned = plan(model.config, "ffn@3", storage, response_length=LENGTH // 2).logits
    assert logits.shape == (targets, 2000)
    assert held + gradients <= planned <= held + gradients + logits.numel() * 4


def test_a_tied_head_is_counted_once():
    tied, untied = (make_tiny_model(tie_word_embeddings=tie) for tie in (True, False))
    plans = {tie: plan(model.config, "full") for tie, model in ((True, tied), (False, untied))}
    assert plans[False].total_parameters - plans[True].total_parameters == 260 * 32
    assert plans[True].weights == sum(parameter.nbytes for parameter in tied.parameters())
    assert plans[False].weights == sum(parameter.nbytes for parameter in untied.parameters())


def test_peak_is_the_sum_and_a_plan_is_json(tiny_model):
    content = json.loads(json.dumps(plan(tiny_model.config, "mha@1").to_dict()))
    assert content["region"] == "mha@1"
    parts = ("weights", "gradients", "optimizer", "activations", "logits")
    assert content["peak"] == sum(content[part] for part in parts)
    assert all(content[part] > 0 for part in parts)


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
    config = LlamaConfig(vocab_size=32000, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40,
                         num_attention_heads=40, num_key_value_heads=40)
    with PeakMemory() as before:
        pass
    with PeakMemory() as peak:
        planned = plan(config, "ffn.up+ffn.down@25%-50%", "bf16_sr", batch_size=1, length=2048)
    assert peak.bytes - before.bytes < 500e6
    assert planned.total_parameters == 13_015_864_320
    assert planned.trained_parameters == 2 * 10 * 5120 * 13824
    assert planned.weights == 26_031_728_640
    full = plan(config, "full", "bf16_sr", batch_size=1, length=2048)
    assert planned.activations < full.activations and planned.peak < full.peak / 3
