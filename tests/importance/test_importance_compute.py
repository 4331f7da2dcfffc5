"""compute_importance: seeds, batch sizes, a model left as it was, and every refusal."""

from __future__ import annotations

import pytest
import torch
from head_cases import make_model as make_head_model
from tiny import make_tiny_model
from transformers import PreTrainedModel

from cofitune_fast.errors import CofituneError
from cofitune_fast.importance import compute_importance
from cofitune_fast.importance.noise import dropout_only, seeded
from cofitune_fast.models.fingerprint import fingerprint
from cofitune_fast.models.head import Head
from cofitune_fast.regions import resolve_layout

BASE = ("tiny", "f" * 64)


def make_batches(sizes=(2, 2), tokens: int = 9) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(4, 260, (sum(sizes), tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :3] = -100
    parts = zip(ids.split(sizes), mask.split(sizes), labels.split(sizes), strict=True)
    return [dict(zip(("input_ids", "attention_mask", "labels"), part, strict=True)) for part in parts]


def assert_equal(first, second, **tolerance) -> None:
    assert first.scores.keys() == second.scores.keys()
    for kind in first.scores:
        torch.testing.assert_close(first.scores[kind], second.scores[kind], **tolerance)


def state_of(model: PreTrainedModel) -> dict:
    """All that a pass could disturb, in comparable form."""
    hook_tables = [name for name, value in vars(model).items() if "_hooks" in name and isinstance(value, dict)]
    return {
        "bytes": fingerprint(model),
        "training": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "grads": {
            name: None if parameter.grad is None else (id(parameter.grad), parameter.grad.tolist())
            for name, parameter in model.named_parameters()
        },
        "hooks": {
            (name, table): list(getattr(module, table).values())
            for name, module in model.named_modules() for table in hook_tables
        },
        "dropout": [getattr(module, "attention_dropout", None) for module in model.modules()],
        "config": model.config.to_dict(),
        "rng": torch.get_rng_state().tolist(),
        "grad_mode": torch.is_grad_enabled(),
    }


def disturbed_model() -> PreTrainedModel:
    """A model in a state that no default restores: mixed flags, a gradient, a hook, some dropout."""
    model = make_tiny_model(attention_dropout=0.25)
    model.train()
    model.model.layers[1].eval()
    model.model.layers[0].requires_grad_(False)
    model.model.norm.weight.grad = torch.full_like(model.model.norm.weight, 0.5)
    model.model.layers[2].mlp.down_proj.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("proxy", ["kl_dropout", "task_nll"])
@pytest.mark.parametrize("grad_mode", [True, False])
def test_the_model_comes_back_as_it_was(proxy, grad_mode):
    model = disturbed_model()
    with torch.set_grad_enabled(grad_mode):
        before = state_of(model)
        compute_importance(model, make_batches(), proxy=proxy)
        assert state_of(model) == before


@pytest.mark.parametrize("where", ["forward", "backward", "batches", "progress"])
def test_the_model_comes_back_as_it_was_after_an_exception(where):
    model, batches, arguments = disturbed_model(), make_batches(), {}

    def fail(*_):
        raise RuntimeError("in the middle")

    def failing_batches():
        yield batches[0]
        fail()

    if where == "forward":
        model.model.layers[2].mlp.up_proj.register_forward_hook(fail)
    elif where == "backward":
        model.model.layers[2].mlp.up_proj.register_forward_hook(
            lambda _, inputs, output: output.requires_grad and output.register_hook(fail) and None
        )
    elif where == "progress":
        arguments["progress"] = fail
    before = state_of(model)
    with pytest.raises(RuntimeError, match="in the middle"):
        compute_importance(model, failing_batches() if where == "batches" else batches, base=BASE, **arguments)
    assert state_of(model) == before


def test_the_same_seed_gives_the_same_scores():
    model = make_tiny_model()

    def measure(seed, between=lambda: None):
        def batches():
            for batch in make_batches():
                between()
                yield batch

        return compute_importance(model, batches(), dropout=0.1, seed=seed, base=BASE)

    first = measure(3)
    torch.manual_seed(99)
    assert_equal(measure(3, between=lambda: torch.rand(5)), first, rtol=0, atol=0)
    assert not torch.equal(measure(4).scores["ffn.neuron"], first.scores["ffn.neuron"])


def test_the_batch_size_does_not_matter():
    model = make_tiny_model()
    parts = [compute_importance(model, make_batches(sizes), proxy="task_nll", base=BASE) for sizes in ((4,), (2, 2))]
    singles = compute_importance(model, make_batches((1, 1, 1, 1)), proxy="task_nll", base=BASE)
    for part in parts:
        assert part.samples == singles.samples == 4
        assert_equal(part, singles, rtol=1e-3, atol=1e-7)


def test_a_training_model_is_measured_like_an_evaluating_one():
    scores = [
        compute_importance(make_tiny_model(attention_dropout=0.5).train(mode), make_batches(), base=BASE)
        for mode in (True, False)
    ]
    assert_equal(*scores, rtol=0, atol=0)


def test_gradient_checkpointing_changes_nothing():
    plain, checkpointed = make_tiny_model(), make_tiny_model().train()
    checkpointed.gradient_checkpointing_enable()
    scores = [compute_importance(model, make_batches(), "ffn@2-3", base=BASE) for model in (plain, checkpointed)]
    assert_equal(*scores, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_agrees_with_the_cpu_and_its_random_state_is_restored():
    model = make_tiny_model()
    expected = compute_importance(model, make_batches(), proxy="task_nll", base=BASE)
    model.cuda()
    before = torch.cuda.get_rng_state()
    found = compute_importance(model, make_batches(), proxy="task_nll", base=BASE)
    noisy = [compute_importance(model, make_batches(), dropout=0.1, base=BASE) for _ in range(2)]
    assert torch.equal(torch.cuda.get_rng_state(), before)
    for kind, scores in expected.scores.items():
        torch.testing.assert_close(found.scores[kind], scores, rtol=1e-2, atol=1e-3 * scores.max().item())
    assert_equal(*noisy, rtol=1e-2, atol=1e-7)
    masks = found.masks(model, "all@1", "paper")
    assert {mask.device.type for mask in masks.values()} == {"cuda"}


def test_bfloat16_agrees_with_float32():
    model = make_tiny_model(dtype=torch.bfloat16)
    low = compute_importance(model, make_batches(), proxy="task_nll", base=BASE)
    high = compute_importance(model.float(), make_batches(), proxy="task_nll", base=BASE)
    for kind, scores in high.scores.items():
        torch.testing.assert_close(low.scores[kind], scores, rtol=0.1, atol=0.05 * scores.max().item())
        assert low.scores[kind].dtype == torch.float32


def test_dropout_is_where_it_should_be_and_nowhere_else():
    model = make_tiny_model(attn_implementation="eager")
    layout = resolve_layout(model)
    outputs = []
    inputs = make_batches()[0]["input_ids"]
    with dropout_only(layout, 0.5):
        down = layout.module(layout.at(3, "ffn.down")[0])
        down.register_forward_hook(lambda _, inputs, output: outputs.append(output))
        weights = model(input_ids=inputs, output_attentions=True).attentions[0]
        training = [name for name, module in model.named_modules() if module.training]
    assert training == [f"model.layers.{layer}.self_attn" for layer in range(4)]
    assert 0.4 < (outputs[0] == 0).float().mean() < 0.6
    causal = torch.ones(9, 9).tril().bool().expand_as(weights)
    assert 0.3 < (weights[causal] == 0).float().mean() < 0.7


def test_what_is_recorded():
    model, seen = make_tiny_model(), []
    importance = compute_importance(model, make_batches(), "ffn@50%-100%", seed=5, progress=seen.append)
    assert importance.layers == (2, 3) and importance.samples == 4 and seen == [2, 4]
    assert importance.base_fingerprint == fingerprint(model)
    assert importance.settings == {
        "proxy": "kl_dropout", "dropout": 0.003, "seed": 5, "region": "ffn@50%-100%", "dtype": "float32",
    }
    importance.check(fingerprint(model))
    named = compute_importance(model, make_batches(), base=BASE, units=["attn.head"])
    assert (named.base_model, named.base_fingerprint) == BASE and set(named.scores) == {"attn.head"}


def with_change(**changes) -> list[dict]:
    batch = {**make_batches()[0], **changes}
    return [{name: value for name, value in batch.items() if value is not None}]


ONES = torch.ones(2, 9, dtype=torch.long)


@pytest.mark.parametrize(
    ("batches", "arguments", "words"),
    [
        ([], {}, "the batches are empty"),
        (with_change(attention_mask=None), {}, "Batch 1 has no tensor `attention_mask`"),
        (with_change(input_ids=[[1, 2]]), {}, "Batch 1 has no tensor `input_ids`"),
        (with_change(attention_mask=ONES[:, :4]), {}, r"`attention_mask` of batch 1 has shape \[2, 4\]"),
        (with_change(attention_mask=ONES * torch.tensor([[1], [0]])), {}, "Batch 1 has a row without any token"),
        (with_change(**{name: ONES[:0] for name in make_batches()[0]}), {}, "Batch 1 holds no token"),
        ([ONES], {}, "Batch 1 is a Tensor; it must be a dict"),
        (with_change(labels=None), {"proxy": "task_nll"}, "task_nll needs `labels`"),
        (with_change(labels=-100 * ONES), {"proxy": "task_nll"}, "no response token in its labels"),
        (make_batches(), {"proxy": "kl-dropout"}, "proxy 'kl-dropout' is not known; did you mean 'kl_dropout'"),
        (make_batches(), {"units": ["attn.heads"]}, "unit kind 'attn.heads' is not known; did you mean 'attn.head'"),
        (make_batches(), {"units": []}, "No unit kind is named; give at least one of ffn"),
        (make_batches(), {"dropout": 0.0}, "must lie between 0 and 1, not 0.0"),
        (make_batches(), {"region": "ffn@7"}, "names layer 7"),
    ],
)
def test_bad_input_is_refused(batches, arguments, words):
    with pytest.raises(CofituneError, match=words):
        compute_importance(make_tiny_model(), batches, **arguments)


def test_float16_is_refused():
    with pytest.raises(CofituneError, match="load the model with dtype bfloat16"):
        compute_importance(make_tiny_model(dtype=torch.float16), make_batches())


def test_scores_that_are_not_finite_are_refused():
    model = make_tiny_model()
    torch.nn.init.constant_(model.model.layers[2].mlp.up_proj.weight, torch.nan)
    with pytest.raises(CofituneError, match="layer 0 are not all finite"):
        compute_importance(model, make_batches(), proxy="task_nll")
    with pytest.raises(CofituneError, match="are not all finite"):
        compute_importance(model, make_batches())


def test_logits_that_no_head_describes_are_taken_from_the_model():
    described, other = (make_tiny_model(tie_word_embeddings=False) for _ in range(2))
    described.lm_head.weight.data /= 8
    other.lm_head.register_forward_hook(lambda _, inputs, output: output / 8)
    ours, theirs = (compute_importance(model, make_batches(), base=("m", "f")) for model in (described, other))
    for kind, scores in ours.scores.items():
        torch.testing.assert_close(scores, theirs.scores[kind], rtol=1e-3, atol=1e-3 * scores.max().item())


@pytest.mark.parametrize("family", ["granite", "cohere", "cohere2", "gemma2"])
def test_scaled_and_capped_logits_have_the_importance_of_the_models_own(family, monkeypatch):
    model = make_head_model(family)
    ours = compute_importance(model, make_batches(), base=BASE, dropout=0.1)
    monkeypatch.setattr(Head, "of", lambda model: None)  # then the loss is made of the model's logits
    theirs = compute_importance(model, make_batches(), base=BASE, dropout=0.1)
    for kind, scores in ours.scores.items():
        assert scores.max() > 0
        torch.testing.assert_close(scores, theirs.scores[kind], rtol=1e-3, atol=1e-3 * scores.max().item())


def test_attention_without_a_dropout_attribute_has_its_output_dropped(caplog):
    model, plain = make_tiny_model(), make_tiny_model()
    for layer in model.model.layers:
        del layer.self_attn.attention_dropout
    layout, outputs = resolve_layout(model), []
    batch = make_batches()[0]
    with caplog.at_level("INFO", "cofitune_fast"), torch.no_grad():
        with dropout_only(layout, 0.5), seeded(model, 0):
            attention = model.model.layers[3].self_attn
            attention.register_forward_hook(lambda _, inputs, output: outputs.append(output[0]))
            model(input_ids=batch["input_ids"])
        model(input_ids=batch["input_ids"])
    assert "probabilities of 4 layers cannot be dropped" in caplog.text
    assert 0.4 < (outputs[0] == 0).float().mean() < 0.6 and not (outputs[1] == 0).any()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))
