"""Trainer's arguments: each is honoured or refused by name, before anything is loaded."""

from __future__ import annotations

from dataclasses import fields
from math import inf, nan

import pytest
import torch
from tiny import make_tiny_model
from transformers import TrainingArguments

from cofitune_fast.data import Encoded
from cofitune_fast.errors import CofituneError
from cofitune_fast.regions import BaseInfo, Region
from cofitune_fast.training import CoFiTuneTrainer, Schedule, arguments, check_arguments, decisive, training_arguments
from cofitune_fast.training.argument_rules import CHECKPOINT_MINUTES, HONOURED, OURS, REFUSED, WITHOUT_INFLUENCE
from cofitune_fast.training.arguments import check_precision

NEWER = {"activation_checkpointing_kwargs", "dataloader_multiprocessing_context"}  # than transformers 5.5


@pytest.mark.parametrize(("values", "words"), [
    ({"optim": "adafactor"}, r"training\.optim is 'adafactor', which is not taken here: the steps are MaskedAdamW's"),
    ({"label_smoothing_factor": 0.1}, r"training\.label_smoothing_factor is 0\.1, which is not taken here"),
    ({"fp16": True}, r"training\.fp16 is True.*model\.dtype"),
    ({"use_liger_kernel": True}, r"training\.use_liger_kernel"),
    ({"torch_compile": True}, r"training\.torch_compile is True"),
    ({"auto_find_batch_size": True}, r"cofitune plan --fit"),
    ({"push_to_hub": True}, r"training\.push_to_hub"),
    ({"seed": -1}, r"training\.seed is -1; it must be a whole number from 0 to 2\^32 - 1"),
    ({"data_seed": 2**32}, r"training\.data_seed is 4294967296"),
    ({"num_train_epochs": float("nan")}, r"training\.num_train_epochs is nan; it must be a number above 0"),
    ({"weight_decay": float("nan")}, r"training\.weight_decay is nan"),
    ({"deepspeed": "zero.json"}, r"training\.deepspeed .*torchrun"),
    ({"include_for_metrics": ["loss"]}, r"only the loss can be measured"),
    ({"report_to": "wandb_"}, r"training\.report_to names 'wandb_', which transformers does not know"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, r"lr_scheduler_type is cosine_with_min_lr.*lr_scheduler_kwargs"),
    ({"lr_scheduler_type": "warmup_stable_decay"}, r"num_decay_steps"),
    ({"lr_scheduler_type": "reduce_lr_on_plateau"}, r"requires an eval strategy"),
    ({"eval_strategy": "sometimes"}, r"eval_strategy is .sometimes.; choose one of no, steps, epoch"),
    ({"load_best_model_at_end": True}, r"load_best_model_at_end needs evaluations; set training\.eval_strategy"),
    ({"early_stopping_patience": 2}, r"early_stopping_patience needs evaluations"),
    ({"early_stopping_patience": 0, "eval_strategy": "epoch"}, r"early_stopping_patience is 0; it must be a whole"),
    ({"early_stoping_patience": 1}, r"did you mean training\.early_stopping_patience\?"),
    ({"seed": "x"}, r"training\.seed is 'x'; it must be a whole number"),
    ({"max_steps": 0.5}, r"training\.max_steps is 0\.5; it must be a whole number"),
    ({"num_train_epochs": None}, r"training\.num_train_epochs is None; it must be given a value, or left out"),
    ({"adam_beta2": 2}, r"training\.adam_beta2 is 2; it must be at least 0 and below 1"),
    ({"max_grad_norm": -1}, r"training\.max_grad_norm is -1; it must be a number of at least 0"),
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
    ({"gradient_accumulation_steps": 0}, r"gradient_accumulation_steps is 0; it must be a whole number of at least 1"),
    ({"seed": -1}, r"training\.seed is -1; it must be a whole number from 0"),
    ({"data_seed": 2**32}, r"training\.data_seed"),
    ({"num_train_epochs": nan}, r"num_train_epochs is nan; it must be a number above 0"),
    ({"num_train_epochs": inf}, r"num_train_epochs is inf"),
    ({"learning_rate": "1e-4"}, r"learning_rate is '1e-4'; it must be a number"),
    ({"max_steps": 0}, r"max_steps is 0; it must be a whole number of at least 1, or -1"),
    ({"warmup_steps": 1.5}, r"warmup_steps is 1\.5; it must be 0, a whole number of steps, or a fraction"),
    ({"warmup_ratio": 0.1}, r"Unknown key training\.warmup_ratio; write the fraction as training\.warmup_steps"),
    ({"evaluation_strategy": "epoch"}, r"write training\.eval_strategy"),
    ({"save_strategy": "steps", "save_steps": 0}, r"save_steps is 0; it must be a whole number of steps from 1"),
    ({"eval_strategy": "steps", "eval_steps": 0}, r"eval_steps is 0"),
    ({"eval_strategy": "steps", "eval_steps": 1.5}, r"eval_steps is 1\.5"),
    ({"eval_strategy": False}, r"eval_strategy is False; choose one of no, steps, epoch"),
    ({"eval_steps": 10}, r"eval_steps has no effect without evaluations; set training\.eval_strategy"),
    ({"eval_delay": 2}, r"eval_delay has no effect without evaluations"),
    ({"logging_steps": inf}, r"logging_steps is inf"),
    ({"log_level": "loud"}, r"log_level is 'loud'; choose one of .*passive"),
    ({"save_total_limit": 0}, r"save_total_limit is 0"),
    ({"torch_empty_cache_steps": 0}, r"torch_empty_cache_steps is 0"),
    ({"neftune_noise_alpha": -1}, r"neftune_noise_alpha is -1; it must be a number of at least 0"),
    ({"dataloader_num_workers": -1}, r"dataloader_num_workers is -1"),
    ({"dataloader_persistent_workers": True}, r"dataloader_persistent_workers is about worker processes"),
    ({"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "thread"}, r"choose one of fork, spawn"),
    ({"include_num_input_tokens_seen": "some"}, r"choose one of true, false, all, non_padding, no"),
    ({"lr_scheduler_type": "Cosine"}, r"lr_scheduler_type is 'Cosine'; choose one of linear, cosine"),
    ({"lr_scheduler_kwargs": "num_cycles=2"}, r"lr_scheduler_kwargs is 'num_cycles=2'; it must be keys with values"),
    ({"lr_scheduler_kwargs": {"cycles": 2}}, r"lr_scheduler_type is cosine, which needs other .* argument 'cycles'"),
    ({"lr_scheduler_type": "cosine_warmup_with_min_lr"}, r"One of min_lr or min_lr_rate should be set"),
    ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}}, r"lr_end .* must be smaller"),
    ({"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": -1}}, r"lr_scheduler_kwargs"),
    ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"a": 1}}, r"no effect on the scheduler constant"),
    ({"lr_scheduler_type": "constant", "warmup_steps": 5}, r"has no warm-up; leave it out, or choose constant_with"),
    ({"lr_scheduler_type": "greedy"}, r"greedy requires an eval strategy"),
    ({"gradient_checkpointing_kwargs": {"a": 1}}, r"torch\.utils\.checkpoint takes only"),
    ({"activation_checkpointing_kwargs": "off"}, r"activation_checkpointing_kwargs is 'off'; it must be keys"),
    ({"report_to": 5}, r"report_to is 5; it must be the name of a tracker"),
    ({"report_to": ["none", "all"]}, r"none and all each stand alone"),
    ({"eval_strategy": "steps", "save_strategy": "epoch", "load_best_model_at_end": True},
     r"requires the save and eval strategy to match"),
    ({"do_predict": True}, r"the command that is run decides"),
    ({"resume_from_checkpoint": 3}, r"resume_from_checkpoint is 3; it must be true or the folder"),
    ({"accelerator_config": "nowhere.json"}, r"training\.accelerator_config"),
])
def test_what_cannot_be_honoured_is_one_sentence(values, words):
    here = {field.name for field in fields(TrainingArguments)}
    if values.keys() & ({"warmup_ratio"} & here | NEWER - here):
        pytest.skip("this release of transformers has other arguments")
    with pytest.raises(CofituneError, match=words) as caught:
        check_arguments(values)
    assert "\n" not in str(caught.value).strip()


