"""Checkpoints, models, regions and steps that a Trainer mixes up: refused, or as if they had not been."""

from __future__ import annotations

import pytest
import torch
from integrations.trainer_cases import REGION, Keeps, Own, arguments, disturbed, protected, rows
from tiny import make_tiny_model
from torch.utils.data import IterableDataset
from transformers import Trainer

import cofitune_fast as cf

OTHER = "ffn.gate@50%-100%"


class Deltas(cf.DeltaCheckpoints, Own):
    pass


class Chunked(Keeps, cf.ChunkedLoss, Trainer):
    pass


def made(kind, folder, region, model=None, callback=None, **values):
    args = arguments(folder, max_steps=2, save_strategy="steps", save_steps=1, **values)
    return kind(model or make_tiny_model(), args, train_dataset=rows(),
                callbacks=[callback or cf.CoFiTuneCallback(region)])


def test_a_delta_of_another_region_is_refused_and_the_model_stays(tmp_path):
    made(Deltas, tmp_path, "ffn.up@50%-100%").train()
    trainer = made(Deltas, tmp_path, OTHER)
    with pytest.raises(cf.CofituneError, match=r"is of the region ffn\.up@50%-100%, and ffn\.gate@50%-100% is trained"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for parameter, expected in zip(trainer.model.parameters(), make_tiny_model().parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_a_whole_checkpoint_with_other_frozen_tensors_is_refused(tmp_path):
    made(Own, tmp_path, "ffn.up@50%-100%").train()
    with pytest.raises(cf.CofituneError, match="brought other frozen tensors"):
        made(Own, tmp_path, OTHER).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_callback_belongs_to_one_model(tmp_path):
    callback = cf.CoFiTuneCallback(REGION)
    made(Own, tmp_path, REGION, callback=callback)
    with pytest.raises(cf.CofituneError, match="make a callback for each model"):
        made(Own, tmp_path, REGION, callback=callback)


def test_a_region_that_a_reference_shares_is_refused(tmp_path):
    model = make_tiny_model()
    cf.reference_model(model, "ffn.up@50%-100%")
    with pytest.raises(cf.CofituneError, match=r"down_proj\.weight, which a reference of `reference_model` shares"):
        made(Own, tmp_path, "ffn.up+ffn.down@50%-100%", model)


class SevenRows(IterableDataset):
    def __iter__(self):
        return iter(rows(7))


def test_where_the_data_end_inside_a_step_it_is_protected_once(tmp_path):
    model = disturbed()
    held = protected(model, tmp_path / "anchor")
    Own(model, arguments(tmp_path, gradient_accumulation_steps=3, per_device_train_batch_size=1, max_steps=3),
        train_dataset=SevenRows(), callbacks=[cf.CoFiTuneCallback(REGION, held)]).train()
    assert held.calls == 3 and held.state_dict()["mean"][1] == 3


def test_an_evaluation_leaves_batches_without_labels_out(tmp_path):
    unlearnt = [{**row, "labels": [-100] * len(row["labels"])} for row in rows(2, seed=4)]
    losses = [kind(make_tiny_model(), arguments(tmp_path, per_device_eval_batch_size=2), train_dataset=rows()).evaluate(
        rows(4, seed=1) + unlearnt)["eval_loss"] for kind in (Own, Chunked)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_head_that_is_trained_later_is_trained(tmp_path):
    ends = []
    for kind in (Own, Chunked):
        model = make_tiny_model(tie_word_embeddings=False)
        model.lm_head.requires_grad_(False)
        trainer = kind(model, arguments(tmp_path), train_dataset=rows(), eval_dataset=rows(2))
        trainer.evaluate()
        model.lm_head.requires_grad_(True)
        trainer.train()
        ends.append(model.lm_head.weight.detach())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-3, atol=1e-4)
    assert not torch.equal(ends[1], make_tiny_model(tie_word_embeddings=False).lm_head.weight)
