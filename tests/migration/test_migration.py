"""Other tools' configurations become ours: every key is settled, and the result loads as a configuration."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from tiny import make_tiny_model, make_tiny_tokenizer
from transformers import TrainingArguments

from cofitune_fast.commands.keys import KEYS
from cofitune_fast.config import load_config
from cofitune_fast.errors import CofituneError
from cofitune_fast.migration import TOOLS, as_yaml, import_config
from cofitune_fast.migration.draft import Draft
from cofitune_fast.regions import Region

AXOLOTL = """
base_model: OWNER/model
datasets:
  - path: OWNER/rows
    name: main
    type: chat_template
    field_messages: conversations
    message_property_mappings: {role: from, content: value}
val_set_size: 0.05
output_dir: out
sequence_len: 2048
sample_packing: true
wandb_project: mine
wandb_entity:
micro_batch_size: 2
num_epochs: 3
learning_rate: "2e-5"
optimizer: paged_adamw_8bit
lr_scheduler: rex
warmup_ratio: 0.1
bf16: true
gradient_checkpointing: yes
saves_per_epoch: 1
evals_per_epoch: 2
use_eaft: true
deepspeed: zero3.json
seed: 7
train_on_inputs: false
made_up: 3
"""


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with a tiny qwen2 of 6 layers, whose q, k and v have biases, and a head of its own."""
    folder = tmp_path_factory.mktemp("base")
    for owner in (make_tiny_model("qwen2", num_hidden_layers=6, tie_word_embeddings=False), make_tiny_tokenizer()):
        owner.save_pretrained(folder)
    return folder


def drafted(folder: Path, text: str, name: str = "given.yaml", **options) -> Draft:
    """Import a text, and load what comes out as a configuration."""
    (folder / name).write_text(text, encoding="utf-8")
    draft = import_config(folder / name, **options)
    (folder / "ours.yaml").write_text(as_yaml(draft), encoding="utf-8")
    loaded = load_config(folder / "ours.yaml").model_dump()
    for ours, value in draft.settings.items():
        section, _, key = ours.partition(".")
        assert (loaded[section][key] if key else loaded[section]) == value, ours
    return draft


def kinds(draft: Draft) -> dict[str, str]:
    return {note.key: note.kind for note in draft.notes}


def test_axolotl_is_read_key_by_key_in_its_order(tmp_path):
    draft = drafted(tmp_path, AXOLOTL)
    assert list(draft.settings.items()) == [
        ("model.path", "OWNER/model"),
        ("data.train", "OWNER/rows:main:train[:95%]"),
        ("data.valid", "OWNER/rows:main:train[95%:]"),
        ("output", "out"),
        ("data.max_length", 2048),
        ("training.report_to", "wandb"),
        ("training.per_device_train_batch_size", 2),
        ("training.num_train_epochs", 3),
        ("training.learning_rate", 2e-5),
        ("storage", "int8"),
        ("training.warmup_steps", 0.1),
        ("model.dtype", "bfloat16"),
        ("training.gradient_checkpointing", True),
        ("training.save_strategy", "epoch"),
        ("training.eval_strategy", "steps"),
        ("training.eval_steps", round(1 / 6, 6)),
        ("loss", "eaft"),
        ("training.seed", 7),
        ("region", "full"),
        ("training.adam_beta2", 0.999),
        ("anchor.weight", 0.0),
    ]
    found = kinds(draft)
    assert list(found)[:5] == ["base_model", "datasets", "val_set_size", "output_dir", "sequence_len"]
    assert {key: found[key] for key in ("lr_scheduler", "deepspeed", "made_up", "sample_packing", "train_on_inputs",
                                        "optimizer", "no adam_beta2")} == {
        "lr_scheduler": "not supported", "deepspeed": "not supported", "made_up": "not known",
        "sample_packing": "changed", "train_on_inputs": "taken", "optimizer": "changed", "no adam_beta2": "default"}
    text = as_yaml(draft)
    assert "per_device_train_batch_size: 2  # micro_batch_size\n" in text and "#   made_up: 3\n" in text
    assert next(note for note in draft.notes if note.key == "lr_scheduler").text.startswith(
        "training.lr_scheduler_type is 'rex'; choose one of")  # the sentence of our own check


