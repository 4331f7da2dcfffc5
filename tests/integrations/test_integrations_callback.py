"""CoFiTuneCallback in a plain Trainer: its steps are those of a loop written by hand, and it refuses the rest."""

from __future__ import annotations

import pytest
import torch
from accelerate.state import GradientState
from integrations.trainer_cases import REGION, SETTINGS, Own, arguments, disturbed, mean_kl, protected, rows
from tiny import make_tiny_model

import cofitune_fast as cf
from cofitune_fast.models.fingerprint import tensor_digests
from cofitune_fast.regions import read_delta

CLIP, DECAY, EPSILON = 0.05, 0.1, 1e-3  # eps does not blow up the last bits of small gradients


def by_the_book(model, seen, anchor):
    """Train `model` by torch's AdamW on NLL + weight * KL of the micro-batches `seen`; returns the steps' figures."""
    params = [parameter for _, parameter in cf.Region.parse(REGION).apply(model)]
    optimizer = torch.optim.AdamW(params, lr=1e-2, betas=(0.9, 0.999), eps=EPSILON, weight_decay=DECAY)
    figures = []
    for step in range(seen[-1][0] + 1):
        batches = [batch for number, batch in seen if number == step]
        items = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        model.train()
        nll = sum(torch.nn.functional.cross_entropy(
            model(batch["input_ids"], batch["attention_mask"]).logits[:, :-1].flatten(0, 1),
            batch["labels"][:, 1:].flatten(), reduction="sum") for batch in batches) / items
        kl = mean_kl(model, anchor, step)
        ((nll + SETTINGS.weight * kl) / GradientState().num_steps).backward()  # is 1 but in transformers 5.5
        norm = torch.nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 4)
        optimizer.step()
        optimizer.zero_grad()
        figures.append({"loss": nll.item(), "anchor_kl": kl.item(), "grad_norm": norm.item()})
    return figures


@pytest.mark.parametrize("values", [{}, {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}])
def test_its_steps_are_those_of_a_loop_written_by_hand(tmp_path, values):
    model, theirs = disturbed(), disturbed()
    protection = protected(model, tmp_path)
    frozen = {name: digest for name, digest in tensor_digests(model).items()}
    callback = cf.CoFiTuneCallback(REGION, protection)
    args = arguments(tmp_path, max_grad_norm=CLIP, weight_decay=DECAY, adam_epsilon=EPSILON, **values)
    trainer = Own(model, args, train_dataset=rows(), callbacks=[callback],
                  optimizer_cls_and_kwargs=cf.masked_adamw(args))
    trainer.train()
    figures = by_the_book(theirs, trainer.seen, protection.anchor)

    expected = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-4, atol=2e-6)
    for logged, wanted in zip(trainer.state.log_history, figures, strict=False):
        for name, value in wanted.items():
            assert logged[name] == pytest.approx(value, rel=1e-3), name
    assert SETTINGS.weight * figures[0]["anchor_kl"] > 0.05 and figures[0]["grad_norm"] > CLIP
    assert callback.frozen.tensors == len(frozen) - 4
    delta = read_delta(callback.save_delta(tmp_path / "delta"))
    assert delta.base.fingerprint == cf.BaseInfo.of(disturbed()).fingerprint
    assert set(delta.parameters) == {name for name, digest in tensor_digests(model).items() if digest != frozen[name]}


def test_a_frozen_tensor_that_changes_is_told(tmp_path):
    class Writes(Own):
        def training_step(self, model, *args, **kwargs):
            with torch.no_grad():
                model.model.norm.weight += 1
            return super().training_step(model, *args, **kwargs)

    with pytest.raises(cf.CofituneError, match=r"1 of 34 frozen tensors changed during training: model\.norm\.weight"):
        Writes(make_tiny_model(), arguments(tmp_path, max_steps=1), train_dataset=rows(),
               callbacks=[cf.CoFiTuneCallback(REGION)]).train()


@pytest.mark.parametrize(("values", "words"), [
    ({"fp16": True}, r"args\.fp16 is true"),
    ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, r"use_reentrant is true"),
])
def test_arguments_that_do_not_go_together_are_refused(tmp_path, values, words):
    args = arguments(tmp_path)
    for name, value in values.items():
        setattr(args, name, value)
    with pytest.raises(cf.CofituneError, match=words):
        cf.CoFiTuneCallback(REGION).on_init_end(args, None, None, model=make_tiny_model())


def test_a_model_made_anew_when_training_begins_is_refused(tmp_path):
    trainer = Own(args=arguments(tmp_path), train_dataset=rows(), model_init=lambda: make_tiny_model(),
                  callbacks=[cf.CoFiTuneCallback(REGION)])
    with pytest.raises(cf.CofituneError, match="no model_init"):
        trainer.train()


def test_the_factory_of_the_optimizer_groups_as_trainer_does(tmp_path):
    model = make_tiny_model("qwen2", attention_bias=True)
    cf.CoFiTuneCallback("attn.q+ffn.up@0%-50%").on_init_end(arguments(tmp_path), None, None, model=model)
    args = arguments(tmp_path, weight_decay=0.3, adam_beta2=0.95)
    made = Own(model, args, optimizer_cls_and_kwargs=cf.masked_adamw(args, storage="fp32")).create_optimizer()
    theirs = Own(model, args).create_optimizer()
    assert type(made) is cf.MaskedAdamW and made.max_grad_norm is None
    for ours, other in zip(made.param_groups, theirs.param_groups, strict=True):
        assert [id(p) for p in ours["params"]] == [id(p) for p in other["params"]] and ours["params"]
        assert all(ours[name] == other[name] for name in ("lr", "betas", "eps", "weight_decay"))
    with pytest.raises(cf.CofituneError, match=r"set that"):
        cf.masked_adamw(args, max_grad_norm=1.0)
