"""Trainer's arguments: each is honoured or refused by name, before anything is loaded."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from tiny import make_tiny_model
from transformers import TrainingArguments

from cofitune_fast.data import Encoded
from cofitune_fast.errors import CofituneError
from cofitune_fast.regions import BaseInfo, Region
from cofitune_fast.training import CoFiTuneTrainer, Schedule, arguments, check_arguments, decisive, training_arguments
from cofitune_fast.training.arguments import HONOURED, OURS, REFUSED, WITHOUT_INFLUENCE, check_precision


@pytest.mark.parametrize(("values", "words"), [
    ({"optim": "adafactor"}, r"training\.optim is 'adafactor', which is not taken here: the steps are MaskedAdamW's"),
    ({"label_smoothing_factor": 0.1}, r"training\.label_smoothing_factor is 0\.1, which is not taken here"),
    ({"fp16": True}, r"training\.fp16 is True.*model\.dtype"),
    ({"use_liger_kernel": True}, r"training\.use_liger_kernel"),
    ({"torch_compile": True}, r"training\.torch_compile is True"),
    ({"auto_find_batch_size": True}, r"cofitune plan --fit"),
    ({"push_to_hub": True}, r"training\.push_to_hub"),
    ({"seed": -1}, r"training\.seed is -1; it must be at least 0 and below 2\*\*32"),
    ({"data_seed": 2**32}, r"training\.data_seed is 4294967296"),
    ({"num_train_epochs": float("nan")}, r"training\.num_train_epochs is nan; it must be a number above 0"),
    ({"weight_decay": float("nan")}, r"training\.weight_decay is nan"),
    ({"deepspeed": "zero.json"}, r"training\.deepspeed .*torchrun"),
    ({"include_for_metrics": ["loss"]}, r"only the loss can be measured"),
    ({"report_to": "wandb_"}, r"training\.report_to names 'wandb_', which transformers does not know"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, r"lr_scheduler_type is cosine_with_min_lr.*lr_scheduler_kwargs"),
    ({"lr_scheduler_type": "warmup_stable_decay"}, r"num_decay_steps"),
    ({"lr_scheduler_type": "reduce_lr_on_plateau"}, r"requires an eval strategy"),
    ({"eval_strategy": "sometimes"}, r"not accepted by transformers: sometimes is not a valid"),
    ({"load_best_model_at_end": True}, r"load_best_model_at_end needs evaluations; set training\.eval_strategy"),
    ({"early_stopping_patience": 2}, r"early_stopping_patience needs evaluations"),
    ({"early_stopping_patience": 0, "eval_strategy": "epoch"}, r"early_stopping_patience is 0; it must be a whole"),
    ({"early_stoping_patience": 1}, r"did you mean training\.early_stopping_patience\?"),
    ({"seed": "x"}, r"training\.seed is 'x'; it must be a whole number"),
    ({"max_steps": 0.5}, r"training\.max_steps is 0\.5; it must be a whole number"),
    ({"num_train_epochs": None}, r"training\.num_train_epochs is None; it must be given a value, or left out"),
    ({"adam_beta2": 2}, r"training\.adam_beta2 is 2; it must be at least 0 and below 1"),
    ({"max_grad_norm": -1}, r"training\.max_grad_norm is -1; it must not be negative"),
    ({"metric_for_best_model": "accuracy"}, r"training\.metric_for_best_model is 'accuracy'"),
    ({"greater_is_better": True}, r"the best model is the one of the smallest loss"),
    ({"save_strategy": "best"}, r"training\.save_strategy needs evaluations"),
    ({"train_sampling_strategy": "group_by_length"}, r"rows of like length come together"),
    ({"debug": "underflow_overflow"}, r"training\.debug"),
    ({"fsdp_config": {"min_num_params": 2000, "xla": False}}, r"training\.fsdp_config .* under torchrun"),
    ({"output_dir": "elsewhere"}, r"the folder of a run is `output`"),
    ({"bf16": "off"}, r"training\.bf16 is 'off'; it must be true or false"),
    ({"gradient_checkpointing": "yes"}, r"training\.gradient_checkpointing is 'yes'; it must be true or false"),
    ({"per_device_eval_batch_size": 0}, r"per_device_eval_batch_size is 0; it must be a whole number"),
])
def test_what_cannot_be_honoured_is_one_sentence(values, words):
    with pytest.raises(CofituneError, match=words) as caught:
        check_arguments(values)
    assert "\n" not in str(caught.value).strip()


def test_an_fsdp_config_of_zeros_is_taken_as_some_releases_fill_it_in():
    check_arguments({"fsdp_config": {"min_num_params": 0, "xla": False}})


def test_a_missing_tracker_is_named(monkeypatch):
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: ["tensorboard"])
    check_arguments({"report_to": ["tensorboard"]})
    with pytest.raises(CofituneError, match=r"report_to names wandb, which is not installed"):
        check_arguments({"report_to": ["tensorboard", "wandb"]})


@pytest.mark.parametrize(("values", "words"), [
    ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is 0.1, which is not taken here"),
    ({"optim": "sgd"}, "optim is 'sgd', which is not taken here"),
    ({"bf16": True}, "the model is loaded in float32"),
])
def test_arguments_made_by_hand_are_held_to_the_same_table(tmp_path, values, words):
    model = make_tiny_model()
    with pytest.raises(CofituneError, match=words):
        CoFiTuneTrainer(model, TrainingArguments(str(tmp_path), use_cpu=True, **values), Region.parse("ffn@3"),
                        [Encoded([4, 5, 6], 1)], base=BaseInfo.of(model, "tiny"), pad_token_id=0)


def test_every_argument_of_trainer_is_in_the_table_once():
    names = {field.name for field in fields(TrainingArguments) if field.init}
    assert names - {*REFUSED, *OURS, *HONOURED} == set()
    assert not (set(REFUSED) & OURS or set(REFUSED) & HONOURED or OURS & HONOURED)
    assert WITHOUT_INFLUENCE <= HONOURED
    assert decisive({"logging_steps": 1, "seed": 3}) == {"seed": 3}


def test_every_rule_is_about_an_argument_of_trainer_and_takes_its_default():
    defaults = TrainingArguments("unused")
    names = {field.name for field in fields(TrainingArguments) if field.init}
    for name, rule in REFUSED.items():
        if name in ("activation_checkpointing_kwargs", "ddp_static_graph") and name not in names:
            continue  # not in the oldest releases
        assert name in names
        value = getattr(defaults, name)
        given = getattr(value, "value", value)
        assert name == "accelerator_config" or rule.accepts(given), name


def test_what_means_the_same_here_is_taken():
    made = training_arguments({"optim": "adamw_torch", "remove_unused_columns": True}, "unused")
    assert made.learning_rate == 1e-4 and made.save_strategy == "no"


def test_the_best_model_is_saved_when_it_is_measured_and_by_its_loss():
    made = training_arguments({"eval_strategy": "steps", "eval_steps": 7, "load_best_model_at_end": True}, "unused")
    assert (made.save_strategy, made.save_steps, made.save_total_limit) == ("steps", 7, 1)
    assert made.metric_for_best_model == "loss" and made.greater_is_better is False


def test_bf16_is_the_models_own_dtype_and_never_autocast():
    assert training_arguments({"bf16": True}, "unused").bf16 is False
    check_precision({"bf16": True}, make_tiny_model(dtype=torch.bfloat16))
    check_precision({"bf16": False}, make_tiny_model())
    with pytest.raises(CofituneError, match=r"training\.bf16 is true, but the model is loaded in float32"):
        check_precision({"bf16": True}, make_tiny_model())


@pytest.mark.parametrize(("training", "rows", "expected"), [
    ({}, 20, {"learning_rate": 4e-4, "batches": 3, "epochs": 1.0, "steps": 3, "warmup_steps": 1, "seed": 42}),
    ({"num_train_epochs": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "warmup_steps": 2, "seed": 5},
     20, {"learning_rate": 1e-3, "batches": 3, "steps": 4, "warmup_steps": 2, "seed": 5, "data_seed": 5}),
    ({"max_steps": 5, "per_device_train_batch_size": 4, "data_seed": 9}, 10,
     {"batch_size": 4, "epochs": 2.0, "steps": 5, "data_seed": 9}),
])
def test_a_schedule_is_what_trainer_makes_of_the_arguments(training, rows, expected):
    schedule = Schedule.of(training, make_tiny_model(), rows)
    assert {key: getattr(schedule, key) for key in expected} == expected
