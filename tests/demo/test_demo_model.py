"""The real model that the demo runs on: read from its GGUF file, trained in one region, and put back."""

from importlib import metadata

import pytest
import torch

from cofitune_fast.demo import data_folder
from cofitune_fast.demo.settings import MODEL_PACKAGE, demo_model
from cofitune_fast.memory.abilities import prefix_abilities, trie_ability
from cofitune_fast.models import load_model
from cofitune_fast.models.fingerprint import tensor_digests
from cofitune_fast.regions import Region
from cofitune_fast.trials import TrialData, Workbench


def _installed():
    try:
        return metadata.version(MODEL_PACKAGE)
    except metadata.PackageNotFoundError:
        return None


pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(_installed() is None, reason=f"the package {MODEL_PACKAGE} is not installed"),
]
REGION = Region.parse("ffn.up+ffn.down@28-29")


@pytest.fixture(scope="module")
def bench():
    pytest.importorskip("gguf")
    data = data_folder() / "speciality"
    return Workbench(load_model(demo_model(), device="cpu"), TrialData(str(data / "train.jsonl"), limit=32))


def test_it_is_the_model_it_says(bench):
    layout = bench.layout
    blocks = {(block.heads, block.key_value_heads) for block in layout.blocks.values() if block.kind == "attention"}
    assert (layout.num_layers, blocks) == (30, {(9, 3)})
    assert bench.total_parameters == 134_515_008 and bench.model.dtype == torch.bfloat16
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = bench.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    answer = bench.model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in bench.tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


def test_rounding_in_30_layers_of_bfloat16_is_no_reason_against_a_speed_feature(bench):
    able = prefix_abilities(bench.model, 15)
    assert trie_ability(bench.model) and able.cut and able.cache


def test_importance_has_a_score_for_every_unit(bench):
    importance = bench.importance(REGION, samples=4, batch_size=4)
    assert {kind: tuple(scores.shape) for kind, scores in importance.scores.items()} == {
        "ffn.neuron": (2, 1536), "ffn.output": (2, 576), "attn.head": (2, 9)}
    assert all((scores > 0).all() for scores in importance.scores.values())
    assert tensor_digests(bench.model) == bench.digests


def test_a_trial_learns_and_leaves_the_base_as_it_was(bench, tmp_path):
    losses = []

    from transformers import TrainerCallback

    class Losses(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            losses.extend([logs["loss"]] if "loss" in logs else [])

    with bench.trial(REGION):
        result = bench.train(
            REGION, tmp_path, {"learning_rate": 2e-3, "num_train_epochs": 2, "logging_steps": 1, "seed": 1},
            callbacks=[Losses()],
        )
        changed = {name for name, digest in tensor_digests(bench.model).items() if digest != bench.digests[name]}
    assert changed == {f"model.layers.{layer}.mlp.{name}_proj.weight" for layer in (28, 29) for name in ("up", "down")}
    assert result.frozen_tensors == len(bench.digests) - 4
    first, last = map(float, (losses[0], losses[-1]))
    assert last < 0.6 * first
    assert tensor_digests(bench.model) == bench.digests
