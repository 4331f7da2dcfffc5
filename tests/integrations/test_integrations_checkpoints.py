"""A user's own Trainer with the callback goes on from its checkpoints bit for bit; DeltaCheckpoints hold no pickle."""

from __future__ import annotations

import pytest
import torch
from integrations.trainer_cases import REGION, Own, arguments, disturbed, protected, rows
from tiny import make_tiny_model

import cofitune_fast as cf
from cofitune_fast.regions import read_delta


class Mine(cf.DeltaCheckpoints, Own):
    pass


def trained(kind, folder, resume=None, *, data=None, optimizer=cf.masked_adamw, **values):
    """Train a model with dropout, so that the random states matter too."""
    model = disturbed(attention_dropout=0.2)
    args = arguments(folder, max_steps=6, save_strategy="steps", save_steps=2, gradient_accumulation_steps=2,
                     logging_steps=2, **values)
    chosen = {} if optimizer is None else {"optimizer_cls_and_kwargs": optimizer(args)}
    trainer = kind(model, args, train_dataset=data or rows(20), eval_dataset=rows(4, seed=1), **chosen,
                   callbacks=[cf.CoFiTuneCallback(REGION, protected(model, folder / "anchor"))])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(("kind", "optimizer"), [(Mine, cf.masked_adamw), (Mine, None), (Own, cf.masked_adamw)],
                         ids=["deltas", "deltas, torch's AdamW", "Trainer's own checkpoints"])
def test_a_resumed_training_is_the_one_without_a_break_bit_for_bit(tmp_path, kind, optimizer):
    whole = trained(kind, tmp_path, optimizer=optimizer)
    again = trained(kind, tmp_path, str(tmp_path / "checkpoint-2"), optimizer=optimizer)
    assert again.seen[0][0] == 2 and len(again.seen) < len(whole.seen)
    other = dict(again.model.named_parameters())
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, other[name]), name
    logged = [[one for one in trainer.state.log_history if one["step"] > 2 and "loss" in one]
              for trainer in (whole, again)]
    assert logged[0] == logged[1] and len(logged[0]) == 2 and all("anchor_kl" in one for one in logged[0])


def test_its_checkpoints_are_deltas_without_pickle_of_which_the_best_and_the_last_stay(tmp_path):
    # The loss of an evaluation grows once the model has learnt the training rows by heart.
    trainer = trained(Mine, tmp_path, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
                      save_total_limit=1, metric_for_best_model="loss", greater_is_better=True)
    best = trainer.state.best_global_step
    assert best == 2
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{best}"]
    folder = tmp_path / f"checkpoint-{best}"
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "checkpoint.json", "cofitune.json", "delta.safetensors", "optimizer.safetensors",
        "trainer_state.json", "training_state.json"}
    assert read_delta(folder).base.fingerprint == cf.BaseInfo.of(disturbed()).fingerprint
    loaded = disturbed()
    cf.load_delta(loaded, folder)
    for (name, parameter), other in zip(loaded.named_parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(parameter, other), name
    trainer.save_model(str(tmp_path / "final"))
    assert read_delta(tmp_path / "final").parameters == read_delta(folder).parameters


def test_the_last_checkpoint_that_is_whole_is_found(tmp_path):
    whole = trained(Mine, tmp_path, save_total_limit=2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    (tmp_path / "checkpoint-6" / "delta.safetensors").write_bytes(b"")
    again = trained(Mine, tmp_path, True)
    assert again.seen[0][0] == 4 and again.run_name == whole.run_name
    assert all(map(torch.equal, whole.model.parameters(), again.model.parameters()))


def test_it_says_what_it_needs(tmp_path):
    with pytest.raises(cf.CofituneError, match=r"callbacks=\[CoFiTuneCallback"):
        Mine(make_tiny_model(), arguments(tmp_path), train_dataset=rows()).train()
