"""Scoring through a cached prefix: the same scores to the bit, whatever is in the cache."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from tiny import make_tiny_model

from cofitune_fast.data import Encoded
from cofitune_fast.errors import CofituneError
from cofitune_fast.memory import MemorySettings
from cofitune_fast.memory.cached_prefix import open_prefix
from cofitune_fast.memory.prefix_store import INDEX, STATES, PrefixStore
from cofitune_fast.memory.settings import prefix_cache_folder
from cofitune_fast.models.fingerprint import tensor_digests
from cofitune_fast.regions import Region
from cofitune_fast.scoring import answer_scores, answers

REGION = Region.parse("ffn.up+ffn.down@2;attn.q@3")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
BUDGET = 24  # several batches


def rows():
    """Answers of several lengths to three questions, two of them one token long."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for question in (7, 12, 3):
        query = torch.randint(4, 260, (question,), generator=generator).tolist()
        made += [Encoded(query + torch.randint(4, 260, (size,), generator=generator).tolist(), question)
                 for size in (1, 1, 4, 9)]
    return made


def trained(family="llama", dtype=torch.float32, **overrides):
    """A model whose region is not that of the base, and the digests of its base."""
    model = make_tiny_model(family, dtype=dtype, **overrides)
    digests = tensor_digests(model)
    with torch.no_grad():
        for _, parameter in REGION.parameters(model):
            parameter.mul_(1.5)
    return model, digests


def scored(model, digests=None, *, region=REGION, data=None, budget=BUDGET):
    """(scores, NLL of each token [N], how often layer 1 ran); with the digests of the base through the cached prefix.
    """
    found, ran, original = [], [], answers.token_scores
    prefix = open_prefix(model, region, digests, MemorySettings(), tokens=1000)[0] if digests else None
    answers.takes_tries(model, 2)  # its trial is not counted
    hook = model.model.layers[1].self_attn.register_forward_pre_hook(lambda *_: ran.append(1))
    answers.token_scores = lambda *arguments: (found.append(original(*arguments)), found[-1])[1]
    try:
        with prefix or nullcontext():
            scores = answer_scores(model, data or rows(), 0, budget, prefix=prefix)
    finally:
        answers.token_scores = original
        hook.remove()
    return scores, torch.cat([nll for nll, _ in found]), len(ran)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("packed", [True, False], ids=["tries", "padded"])
def test_scores_are_the_same_to_the_bit_while_it_fills_and_when_it_is_full(family, dtype, packed, monkeypatch):
    if not packed:
        monkeypatch.setattr(answers, "takes_tries", lambda *_: False)
    model, digests = trained(family, dtype)
    scores, expected, batches = scored(model)
    assert batches > 2
    for most in (batches, 0, 0):  # batches that differ in their last tokens alone share their states
        found = scored(model, digests)
        assert torch.equal(found[1], expected)
        assert found[0] == scores and most / 2 <= found[2] <= most
    assert not torch.equal(scored(make_tiny_model(family, dtype=dtype))[1], expected)  # the region does count


def test_the_layers_below_run_once_per_base_and_batch_whatever_is_trained_above():
    model, digests = trained()
    _, first, batches = scored(model, digests)
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight.mul_(2)
    _, second, ran = scored(model, digests, region=Region.parse("ffn@2"))
    assert ran == 0 and not torch.equal(first, second) and torch.equal(second, scored(model)[1])
    assert scored(model, digests, region=Region.parse("ffn@3"))[2] == batches  # another prefix
    assert scored(model, digests, budget=10_000)[2] == 1  # the same rows in another batch are computed anew
    other = make_tiny_model(seed=1)
    assert scored(other, tensor_digests(other))[2] == batches


def test_a_partly_filled_cache_changes_nothing():
    model, digests = trained()
    more = [*rows(), *(Encoded([99, 98, *row.input_ids], row.response_start + 2) for row in rows())]
    scored(model, digests)
    _, expected, batches = scored(model, data=more)
    _, found, ran = scored(model, digests, data=more)
    assert torch.equal(found, expected) and 0 < ran <= batches
    assert scored(model, digests, data=more)[2] == 0


@pytest.mark.parametrize("file", [STATES, INDEX])
@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_a_damaged_cache_changes_nothing_and_is_made_anew(file, damage):
    model, digests = trained()
    _, expected, batches = scored(model, digests)
    path = next(prefix_cache_folder().glob(f"*/{file}"))
    raw = path.read_bytes()
    half = len(raw) // 2
    path.write_bytes(raw[:half] if damage == "cut" else raw[:half] + bytes(len(raw) - half))
    _, found, ran = scored(model, digests)
    assert torch.equal(found, expected) and 0 < ran <= batches
    assert scored(model, digests)[2] == 0


def test_a_full_disk_changes_nothing(monkeypatch):
    model, digests = trained()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PrefixStore, "_make_room", full)
    _, expected, batches = scored(model)
    for _ in range(2):
        _, found, ran = scored(model, digests)
        assert torch.equal(found, expected) and ran == batches


@pytest.mark.parametrize("overrides, region, memory, tokens, words", [
    ({"attention_dropout": 0.1}, REGION, {}, 10, "attention_dropout 0.1"),
    ({}, REGION, {"prefix_cache_limit": "1KiB"}, 10, "these rows need 0.0 GiB, and memory.prefix_cache_limit is 1KiB"),
    ({}, REGION, {"prefix_cache": "off"}, 10, None),
    ({}, Region.parse("mha@0"), {}, 10, None),
    ({}, Region.full(), {}, 10, None),
], ids=["dropout", "limit", "off", "lowest layer", "full"])
def test_where_nothing_can_be_cached_there_is_no_cache(overrides, region, memory, tokens, words):
    model, digests = trained(**overrides)
    opened, reason = open_prefix(model, region, digests, MemorySettings(**memory), tokens)
    assert opened is None and not prefix_cache_folder().exists()
    assert reason is None if words is None else words in reason


def test_an_error_leaves_the_model_as_it_was():
    model, digests = trained()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    data = [replace(row, where="f:1") for row in rows()]
    opened, _ = open_prefix(model, REGION, digests, MemorySettings(), tokens=1000)
    with pytest.raises(CofituneError, match="not finite"), opened as prefix:
        answer_scores(model, data, 0, prefix=prefix)
    assert not model.model._forward_pre_hooks and not model.model.layers[2]._forward_pre_hooks
    assert model.config._attn_implementation == "sdpa" and torch.is_grad_enabled()
