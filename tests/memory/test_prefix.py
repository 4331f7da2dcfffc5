"""The frozen prefix: no graph, no checkpointing, and cached states in its place, for every family."""

import pytest
import torch
from tiny import make_tiny_model

from cofitune_fast.memory.prefix import FrozenPrefix, randomness
from cofitune_fast.regions import Region

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
REGION = Region.parse("ffn.up+ffn.down@2;attn.q@3")


def batch(rows=3, length=17):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 260, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def loss_and_gradients(model, call):
    params = [parameter for _, parameter in REGION.parameters(model)]
    logits = model(**call, use_cache=False).logits
    loss = logits.float().log_softmax(-1)[..., 7].sum()
    return loss.detach(), torch.autograd.grad(loss, params)


def ready(family="llama", **overrides):
    model = make_tiny_model(family, **overrides)
    REGION.apply(model)
    return model.train()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_gradients_with_the_prefix_cut_off_and_cached_are_those_of_autograd(family, checkpointing):
    model, call = ready(family), batch()
    expected = loss_and_gradients(model, call)
    if checkpointing:
        model.gradient_checkpointing_enable()
    with FrozenPrefix.of(model, REGION) as prefix:
        with prefix.keeping() as kept:
            cut = loss_and_gradients(model, call)
        with prefix.replaced_by(kept[0]):
            cached = loss_and_gradients(model, call)
    for loss, gradients in (cut, cached):
        assert torch.equal(loss, expected[0])
        for ours, theirs in zip(gradients, expected[1], strict=True):
            assert torch.equal(ours, theirs)
    assert expected[1][0].abs().max() > 0


def test_the_prefix_saves_nothing_for_the_backward_even_where_the_embeddings_require_a_gradient():
    model, call = ready(), batch()
    model.enable_input_require_grads()  # as transformers does under checkpointing
    saved = []

    def count():
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()), lambda x: x):
            model(**call, use_cache=False)
        return sum(saved)

    dragged = count()
    with FrozenPrefix.of(model, REGION):
        cut = count()
    model.disable_input_require_grads()
    assert cut == count() < dragged


def test_only_layers_from_the_first_trained_one_up_are_checkpointed_and_only_inside():
    model = ready()
    model.gradient_checkpointing_enable()
    flags = lambda: [layer.gradient_checkpointing for layer in model.model.layers]  # noqa: E731
    with FrozenPrefix.of(model, REGION):
        assert flags() == [False, False, True, True]
    assert flags() == [True] * 4


def test_cached_layers_are_not_run_and_come_back_after():
    model, call = ready(), batch()
    ran = []
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    model.model.embed_tokens.register_forward_pre_hook(lambda *_: ran.append("embeddings"))
    with FrozenPrefix.of(model, REGION) as prefix:
        with prefix.replaced_by(torch.randn(3, 17, 32)):
            model(**call)
        assert ran == ["embeddings", 2, 3]
        ran.clear()
        model(**call)
        assert ran == ["embeddings", 0, 1, 2, 3]


def test_gradients_are_on_again_after_an_error_in_the_prefix():
    model = ready()

    def fail(*_):
        raise ValueError("in the prefix")

    model.model.layers[0].register_forward_pre_hook(fail)
    with FrozenPrefix.of(model, REGION), pytest.raises(ValueError, match="in the prefix"):
        model(**batch())
    assert torch.is_grad_enabled()


def test_what_lies_below_the_regions():
    model = make_tiny_model()
    assert FrozenPrefix.of(model, Region.full()) is None
    assert FrozenPrefix.of(model, Region.parse("mha@0")).layer == 0
    assert FrozenPrefix.of(model, Region.parse("ffn@3;attn.v@1")).modules == list(model.model.layers[:1])


@pytest.mark.parametrize("spoil, expected", [
    (lambda model: None, None),
    (lambda model: setattr(model.model.layers[1].self_attn, "attention_dropout", 0.1), "attention_dropout 0.1"),
    (lambda model: model.model.layers[0].mlp.add_module("drop", torch.nn.Dropout(0.2)), "dropout 0.2 in Dropout"),
    (lambda model: setattr(model.model.layers[2].self_attn, "attention_dropout", 0.1), None),
], ids=["none", "attention", "module", "above the prefix"])
def test_dropout_is_found_where_it_is_below_the_region(spoil, expected):
    model = make_tiny_model()
    spoil(model)
    found = randomness(model, FrozenPrefix.of(model, REGION))
    assert found is None if expected is None else expected in found
