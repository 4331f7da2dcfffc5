"""ChunkedLoss in a plain Trainer: the steps are those of transformers' own loss, without the logits of all tokens."""

from __future__ import annotations

import pytest
import torch
from integrations.trainer_cases import REGION, Keeps, Own, arguments, rows
from tiny import make_tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer

import cofitune_fast as cf


class Chunked(Keeps, cf.ChunkedLoss, Trainer):
    pass


class Widest(TorchDispatchMode):
    """Notes the most rows of logits (260 columns) that one tensor has."""

    rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.shape[-1:] == (260,) and result.shape != (32, 260):  # no weight
            self.rows = max(self.rows, result.numel() // 260)
        return result


def trained(kind, folder, **values):
    model = make_tiny_model("gemma2", final_logit_softcapping=2.0)
    args = arguments(folder, adam_epsilon=1e-3, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=2,
                     **values)
    trainer = kind(model, args, train_dataset=rows(), eval_dataset=rows(5, seed=1),
                   callbacks=[cf.CoFiTuneCallback(REGION)])
    with Widest() as widest:
        trainer.train()
    return trainer, widest.rows


@pytest.mark.parametrize("values", [{}, {"bf16": True}], ids=["float32", "autocast"])
def test_the_steps_and_evaluations_are_those_of_the_whole_logits(tmp_path, values):
    (theirs, all_rows), (ours, few) = (trained(kind, tmp_path, **values) for kind in (Own, Chunked))
    tolerance = {"rtol": 1e-4, "atol": 2e-6} if not values else {"rtol": 0.02, "atol": 5e-3}
    expected = dict(theirs.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], **tolerance)
    for one, other in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        for name in {"loss", "eval_loss", "grad_norm"} & set(one):
            assert one[name] == pytest.approx(other[name], rel=1e-3 if not values else 0.02), name
    labelled = max(int((batch["labels"][:, 1:] != -100).sum()) for _, batch in ours.seen)
    assert few <= max(labelled, 32) < all_rows


def test_outputs_that_are_asked_for_have_logits(tmp_path):
    trainer = Chunked(make_tiny_model(), arguments(tmp_path), train_dataset=rows())
    predictions = trainer.predict(rows(3)).predictions
    assert predictions.shape[0] == 3 and predictions.shape[2] == 260


@pytest.mark.parametrize(("values", "words"), [
    ({"label_smoothing_factor": 0.1}, r"args\.label_smoothing_factor is set"),
    ({"torch_compile": True, "torch_compile_backend": "eager"}, r"neither compiled nor wrapped"),
])
def test_other_losses_and_models_are_refused(tmp_path, values, words):
    with pytest.raises(cf.CofituneError, match=words):
        Chunked(make_tiny_model(), arguments(tmp_path, **values), train_dataset=rows()).train()