ODD = [None, False, True, 0, -1, 0.5, 10**30, nan, inf, "", "abc", "1e-4", "true", [1], {"a": 1}]


@pytest.mark.parametrize("name", [field.name for field in fields(TrainingArguments) if field.init])
def test_no_odd_value_of_any_argument_is_a_raw_error(name):
    for value in ODD:
        try:
            check_arguments({name: value})
        except CofituneError as error:
            assert f"training.{name}" in str(error) or "transformers: " in str(error)
            assert "\n" not in str(error)


@pytest.mark.parametrize(("values", "expected"), [
    ({"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}}, {}),
    ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1e-6, "power": 2.0}}, {}),
    ({"lr_scheduler_type": "inverse_sqrt"}, {}),
    ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}, {}),
    ({"lr_scheduler_type": "cosine_warmup_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}, {}),
    ({"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}}, {}),
    ({"lr_scheduler_type": "greedy", "eval_strategy": "epoch"}, {}),
    ({"lr_scheduler_type": "constant", "warmup_steps": 0}, {}),
    ({"save_steps": 7}, {"save_strategy": "steps", "save_steps": 7}),
    ({"save_steps": 7, "save_strategy": "no"}, {"save_strategy": "no"}),
    ({"eval_strategy": "steps", "eval_steps": 0.1, "eval_delay": 5}, {"eval_steps": 0.1}),
    ({"max_grad_norm": 0, "adam_epsilon": 0, "weight_decay": 0}, {"max_grad_norm": 0}),
    ({"include_num_input_tokens_seen": "non_padding"}, {}),
    ({"dataloader_num_workers": 1, "dataloader_prefetch_factor": 2, "dataloader_persistent_workers": True}, {}),
    ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}, {}),
    ({"report_to": ["none"]}, {"report_to": []}),
])
def test_what_can_be_honoured_is_taken(values, expected):
    made = training_arguments(values, "unused")
    assert {key: getattr(made, key) for key in expected} == expected


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
    ({"seed": -1}, "seed is -1"),
    ({"resume_from_checkpoint": "runs/checkpoint-2"}, "give it to CoFiTuneTrainer.train"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "One of min_lr or min_lr_rate"),
    ({"eval_on_start": True}, "give CoFiTuneTrainer an eval_dataset"),
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
    assert {*HONOURED, CHECKPOINT_MINUTES} >= WITHOUT_INFLUENCE
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
