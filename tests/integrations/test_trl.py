"""The callback, the optimizer, the checkpoints and the reference in TRL's trainers, with TRL's own settings."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tiny import CHATML, make_tiny_model, make_tiny_tokenizer

import cofitune_fast as cf

trl = pytest.importorskip("trl", reason="trl is missing: pip install '.[trl]'")
datasets = pytest.importorskip("datasets")

REGION = "ffn@50%-75%"
MARKED = CHATML.replace(  # with the marks of what the assistant wrote, which assistant_only_loss needs
    "{{ message['content'] }}<|im_end|>",
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}")
USER = [[{"role": "user", "content": f"say {chr(97 + number)}"}] for number in range(8)]
ASSISTANT = [[{"role": "assistant", "content": chr(65 + number) * (1 + number % 5)}] for number in range(8)]
TALKS = [{"messages": user + assistant} for user, assistant in zip(USER, ASSISTANT, strict=True)]
PAIRS = [{"prompt": user, "completion": assistant} for user, assistant in zip(USER, ASSISTANT, strict=True)]
TEXTS = [{"text": f"say {chr(97 + number)}: {chr(65 + number)}"} for number in range(8)]
PREFERENCES = [{"prompt": f"say {chr(97 + number)}", "chosen": chr(65 + number) * 3, "rejected": "no"}
               for number in range(8)]


@pytest.fixture(autouse=True, scope="module")
def no_bars():
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def anchor(tmp_path_factory):
    return cf.open_anchor(make_tiny_model(), make_tiny_tokenizer(), cf.AnchorSettings(texts=6, tokens=8),
                          folder=tmp_path_factory.mktemp("anchor"))


def arguments(kind, folder, **values):
    return kind(str(folder), **{
        "max_steps": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 2, "use_cpu": True, "logging_steps": 1,
        "save_strategy": "no", "disable_tqdm": True, **values})


def tokenizer():
    made = make_tiny_tokenizer()
    made.chat_template = MARKED
    return made


def trained(trainer, resume=None):
    """The weights after the training."""
    trainer.train(resume_from_checkpoint=resume)
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_equal(weights, others):
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name]), name


def graphs_below(model):
    """A list that gets, at each forward of layer 0 in training mode, whether its output has a graph."""
    seen = []
    model.model.layers[0].register_forward_hook(
        lambda layer, inputs, output: seen.append(output.requires_grad) if layer.training else None)
    return seen


@pytest.mark.parametrize(("rows", "values"), [
    (TEXTS, {"packing": True, "max_length": 32}),
    (TALKS, {"assistant_only_loss": True, "padding_free": True, "max_length": None}),
    (PAIRS, {"completion_only_loss": True, "gradient_accumulation_steps": 2, "max_steps": 2}),
], ids=["packed", "assistant", "completion"])  # fmt: skip
def test_the_callback_changes_the_cost_and_nothing_else(rows, values, tmp_path):
    """Checkpointing and bfloat16 autocast are on, as by default, and the frozen layers below have no graph."""
    ends, data = [], datasets.Dataset.from_list(rows)
    for ours in (True, False):
        model, settings = make_tiny_model(), arguments(trl.SFTConfig, tmp_path, **values)
        assert settings.bf16 and settings.gradient_checkpointing
        if ours:
            callback, seen = cf.CoFiTuneCallback(REGION), graphs_below(model)
            given = {"callbacks": [callback], "optimizer_cls_and_kwargs": cf.masked_adamw(settings)}
        else:
            optimizer = cf.MaskedAdamW(cf.Region.parse(REGION).apply(model), lr=1e-2, betas=(0.9, 0.999),
                                       weight_decay=0.0, max_grad_norm=None)
            given = {"optimizers": (optimizer, None)}
        ends.append(trained(trl.SFTTrainer(model, settings, train_dataset=data, processing_class=tokenizer(), **given)))
    assert_equal(*ends)
    base = make_tiny_model().state_dict()
    changed = [name for name, tensor in base.items() if not torch.equal(ends[0][name], tensor)]
    assert changed == [f"model.layers.2.mlp.{role}_proj.weight" for role in ("gate", "up", "down")]
    assert seen and not any(seen)
    assert callback.frozen.tensors == len({tensor.data_ptr() for tensor in make_tiny_model().parameters()}) - 3


def test_region_anchor_mask_and_deltas_resume_bit_for_bit(anchor, tmp_path):
    """The best weights are loaded too, from a delta."""
    class RegionSFTTrainer(cf.DeltaCheckpoints, trl.SFTTrainer):
        pass

    masks = {"model.layers.2.mlp.up_proj.weight": torch.linspace(0, 1, 48)[:, None]}
    data = datasets.Dataset.from_list(PAIRS)

    def trainer(folder):
        model, settings = make_tiny_model(), arguments(
            trl.SFTConfig, folder, max_steps=4, eval_strategy="steps", eval_steps=2, save_strategy="steps",
            save_steps=2, load_best_model_at_end=True)
        return RegionSFTTrainer(
            model, settings, train_dataset=data, eval_dataset=data, processing_class=tokenizer(),
            callbacks=[cf.CoFiTuneCallback(REGION, cf.protect(model, anchor=anchor))],
            optimizer_cls_and_kwargs=cf.masked_adamw(settings, masks=masks, mask_mode="update"))

    whole = trainer(tmp_path / "whole")
    end = trained(whole)
    name = "model.layers.2.mlp.up_proj.weight"
    assert torch.equal(end[name][0], make_tiny_model().state_dict()[name][0])  # the factor of its first row is 0
    assert not torch.equal(end[name][1], make_tiny_model().state_dict()[name][1])
    logs = [entry for entry in whole.state.log_history if "anchor_kl" in entry]
    assert len(logs) == 4 and logs[-1]["anchor_kl"] > 0 and "mean_token_accuracy" in logs[-1]
    files = {path.name for path in (tmp_path / "whole" / "checkpoint-2").rglob("*") if path.is_file()}
    assert "delta.safetensors" in files
    assert not any(Path(file).suffix in (".pt", ".pth", ".bin") or file == "model.safetensors" for file in files)

    assert_equal(end, trained(trainer(tmp_path / "whole"), str(tmp_path / "whole" / "checkpoint-2")))


def test_dpo_with_shared_tensors_is_dpo_with_a_second_model(anchor, tmp_path):
    ends, logs, data = [], [], datasets.Dataset.from_list(PREFERENCES)
    for make in (cf.reference_model, lambda model, region: copy.deepcopy(model)):
        model = make_tiny_model()
        seen, callback = graphs_below(model), cf.CoFiTuneCallback(REGION, cf.protect(model, anchor=anchor))
        trainer = trl.DPOTrainer(
            model, make(model, REGION), arguments(trl.DPOConfig, tmp_path, gradient_accumulation_steps=2, max_steps=3),
            train_dataset=data, processing_class=tokenizer(), callbacks=[callback])
        ends.append(trained(trainer))
        logs.append([entry[key] for entry in trainer.state.log_history for key in ("loss", "rewards/margins")
                     if key in entry])
        assert seen and not any(seen), "DPOTrainer switches checkpointing on again after each forward of its reference"
    assert_equal(*ends)
    assert logs[0] == logs[1] and logs[0][-1] != 0

    model = make_tiny_model()
    with pytest.raises(cf.CofituneError, match="sync_ref_model is true"):
        trl.DPOTrainer(
            model, cf.reference_model(model, REGION), arguments(trl.DPOConfig, tmp_path, sync_ref_model=True),
            train_dataset=data, processing_class=tokenizer(), callbacks=[cf.CoFiTuneCallback(REGION)])


def test_the_page_shows_the_examples():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "how-to" / "trl.md").read_text(encoding="utf-8")
    for name in ("trl_sft", "trl_dpo"):
        script = (root / "examples" / f"{name}.py").read_text(encoding="utf-8")
        assert f"```python\n{script}```" in page
        assert len([line for line in script.splitlines() if line]) < 20
