"""What CoFiTuneTrainer overrides of transformers.Trainer: that it is still there, takes the same and is still called.

Much of it is private to transformers and may change in any release. An override that is no longer called would fail in
silence: checkpoints would hold the whole model, gradients would be clipped twice.
"""

from __future__ import annotations

import ast
import functools
import inspect
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_tiny_model
from transformers import Trainer

from cofitune_fast.data import Encoded
from cofitune_fast.regions import BaseInfo, Region
from cofitune_fast.training.evaluation import EvaluatesLoss
from cofitune_fast.training.run import training_arguments
from cofitune_fast.training.saving import SavesDeltas, SavesRuns
from cofitune_fast.training.trainer import CoFiTuneTrainer

REGION = Region.parse("ffn.up+ffn.down@50%-100%")
CLASSES = (SavesDeltas, SavesRuns, EvaluatesLoss, CoFiTuneTrainer)
METHODS = {name: value for kind in CLASSES for name, value in vars(kind).items()
           if inspect.isfunction(value) and not name.startswith("__")}
OVERRIDES = sorted(name for name in METHODS if hasattr(Trainer, name))
ONLY_REFUSE = {"predict", "push_to_hub"}


def called_by_itself() -> set[str]:
    """The methods that CoFiTuneTrainer's own code calls: they have a use whatever Trainer does."""
    sources = [ast.parse(inspect.getsource(kind)) for kind in CLASSES]
    return {node.attr for source in sources for node in ast.walk(source)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"}


def refusal(ours, theirs) -> str | None:
    """Why a call that `theirs` takes is not taken by `ours`, in words, or None; both are functions of self."""
    own, parameters = inspect.signature(ours), list(inspect.signature(theirs).parameters.values())
    plain = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    named = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
    calls = {
        "by position": ([None] * len(plain), named),
        "by name": ([None], {**{p.name: None for p in plain[1:]}, **named}),
        "of what is needed": ([None for p in plain if p.default is p.empty], {}),
    }
    for arguments, keywords in calls.values():
        try:
            own.bind(*arguments, **keywords)
        except TypeError as error:
            return f"{ours.__qualname__}{own} does not take a call of {inspect.signature(theirs)}: {error}"
    return None


def test_the_private_ones_are_found():
    assert {"_save", "_load_rng_state", "_clip_grad_norm"} <= set(OVERRIDES)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_is_trainers_or_has_a_use_of_its_own(name):
    assert hasattr(Trainer, name) or name in called_by_itself(), \
        f"transformers.Trainer has no {name}: nobody calls ours. See what took its place."


@pytest.mark.parametrize("name", OVERRIDES)
def test_an_override_takes_what_trainers_method_takes(name):
    assert refusal(METHODS[name], inspect.getattr_static(Trainer, name)) is None


@pytest.mark.parametrize(("ours", "fits"), [
    (lambda self, *args, **kwargs: None, True),
    (lambda self, a, b=None: None, True),
    (lambda self, a, b=None, more=1: None, True),
    (lambda self, a: None, False),
    (lambda self, a, c=None: None, False),
    (lambda self, a, b: None, False),
    (lambda self, a, b=None, *, more: None, False),
])
def test_a_signature_that_does_not_fit_is_told_apart(ours, fits):
    def theirs(self, a, b=None):
        pass

    assert (refusal(ours, theirs) is None) == fits


def test_every_override_is_called_in_a_training_that_saves_resumes_and_ends_with_its_best_model(tmp_path, monkeypatch):
    called = set()

    def noting(name, method):
        @functools.wraps(method)
        def wrapper(*args, **kwargs):
            called.add(name)
            return method(*args, **kwargs)
        return wrapper

    for name in OVERRIDES:
        monkeypatch.setattr(CoFiTuneTrainer, name, noting(name, METHODS[name]))
    model = make_tiny_model()
    arguments = training_arguments({
        "learning_rate": 1e-2, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 2,
        "logging_steps": 1, "max_steps": 4, "use_cpu": True, "eval_strategy": "steps", "eval_steps": 2,
        "load_best_model_at_end": True, "save_total_limit": None,
    }, tmp_path)
    rows = [Encoded([5 + i, 9, 7, 8 + i, 6], 2) for i in range(8)]
    trainer = CoFiTuneTrainer(model, arguments, REGION, rows, base=BaseInfo.of(model, "tiny"), pad_token_id=0,
                              eval_dataset=rows[:3])
    trainer.train()
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    trainer.save_model(str(tmp_path / "final"))
    assert sorted(set(OVERRIDES) - called) == sorted(ONLY_REFUSE)
    best, final = (load_file(Path(folder) / "delta.safetensors")
                   for folder in (trainer.state.best_model_checkpoint, tmp_path / "final"))
    assert best.keys() == final.keys() and all(torch.equal(best[name], final[name]) for name in best)
