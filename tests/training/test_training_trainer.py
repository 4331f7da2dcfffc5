"""CoFiTuneTrainer in the hands of its users: their data sets, their arguments, and what it refuses in a sentence."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from test_training_run import rows, state
from tiny import make_tiny_model
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, TrainingArguments

from cofitune_fast.anchor import TaskRow
from cofitune_fast.data import Encoded
from cofitune_fast.errors import CofituneError
from cofitune_fast.memory import MemorySettings
from cofitune_fast.regions import BaseInfo, read_delta
from cofitune_fast.training import CoFiTuneTrainer, TrainOptions
from cofitune_fast.training.rows import encoded_rows
from cofitune_fast.training.trackers import tracked

REGION = "ffn.up+ffn.down@50%-100%"


def columns(count=8, seed=0):
    """The rows of `rows`, as a tokenised data set has them."""
    return [{"input_ids": row.input_ids, "attention_mask": [1] * len(row.input_ids),
             "labels": [-100] * row.response_start + row.input_ids[row.response_start :]} for row in rows(count, seed)]


def arguments(folder, **values):
    return TrainingArguments(str(folder), **{
        "use_cpu": True, "max_steps": 3, "learning_rate": 1e-2, "save_strategy": "no", "disable_tqdm": True,
        "per_device_train_batch_size": 4, **values})


def trainer(folder, model=None, data=None, values=(), **options):
    return CoFiTuneTrainer(model or make_tiny_model(), arguments(folder, **dict(values)), REGION,
                           columns() if data is None else data, **options)


def test_a_data_set_of_input_ids_and_labels_trains_as_encoded_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    ends = []
    for data in (rows(8), columns(), datasets.Dataset.from_list(columns()).with_format("torch")):
        model = make_tiny_model()
        trainer(tmp_path, model, data).train()
        ends.append(state(model))
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]) and torch.equal(tensor, ends[2][name]), name


def test_rows_are_read_as_transformers_means_them():
    read = encoded_rows([
        {"input_ids": [0, 0, 5, 6, 7], "attention_mask": [0, 0, 1, 1, 1], "labels": [-100, -100, -100, 6, 7]},
        {"input_ids": [5, 6, 7, 0, 0], "labels": [-100, 6, 7, -100, -100], "text": "a column that is not looked at"},
        {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, -100, 8, 9], "position_ids": [0, 1, 2, 3, 4]},
        {"input_ids": [5, 6], "labels": [5, 6]},
    ], "rows", 10)
    assert [(row.input_ids, row.response_start) for row in read] == [
        ([5, 6, 7], 1), ([5, 6, 7], 1), ([5, 6, 7, 8, 9], 1), ([5, 6], 0)]
    assert [type(row) for row in read] == [Encoded, Encoded, TaskRow, Encoded]
    assert read[2].learnt.tolist() == [True, False, True, True]


def test_labels_with_gaps_are_learnt_as_transformers_learns_them(tmp_path):
    data = [{"input_ids": [5, 6, 7, 8, 9, 4], "labels": [-100, 6, -100, 8, 9, -100]},
            {"input_ids": [9, 8, 4, 11, 12, 5], "labels": [-100, -100, 4, -100, -100, 5]}]
    model = make_tiny_model()
    batch = {key: torch.tensor([row[key] for row in data]) for key in ("input_ids", "labels")}
    expected = model(**batch).loss.item()
    measured = trainer(tmp_path, model, data, eval_dataset=data).evaluate()
    assert measured["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("data", "words"), [
    ([], r"train_dataset is empty"),
    (None, r"train_dataset is NoneType, .* give a list of rows"),
    (iter(columns()), r"train_dataset is list_iterator"),
    ({"a": columns()}, r"train_dataset holds several data sets"),
    ([{"text": "abc"}], r"train_dataset\[0\] has text, and a row needs input_ids and labels"),
    (["abc"], r"train_dataset\[0\] is str"),
    ([*columns(1), {"input_ids": [4, 5]}], r"train_dataset\[1\] has input_ids, and a row needs"),
    ([{"input_ids": torch.ones(1, 3), "labels": [1, 1, 1]}], r"input_ids that are no list of whole numbers"),
    ([{"input_ids": [4, 5, 6], "labels": [4, 5]}], r"3 input_ids, 2 labels"),
    ([{"input_ids": [4, 999], "labels": [4, 999]}], r"the token 999, and the model has tokens from 0 to 259"),
    ([{"input_ids": [4, 5, 6], "labels": [5, 6, -100]}], r"another token than its input_ids.*shifted by the trainer"),
    ([{"input_ids": [4, 5, 6], "labels": [-100] * 3}], r"only labels of -100"),
    ([{"input_ids": [4, 5, 6], "labels": [4, 5, 6], "position_ids": [0, 0, 1]}], r"give each text as a row of its own"),
])
def test_rows_that_cannot_be_read_are_named(tmp_path, data, words):
    with pytest.raises(CofituneError, match=words):
        CoFiTuneTrainer(make_tiny_model(), arguments(tmp_path), REGION, data)


OTHER = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


@pytest.mark.parametrize(("options", "words"), [
    ({"data_collator": DataCollatorWithPadding(None)}, r"does not take data_collator: rows are batched by the trainer"),
    ({"optimizers": (OTHER, None)}, r"does not take optimizers: .* TrainOptions\.optimizer_kind"),
    ({"optimizers": (None, torch.optim.lr_scheduler.ConstantLR(OTHER))}, r"args\.lr_scheduler_type"),
    ({"optimizer_cls_and_kwargs": (torch.optim.SGD, {})}, r"does not take optimizer_cls_and_kwargs"),
    ({"compute_loss_func": len}, r"the loss is the one that TrainOptions\.loss names"),
    ({"compute_metrics": len}, r"only the loss can be measured; score the model by cofitune evaluate"),
    ({"preprocess_logits_for_metrics": len}, r"no logits are kept"),
    ({"model_init": make_tiny_model}, r"give the model itself"),
    ({"callbacks": [EarlyStoppingCallback(2)]}, r"EarlyStoppingCallback needs evaluations"),
    ({"eval_dataset": {"a": rows(3)}}, r"eval_dataset holds several data sets"),
    ({"values": {"eval_strategy": "epoch"}}, r"give CoFiTuneTrainer an eval_dataset"),
    ({"values": {"dataloader_drop_last": True, "per_device_train_batch_size": 9}}, r"leaves none of 8 training rows"),
    ({"values": {"neftune_noise_alpha": 5.0}, "options": TrainOptions(memory=MemorySettings(packing="on"))},
     r"neftune_noise_alpha .* memory\.packing"),
])
def test_what_has_no_meaning_here_is_refused(tmp_path, options, words):
    with pytest.raises(CofituneError, match=words):
        trainer(tmp_path, **options)


def compiled():
    model = make_tiny_model()
    model.compile()
    return model


@pytest.mark.parametrize(("make", "words"), [
    (compiled, r"give the model as it was before torch\.compile"),
    (lambda: torch.nn.DataParallel(make_tiny_model()), r"wrapped in DataParallel; give model\.module"),
    (lambda: make_tiny_model().model, r"LlamaModel, which has no head"),
    (lambda: "a/path", r"model is str, and the trainer needs a causal language model"),
])
def test_a_model_that_is_not_bare_is_refused(tmp_path, make, words):
    with pytest.raises(CofituneError, match=words):
        trainer(tmp_path, make())


def test_it_does_not_predict_nor_push(tmp_path):
    made = trainer(tmp_path)
    for method in (made.predict, made.push_to_hub):
        with pytest.raises(CofituneError, match="does not"):
            method(rows(3))
    with pytest.raises(CofituneError, match="There is no complete checkpoint"):
        made.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("packing", ["on", "off"])
def test_other_rows_can_be_evaluated_before_between_and_after(tmp_path, packing):
    options = TrainOptions(memory=MemorySettings(packing=packing))
    made = trainer(tmp_path, options=options, eval_dataset=columns(5, 5))
    own = made.evaluate()["eval_loss"]
    assert made.evaluate(rows(5, 5))["eval_loss"] == pytest.approx(own, rel=1e-6)
    others = made.evaluate(columns(4, 9), metric_key_prefix="other")["other_loss"]
    made.train()
    assert made.kept_eval_loss == own  # of the trainer's own rows, and of no others
    assert made.evaluate(rows(4, 9), metric_key_prefix="other")["other_loss"] < others + 1
    assert made.evaluate()["eval_loss"] != own


def test_training_twice_goes_on(tmp_path):
    model = make_tiny_model()
    made = trainer(tmp_path, model, values={"max_steps": 4})
    losses = [made.train().training_loss for _ in range(2)]
    assert losses[1] < losses[0] and made.state.global_step == 4


def test_a_checkpoint_names_the_model_as_it_was_and_leaves_its_configuration(tmp_path):
    model = make_tiny_model()
    made = trainer(tmp_path, model, values={"save_strategy": "steps", "save_steps": 3})
    made.train()
    assert read_delta(tmp_path / "checkpoint-3").base == BaseInfo.of(make_tiny_model())
    assert model.config.use_cache is True


def test_noise_is_gone_after_a_training_that_failed(tmp_path):
    model = make_tiny_model()
    made = trainer(tmp_path, model, values={"neftune_noise_alpha": 5.0})
    made.compute_loss = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        made.train()
    assert not model.get_input_embeddings()._forward_hooks


def stand_in(monkeypatch, **members):
    wandb = ModuleType("wandb")
    wandb.errors = SimpleNamespace(Error=type("Error", (Exception,), {}))
    wandb.run, wandb.finished = None, 0
    for name, member in members.items():
        setattr(wandb, name, member)
    wandb.teardown = lambda: None
    wandb.finish = lambda: setattr(wandb, "finished", wandb.finished + 1)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return wandb


def test_a_run_of_wandb_ends_with_the_training_and_lies_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_DIR", raising=False)
    wandb = stand_in(monkeypatch)
    reporting = SimpleNamespace(report_to=["wandb"], output_dir=str(tmp_path / "out"))
    with tracked(reporting):
        wandb.run = "begun by Trainer"
        assert os.environ["WANDB_DIR"] == str(tmp_path / "out")
    assert wandb.finished == 1 and "WANDB_DIR" not in os.environ
    with tracked(reporting):  # a run that the caller had begun stays open
        pass
    assert wandb.finished == 1
    with pytest.raises(CofituneError, match=r"Reporting to wandb failed \(no key\); .* WANDB_MODE=offline"), \
            tracked(reporting):
        raise wandb.errors.Error("no key\n")