def test_an_adapter_becomes_our_region_with_our_rate_and_the_anchor(tmp_path):
    draft = drafted(tmp_path, "base_model: OWNER/m\nadapter: qlora\nload_in_4bit: true\nlora_r: 8\n"
                              "learning_rate: 2e-4\nevals_per_epoch: 1\nmicro_batch_size: 1\n")
    assert draft.settings["region"] == "ffn@40%-75%" and draft.settings["model.quantize"] == "nf4"
    assert not {"training.learning_rate", "anchor.weight", "training.eval_strategy"} & draft.settings.keys()
    assert kinds(draft)["learning_rate"] == "not supported" and kinds(draft)["lora_r"] == "not needed"


def test_llama_factory_is_read_with_its_list_of_data_sets_and_its_defaults(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({
        "turns": {"hf_hub_url": "OWNER/rows", "subset": "en", "formatting": "sharegpt"},
        "pairs": {"file_name": "pairs.json", "columns": {"prompt": "question", "response": "answer"}},
        "odd": {"file_name": "odd.json", "columns": {"prompt": "frage", "response": "antwort"}},
        "better": {"file_name": "better.json", "ranking": True},
    }))
    text = ("model_name_or_path: OWNER/m\nstage: sft\nfinetuning_type: full\ndataset: {}\neval_dataset: pairs\n"
            "bf16: true\n")
    draft = drafted(tmp_path, text.format("turns") + "max_samples: 5\nuse_dft_loss: true\n")
    assert draft.settings == {
        "model.path": "OWNER/m", "region": "full", "data.train": "OWNER/rows:en:train",
        "data.valid": str(tmp_path / "data" / "pairs.json"), "model.dtype": "bfloat16", "data.limit": 5, "loss": "dft",
        "data.max_length": 2048, "training.learning_rate": 5e-5, "training.num_train_epochs": 3,
        "training.lr_scheduler_type": "linear", "training.warmup_steps": 0, "training.adam_beta2": 0.999,
        "training.gradient_checkpointing": True, "anchor.weight": 0.0,
    }
    for names, words in (("turns, pairs", "takes one file"), ("odd", "frage, antwort are not read"),
                         ("better", "preferences"), ("nowhere", "no entry of that name")):
        draft = drafted(tmp_path, text.format(names))
        assert "data.train" not in draft.settings
        assert words in next(note.text for note in draft.notes if note.key == "dataset"), names


SCRIPT = r"""
#!/bin/bash
# don't --run anything
MODEL=OWNER/m
touch made
NPROC_PER_NODE=2 \
swift sft --model $MODEL --tuner_type full \
    --dataset 'OWNER/rows:en#500' --split_dataset_ratio=0 \
    --learning_rate 1e-5 --per_device_train_batch_size 4 --packing \
    --max_length $(touch made; echo 3) --save_total_limit 2 > log  # a comment's quote
swift infer --model other
"""


def test_the_command_line_of_ms_swift_is_read_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draft = drafted(tmp_path, SCRIPT, "sft.sh")
    assert draft.tool == "ms-swift" and not Path("made").exists()
    assert draft.settings == {
        "model.path": "OWNER/m", "region": "full", "data.train": "OWNER/rows:en:train", "data.limit": 500,
        "training.learning_rate": 1e-5, "training.per_device_train_batch_size": 4, "training.save_total_limit": 2,
        "training.gradient_accumulation_steps": 2, "training.num_train_epochs": 3, "training.weight_decay": 0.1,
        "training.warmup_steps": 0, "training.gradient_checkpointing": True, "data.max_length": 2048,
        "anchor.weight": 0.0,
    }
    assert kinds(draft)["max_length"] == kinds(draft)["2 processes"] == "not supported"
    assert kinds(draft)["packing"] == "changed"


