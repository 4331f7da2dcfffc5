"""The plan, put together from one layer of each kind, against whole training steps."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from families import tiny_family
from plan_cases import TrainingStep, make_batch
from tiny import make_tiny_model
from torch._guards import detect_fake_mode
from transformers import LlamaConfig

from cofitune_fast.errors import CofituneError
from cofitune_fast.models.fingerprint import named_parameters
from cofitune_fast.planning.plan import Settings
from cofitune_fast.planning.planner import Planner, fake_model
from cofitune_fast.planning.quantized_layers import quantized_forward
from cofitune_fast.planning.tracker import LiveBytes
from cofitune_fast.regions import Region

ROWS, LENGTH, RESPONSE = 4, 64, 24
SIZES = {"vocab_size": 1000, "hidden_size": 128, "intermediate_size": 344, "head_dim": 32}
STORAGE = {torch.float32: "fp32", torch.bfloat16: "bf16_sr"}
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"]
COMING_AND_GOING = ("gradients", "activations", "loss", "prefix_stream", "workspace")
VARIANTS = {
    "plain": {},
    "checkpointing": {"gradient_checkpointing": True},
    "release": {"gradient_release": "exact"},
    "both": {"gradient_checkpointing": True, "gradient_release": "exact"},
    "cached": {"prefix": "cached"},
    "cached and checkpointing": {"prefix": "cached", "gradient_checkpointing": True},
}


def settings(dtype, variant):
    return Settings(batch_size=ROWS, length=LENGTH, response_length=RESPONSE, storage=STORAGE[dtype],
                    **VARIANTS[variant])


def beyond_weights_and_states(planner, chosen):
    """Planned bytes at the peak of all that a step makes; the batch stood before."""
    plan = planner.plan(replace(chosen, optimizer_states="device"))
    rows = chosen.rows
    return sum(plan.parts[part] for part in COMING_AND_GOING) - 8 * 2 * rows * (chosen.length + chosen.response_length)


def real_peak(model, region, chosen):
    step = TrainingStep(
        model, region, make_batch(chosen.rows, chosen.length, chosen.response_length),
        checkpointing=chosen.gradient_checkpointing, release=chosen.gradient_release, cached=chosen.prefix == "cached",
    )
    with LiveBytes() as live:
        live.exclude([*model.parameters(), *model.buffers()])
        step()
    return live.peak


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("region", "dtype", "variant"), [
    ("ffn.up+ffn.down@1-2", torch.float32, "plain"),
    ("ffn.up+ffn.down@1-2", torch.bfloat16, "cached"),
    ("ffn@3", torch.bfloat16, "both"),
    ("mha@2-3", torch.float32, "release"),
    ("mha@0", torch.bfloat16, "checkpointing"),
    ("all@1", torch.float32, "cached and checkpointing"),
    ("attn.v@0;ffn.gate@2", torch.bfloat16, "plain"),
    ("full", torch.float32, "plain"),
    ("full", torch.bfloat16, "checkpointing"),
])
def test_the_peak_is_that_of_a_real_step(family, region, dtype, variant):
    """Of a padded batch: the plan cannot see that a batch needs no mask."""
    model = make_tiny_model(family, dtype=dtype, **SIZES)
    region, chosen = Region.parse(region), settings(dtype, variant)
    planned = beyond_weights_and_states(Planner(fake_model(model.config, dtype), region), chosen)
    assert planned == pytest.approx(real_peak(model, region, chosen), rel=0.02)


@pytest.mark.parametrize(("family", "region", "variant"), [
    ("phi3", "attn.k@1", "release"),  # a part of a fused projection
    ("gpt2", "full", "plain"),  # Conv1D, and positions that are trained
    ("qwen3_5_text", "all@1-2", "plain"),  # layers of two kinds
    ("nemotron_h", "all@0-1", "checkpointing"),
    ("gpt_oss", "ffn.up@1", "plain"),  # every second column of the experts
    ("gemma3n_text", "all@2", "plain"),  # keys and values of lower layers, and states [inputs, rows, length, hidden]
    ("bloom", "ffn@1-2", "plain"),  # layers that return tuples
])
def test_the_peak_of_every_structure(family, region, variant):
    model = tiny_family(family)
    region, chosen = Region.parse(region), settings(torch.float32, variant)
    planner = Planner(fake_model(model.config, torch.float32), region)
    assert beyond_weights_and_states(planner, chosen) == pytest.approx(real_peak(model, region, chosen), rel=0.05)
    plan = planner.plan(chosen)  # the weights of a part are not counted a second time
    weights = sum(tensor.nbytes for _, tensor in named_parameters(model)) + sum(b.nbytes for b in model.buffers())
    assert plan.parts["frozen_weights"] + plan.parts["region_weights"] == weights
    assert (plan.trained_parameters, plan.total_parameters) == (
        region.count(model), sum(parameter.numel() for _, parameter in named_parameters(model)))


@pytest.mark.parametrize(("family", "message"), [
    ("jetmoe", "The memory of a jetmoe model cannot be planned, as its forward does not run on tensors without values"),
    ("hrm_text", "Model type 'hrm_text' runs its layers more than once, so its memory cannot be planned"),
])
def test_a_family_that_cannot_be_planned_is_said_in_a_sentence(family, message):
    with pytest.raises(CofituneError, match=message):
        Planner(fake_model(tiny_family(family).config, torch.float32), Region.parse("ffn@1")).plan(
            settings(torch.float32, "plain"))


def test_without_padding_there_is_no_mask_and_a_step_takes_less():
    model = make_tiny_model(**SIZES)
    region, chosen = Region.parse("mha@0"), settings(torch.float32, "plain")
    step = TrainingStep(model, region, make_batch(ROWS, LENGTH, RESPONSE))
    step.batch[0]["attention_mask"].fill_(1)
    with LiveBytes() as live:
        step()
    planned = beyond_weights_and_states(Planner(fake_model(model.config, torch.float32), region), chosen)
    assert 0.8 * planned < live.peak < planned


@pytest.mark.parametrize("region", ["ffn.up+ffn.down@25%-50%", "full"])
@pytest.mark.parametrize("variant", ["plain", "checkpointing"])
def test_the_peak_is_that_of_a_whole_fake_step_of_a_large_layout(region, variant):
    """Llama-2-7B's sizes, a quarter of its layers; benchmarks/plan_check.py has them all."""
    config = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=8,
                         num_attention_heads=32, num_key_value_heads=32)
    chosen = replace(settings(torch.bfloat16, variant), length=512, response_length=256)
    region = Region.parse(region)
    planned = beyond_weights_and_states(Planner(fake_model(config), region), chosen)
    model = fake_model(config)
    with detect_fake_mode(next(model.parameters())):
        assert planned == pytest.approx(real_peak(model, region, chosen), rel=0.01)


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize(("region", "variant"), [
    ("ffn@0", "plain"), ("mha@2", "plain"), ("full", "plain"), ("ffn.down@3", "cached"), ("ffn@0", "checkpointing"),
])
def test_the_forward_and_the_loss_by_themselves(family, region, variant):
    """Their peaks are seldom that of the step, but decide under release and with a wide vocabulary."""
    model = make_tiny_model(family, **{**SIZES, "vocab_size": 300})
    region, chosen = Region.parse(region), replace(settings(torch.float32, variant), response_length=1)
    plan = Planner(fake_model(model.config, torch.float32), region).plan(chosen)
    throughout = sum(plan.parts[part] for part in ("frozen_weights", "region_weights", "optimizer"))
    step = TrainingStep(model, region, make_batch(ROWS, LENGTH, 1), cached=variant == "cached",
                        checkpointing=variant == "checkpointing")
    with LiveBytes() as live:
        step.forward()
    planned = max(plan.phases["forward"], plan.phases["loss"]) - throughout - 8 * 2 * ROWS * (LENGTH + 1)
    assert planned == pytest.approx(live.peak, rel=0.005)


