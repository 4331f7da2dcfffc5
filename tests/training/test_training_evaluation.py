"""Evaluation during training: the loss of the evaluation rows, early stopping, and the best weights at the end."""

from __future__ import annotations

import pytest
import torch
from test_training_run import REGION, rows, run, state
from tiny import make_tiny_model
from transformers import TrainerCallback

from cofitune_fast.errors import CofituneError
from cofitune_fast.regions import BaseInfo
from cofitune_fast.training import CoFiTuneTrainer, MemorySettings, TrainOptions, training_arguments

EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "num_train_epochs": 3}


class Losses(TrainerCallback):
    """The evaluation losses of a run, and the weights at each."""

    def __init__(self):
        self.values, self.states, self.in_training_mode = [], [], []

    def on_evaluate(self, args, state_, control, metrics=None, model=None, **kwargs):
        self.values.append(metrics["eval_loss"])
        self.states.append(state(model))


@torch.no_grad()
def mean_loss(model, data):
    """Cross entropy of the response tokens by the model's own logits, in float64."""
    total, tokens = 0.0, 0
    for row in data:
        ids = torch.tensor([row.input_ids])
        log_q = model(ids).logits[0].double().log_softmax(-1)
        start = max(row.response_start, 1)
        total -= log_q[torch.arange(start - 1, len(row.input_ids) - 1), ids[0, start:]].sum().item()
        tokens += len(row.input_ids) - start
    return total / tokens


@pytest.mark.parametrize("packing", ["on", "off"])
@pytest.mark.parametrize("cache", ["auto", "off"])
def test_the_loss_is_the_mean_over_the_response_tokens_of_all_rows(tmp_path, packing, cache):
    model, losses, held_out = make_tiny_model(), Losses(), rows(7, seed=5)
    result = run(model, tmp_path, training={**EVERY_STEP, "per_device_eval_batch_size": 3}, eval_rows=held_out,
                 callbacks=[losses], memory=MemorySettings(packing=packing, prefix_cache=cache))
    assert len(losses.values) == result.steps
    for value, weights in zip(losses.values, losses.states, strict=True):
        other = make_tiny_model()
        other.load_state_dict(weights, strict=False)
        assert value == pytest.approx(mean_loss(other, held_out), rel=1e-5)
    assert result.eval_loss == losses.values[-1] and result.best_step is None


def test_evaluating_does_not_change_the_training(tmp_path):
    plain, watched = make_tiny_model(), make_tiny_model()
    run(plain, tmp_path / "plain", training={"num_train_epochs": 3})
    run(watched, tmp_path / "watched", training=EVERY_STEP, eval_rows=rows(5, seed=5))
    for name, tensor in state(plain).items():
        assert torch.equal(tensor, state(watched)[name]), name


def test_the_best_weights_are_there_at_the_end(tmp_path):
    model, losses = make_tiny_model(), Losses()
    result = run(model, tmp_path, eval_rows=rows(5, seed=5), callbacks=[losses],
                 training={**EVERY_STEP, "learning_rate": 0.2, "load_best_model_at_end": True})
    best = min(range(len(losses.values)), key=losses.values.__getitem__)
    assert best < len(losses.values) - 1  # at this rate the loss rises again, so that there is something to show
    assert (result.best_step, result.eval_loss) == (best + 1, losses.values[best])
    for name, tensor in losses.states[best].items():
        assert torch.equal(tensor, state(model)[name]), name


def test_training_stops_early(tmp_path):
    losses = Losses()
    result = run(make_tiny_model(), tmp_path, eval_rows=rows(5, seed=5), callbacks=[losses],
                 training={**EVERY_STEP, "num_train_epochs": 30, "learning_rate": 0.2, "early_stopping_patience": 2})
    best = min(range(len(losses.values)), key=losses.values.__getitem__)
    assert result.steps == best + 1 + 2 < 90


def test_plateau_scheduler_follows_the_evaluation_loss(tmp_path):
    rates = []

    class Rates(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            rates.extend([logs["learning_rate"]] if "learning_rate" in logs else [])

    run(make_tiny_model(), tmp_path, eval_rows=rows(5, seed=5), callbacks=[Rates()],
        training={**EVERY_STEP, "num_train_epochs": 8, "learning_rate": 0.2, "logging_steps": 1,
                  "lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 1}})
    assert rates[0] == 0.2 and rates[-1] < 0.2


def test_without_rows_it_is_refused(tmp_path):
    with pytest.raises(CofituneError, match=r"need rows: set data\.valid"):
        run(make_tiny_model(), tmp_path, training=EVERY_STEP)


def test_the_trainer_alone_evaluates_before_it_trains(tmp_path):
    model, held_out = make_tiny_model(), rows(5, seed=5)
    arguments = training_arguments({"use_cpu": True, "learning_rate": 1e-2}, tmp_path)
    trainer = CoFiTuneTrainer(model, arguments, REGION, rows(), TrainOptions(), base=BaseInfo.of(model, "tiny"),
                              pad_token_id=0, eval_dataset=held_out)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(mean_loss(model, held_out), rel=1e-5)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(mean_loss(model, held_out), rel=1e-5)
    with pytest.raises(CofituneError, match="give CoFiTuneTrainer an eval_dataset"):
        CoFiTuneTrainer(model, arguments, REGION, rows(), base=BaseInfo.of(model, "tiny"), pad_token_id=0).evaluate()