_FULL = "--stage sft --model_name_or_path m --finetuning_type full"
PROCESSES = [
    (f"torchrun --nproc_per_node 4 --nnodes=2 src/train.py {_FULL}", 8),
    (f"deepspeed --num_gpus=4 src/train.py --deepspeed ds.json {_FULL}", 4),
    (f"accelerate launch --config_file a.yaml --num_processes 4 src/train.py {_FULL}", 4),
    (f"accelerate launch --config_file a.yaml src/train.py {_FULL}", None),
    (f"export CUDA_VISIBLE_DEVICES=0,1\nllamafactory-cli train {_FULL}", 2),
    (f"llamafactory-cli train {_FULL}", None),
    ("torchrun --nproc_per_node $GPUS swift/cli/sft.py --model m --tuner_type full", None),
    ("CUDA_VISIBLE_DEVICES=0,1 swift sft --model m --tuner_type full", 1),
]


@pytest.mark.parametrize(("text", "processes"), PROCESSES)
def test_the_number_of_processes_is_read_or_asked_for(tmp_path, text, processes):
    draft = drafted(tmp_path, text, "a.sh")
    noted = [note.key for note in draft.notes if "process" in note.key]
    assert draft.processes == processes
    assert noted == ([] if processes == 1 else [f"{processes} processes" if processes else "number of processes"])


_A = "base_model: {}\nlearning_rate: 1e-4\nmicro_batch_size: 1\nunfrozen_parameters:\n"
_L = "model_name_or_path: {}\nfinetuning_type: freeze\n"
_S = "swift sft --model {} --tuner_type full "
REGIONS = [
    (_A + "  - model.layers.[2-3].mlp.*\n", "ffn@2-3", "", ""),
    (_A + "  - ^lm_head\n  - model.layers.[1-9].mlp.down_proj\n  - model.layers.4.self_attn.(q|k|v|o)_proj.weight\n",
     "mha@4;ffn.down@1-5", "lm_head.weight", "self_attn.k_proj.bias"),
    (_A + "  - mlp\n", None, "nothing at all", ""),  # a pattern matches from the beginning of a name
    (_A + "  - lm_head\n", None, "lm_head.weight", ""),
    (_A + "  - model\n  - lm_head\n", "full", "", ""),
    (_A + "  - (a+)+$\n", None, "repeats a repetition", ""),
    (_L, "all@4-5", "input_layernorm.weight (2 layers)", ""),
    (_L + "freeze_trainable_layers: -3\nfreeze_trainable_modules: mlp\n", "ffn@0-2", "", ""),
    (_L + "freeze_trainable_modules: self_attn\nfreeze_extra_modules: lm_head\n", "mha@4-5", "lm_head.weight, 8,320",
     ""),
    (_L + "freeze_trainable_modules: mpl\n", None, "no module mpl", ""),
    (_S + "--freeze_parameters_ratio 1 --trainable_parameters model.layers.4.mlp model.layers.5.mlp", "ffn@4-5", "",
     ""),
    (_S + r"--freeze_parameters_ratio 1 --trainable_parameters_regex 'layers\.[23]\.mlp\.(up|down)'",
     "ffn.up+ffn.down@2-3", "", ""),
    (_S + "--freeze_parameters model.embed lm_head model.layers.0 model.layers.1", "all@2-5", "model.norm.weight", ""),
]


@pytest.mark.parametrize(("text", "region", "frozen", "also"), REGIONS)
def test_names_of_parameters_become_a_region_and_what_differs_is_said(base, tmp_path, text, region, frozen, also):
    draft = drafted(tmp_path, text.format(base), "given.sh" if text.startswith("swift") else "given.yaml")
    assert draft.settings.get("region") == (region and str(Region.parse(region)))
    said = " ".join(note.text for note in draft.notes if note.ours == "region" or (region is None and note.text))
    assert frozen in said and also in said
    exact = region is not None and not frozen and not also
    assert not exact or any(note.kind == "taken" and note.ours == "region" for note in draft.notes)