def test_both_gradients_of_a_tied_weight_and_their_sum():
    model = make_tiny_model(**{**SIZES, "vocab_size": 20_000})
    region, chosen = Region.parse("full"), replace(settings(torch.float32, "checkpointing"), response_length=1)
    planned = beyond_weights_and_states(Planner(fake_model(model.config, torch.float32), region), chosen)
    assert planned == pytest.approx(real_peak(model, region, chosen), rel=0.005)
    assert planned > 3 * model.lm_head.weight.nbytes


def test_a_chunk_of_logits_at_a_time():
    """More response tokens than a chunk holds: the loss takes what one chunk takes."""
    model = make_tiny_model(**{**SIZES, "vocab_size": 400_000})
    region, chosen = Region.parse("ffn@3"), settings(torch.float32, "plain")
    planner = Planner(fake_model(model.config, torch.float32), region)
    assert beyond_weights_and_states(planner, chosen) == pytest.approx(real_peak(model, region, chosen), rel=0.02)
    losses = [planner.plan(replace(chosen, response_length=tokens)).parts["loss"] for tokens in (24, 48)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_a_deep_model_takes_no_longer_than_one_of_each_kind(tmp_path):
    """70 billion parameters from a configuration alone: as many layers are measured as there are kinds."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 8192,
              "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
              "num_key_value_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    planner = Planner(fake_model(tmp_path), Region.parse("ffn.up+ffn.down@25%-50%"))
    plan = planner.plan(Settings(batch_size=1, length=1024, response_length=256))
    assert plan.total_parameters == 68_976_648_192
    kinds = [key for key in planner.pieces._measured if isinstance(key[0], tuple)]
    assert len(kinds) == 4  # below, the first trained, in, and above the region


@pytest.mark.parametrize("variant", ["plain", "checkpointing", "release"])
@pytest.mark.parametrize("method", ["nf4", "int8"])
@pytest.mark.parametrize(("text", "length"), [("ffn.up@0-2", 64), ("all@0-1", 32)])
def test_what_quantised_layers_keep_stays_as_long_as_they_keep_it(text, length, method, variant):
    """A whole step with the stand-ins in every layer: int8 keeps its inputs until the graph goes."""
    config = make_tiny_model(dtype=torch.bfloat16, **SIZES).config
    region = Region.parse(text)
    chosen = replace(settings(torch.bfloat16, variant), quantize=method, length=length, response_length=8)
    planned = beyond_weights_and_states(Planner(fake_model(config), region), chosen)
    model = fake_model(config)
    region.apply(model)
    layers = [module for layer in model.model.layers for module in layer.modules()]
    with detect_fake_mode(next(model.parameters())), quantized_forward(layers, method):
        assert planned == pytest.approx(real_peak(model, region, chosen), rel=0.01)


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_a_quantised_frozen_part(tmp_path, method):
    quantized = pytest.importorskip("cofitune_fast.models.quantized")
    pytest.importorskip("bitsandbytes")
    from cofitune_fast.models.fingerprint import named_tensors

    original = make_tiny_model(dtype=torch.bfloat16, **{**SIZES, "hidden_size": 256, "head_dim": 64})
    original.save_pretrained(tmp_path)
    region, chosen = Region.parse("ffn.up@2"), settings(torch.bfloat16, "plain")
    model = quantized.load_quantized(tmp_path, method, region.modules, dtype=torch.bfloat16)
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
                for _, tensor in (*named_tensors(model), *model.named_buffers())}
    plain, planned = (Planner(fake_model(original.config), region).plan(replace(chosen, quantize=name))
                      for name in ("none", method))
    assert planned.parts["frozen_weights"] + planned.parts["region_weights"] == sum(storages.values())
    assert planned.parts["region_weights"] == plain.parts["region_weights"]

    planner, chosen = Planner(fake_model(original.config), region), replace(chosen, quantize=method)
    step = TrainingStep(model, region, make_batch(ROWS, LENGTH, RESPONSE))
    with LiveBytes() as live:
        loss = step.forward()
        held = live.live
    *_, end = [moment for phase, moment in planner._moments(chosen) if phase == "loss"]
    assert loss.isfinite()
    assert end["activations"] + end["workspace"] + planner.pieces.loss(chosen.step()).saved == pytest.approx(held, 0.01)