def test_without_the_models_configuration_no_region_is_guessed(tmp_path, base):
    draft = drafted(tmp_path, _L.format("./nowhere"))
    assert "region" not in draft.settings and "No model at ./nowhere" in str(draft.notes)
    assert drafted(tmp_path, _L.format("./nowhere"), model=str(base)).settings["region"] == "all@4-5"


REFUSED = [
    ("a.yaml", "base_model: m\nrl: dpo\n", "asks for rl: dpo"),
    ("a.yaml", "model_name_or_path: m\nstage: rm\ntemplate: x\n", "asks for stage: rm"),
    ("a.sh", "swift rlhf --rlhf_type dpo --model m --dataset d", "asks for rlhf_type: dpo"),
    ("a.yaml", "base_model: m\nmodel_name_or_path: m\n", "may be of Axolotl or LLaMA-Factory"),
    ("a.yaml", "learning_rate: 1\n", "has no key by which"),
    ("a.yaml", "- 1\n", "holds no keys with values"),
    ("a.yaml", "base_model: [\n", "is not valid YAML at line 2"),
    ("a.yaml", "base_model: m\nbase_model: n\n", "the key base_model stands twice"),
    ("a.yaml", 'base_model: "m\\0"\n', "holds a NUL"),
    ("a.yaml", "base_model: m\nsequence_len: long\n", "data.max_length in what"),
    ("a.yaml", "[" * 200 + "]" * 200, "is nested too deeply"),
    ("a.yaml", "x" * (1 << 20) + "xx", "is larger than 1 MiB"),
    ("a.json", "{", "a.json"),
    ("a.sh", "swift sft --model 'm", "a quotation mark is never closed"),
    ("a.sh", "echo hello\n", "holds no command of swift"),
    ("a.sh", "llamafactory-cli train x.yaml\n", "with the configuration x.yaml; import that file"),
    ("a.sh", "torchrun --nproc_per_node 8 src/train.py y.yaml\n", "starts LLaMA-Factory with the configuration y.yaml"),
    ("a.sh", "accelerate launch -m axolotl.cli.train c.yml\n", "starts Axolotl with the configuration c.yml; import "),
    ("a.yaml", "compute_environment: x\ndistributed_type: FSDP\n", "how accelerate starts processes"),
    ("a.yaml", "model_name_or_path: m\ndataset_name: d\n", "a configuration of TRL"),
]


@pytest.mark.parametrize(("name", "text", "words"), REFUSED)
def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(CofituneError) as refusal:
        import_config(tmp_path / name)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_nothing_in_a_comment_becomes_a_setting(tmp_path):
    draft = drafted(tmp_path, json.dumps({
        "base_model": "a # b: \u2028c\nregion: full", "wandb_name": "off", "micro_batch_size": 1,
        "deepspeed": "x\nregion: full\u0085loss: dft", "odd\nstorage: bf16": "1", "output_dir": "- ü'\"",
        "adapter": "lora",
    }, ensure_ascii=False), "given.json")
    assert draft.settings["model.path"] == "a # b: \u2028c\nregion: full" and draft.settings["region"] == "ffn@40%-75%"
    assert draft.settings["training.run_name"] == "off" and draft.settings["output"] == "- ü'\""


def test_the_tables_name_keys_of_ours():
    known = {*KEYS, *(f"training.{field.name}" for field in fields(TrainingArguments)),
             "training.early_stopping_patience"}
    for tool in TOOLS.values():
        targets = {target for target in tool.table.values() if isinstance(target, str)} | tool.defaults.keys()
        assert targets <= known, tool.name
