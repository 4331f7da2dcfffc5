"""What makes a region cheap changes nothing: prefix cache, packing, gradient release, states on the host."""

from pathlib import Path

import pytest
import torch
from cases import each
from test_training_run import REGION, rows, run, state
from tiny import make_tiny_model
from transformers import TrainerCallback

from cofitune_fast.data import Encoded
from cofitune_fast.errors import CofituneError
from cofitune_fast.losses.chunked import chunked_head, response_loss
from cofitune_fast.memory.abilities import frozen_prefix, takes_tries
from cofitune_fast.memory.prefix import FrozenPrefix
from cofitune_fast.memory.prefix_store import INDEX, STATES, PrefixStore
from cofitune_fast.memory.settings import prefix_cache_folder
from cofitune_fast.models.attention import trie_attention
from cofitune_fast.regions import Region
from cofitune_fast.training import MemorySettings
from cofitune_fast.training.batching import FixedBatches, KeyedRows, TrainingCollator, packing_gain
from cofitune_fast.training.trainer import _call

EPOCHS = {"num_train_epochs": 2, "logging_steps": 1}


def alike(count=12):
    """Rows with a common beginning, and two that are equal and come into different batches."""
    start = list(range(10, 30))
    made = [Encoded(start + row.input_ids, 20 + row.response_start) for row in rows(count - 2)]
    return [*made, made[0], made[1]]


class Losses(TrainerCallback):
    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.values += [logs["loss"]] if "loss" in logs else []


def trajectory(folder, memory=None, model=None, training=None, data=None, region=REGION, **options):
    """Losses, final weights and result of a run from the same start."""
    model, losses = model or make_tiny_model(), Losses()
    result = run(model, folder, region=region, data=data or alike(), callbacks=[losses],
                 training={**EPOCHS, **(training or {})}, memory=MemorySettings(**(memory or {})), **options)
    return losses.values, state(model), result


def tried_model():
    """A model whose speed features have been tried, so that a test counts other forwards alone."""
    model = make_tiny_model()
    frozen_prefix(model, REGION)
    takes_tries(model, 2)
    return model


def assert_same(one, other):
    assert one[0] == other[0] and len(one[0]) > 2
    for name, tensor in one[1].items():
        assert torch.equal(tensor, other[1][name]), name


@each({"packing": ["on", "off"],
       "training": [{}, {"gradient_checkpointing": True}, {"gradient_accumulation_steps": 2}]})
def test_the_cache_does_not_change_a_bit_in_its_first_run_nor_in_later_ones(tmp_path, packing, training):
    plain = trajectory(tmp_path / "plain", {"prefix_cache": "off", "packing": packing}, training=training)
    for name, cached in (("first", 0), ("later", 12)):
        with_cache = trajectory(tmp_path / name, {"packing": packing}, training=training)
        assert_same(with_cache, plain)
        assert with_cache[2].cached_rows == cached and with_cache[2].notes == []


def test_from_the_second_epoch_on_the_layers_below_do_not_run(tmp_path):
    model, ran = tried_model(), []
    model.model.layers[1].self_attn.register_forward_pre_hook(lambda *_: ran.append(1))
    trajectory(tmp_path / "a", model=model, training={"num_train_epochs": 3})
    assert len(ran) == 3  # three batches, once
    trajectory(tmp_path / "b", model=model)
    assert len(ran) == 3


def test_regions_with_the_same_lowest_layer_share_a_cache_and_others_do_not(tmp_path):
    trajectory(tmp_path / "a")
    same = trajectory(tmp_path / "b", region=Region.parse("mha@2"))[2]
    other = trajectory(tmp_path / "c", region=Region.parse("mha@3"))[2]
    base = trajectory(tmp_path / "d", model=make_tiny_model(seed=1))[2]
    assert [same.cached_rows, other.cached_rows, base.cached_rows] == [12, 0, 0]
    assert len(list(prefix_cache_folder().glob("*/about.json"))) == 3


def test_other_rows_are_not_found(tmp_path):
    trajectory(tmp_path / "a")
    assert trajectory(tmp_path / "b", data=rows(12, seed=9))[2].cached_rows == 0


@pytest.mark.parametrize("file", [STATES, INDEX])
def test_a_damaged_cache_is_rebuilt(tmp_path, file):
    plain = trajectory(tmp_path / "a")
    path = next(prefix_cache_folder().glob(f"*/{file}"))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 :] = bytes(len(raw) - len(raw) // 2)
    path.write_bytes(raw)
    assert_same(trajectory(tmp_path / "b"), plain)
    again = trajectory(tmp_path / "c")
    assert_same(again, plain)
    assert again[2].cached_rows == 12


def test_a_full_disk_is_said_and_training_goes_on(tmp_path, monkeypatch):
    plain = trajectory(tmp_path / "a", {"prefix_cache": "off"})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PrefixStore, "_make_room", full)
    found = trajectory(tmp_path / "b")
    assert_same(found, plain)
    assert "No space left on device" in found[2].notes[0] and "training went on without" in found[2].notes[0]


@pytest.mark.parametrize("changes, training, memory, expected", [
    ({"attention_dropout": 0.1}, {}, {}, "attention_dropout 0.1"),
    ({}, {"neftune_noise_alpha": 5.0}, {}, "neftune_noise_alpha"),
    ({}, {}, {"prefix_cache_limit": "1KiB"}, "prefix_cache_limit is 1KiB"),
], ids=["dropout", "neftune", "limit"])
def test_where_it_would_be_wrong_or_too_large_the_cache_is_off_with_a_sentence(
    tmp_path, changes, training, memory, expected
):
    result = trajectory(tmp_path, memory, model=make_tiny_model(**changes), training=training)[2]
    assert len(result.notes) == 1 and "The prefix cache is off" in result.notes[0] and expected in result.notes[0]
    assert not prefix_cache_folder().exists()


def test_with_its_weights_on_the_host_the_prefix_is_cached_before_the_first_step(tmp_path, monkeypatch):
    plain = trajectory(tmp_path / "a", {"prefix_cache": "off"})
    parked = []
    park, bring_back = FrozenPrefix.park, FrozenPrefix.bring_back
    monkeypatch.setattr(FrozenPrefix, "park", lambda self: (parked.append("park"), park(self)))
    monkeypatch.setattr(FrozenPrefix, "bring_back", lambda self: (parked.append("back"), bring_back(self)))
    model, ran = tried_model(), []
    model.model.layers[2].self_attn.register_forward_pre_hook(lambda *_: ran.append(torch.is_grad_enabled()))
    assert_same(trajectory(tmp_path / "b", {"prefix_weights": "host"}, model=model), plain)
    assert parked == ["park", "back"]
    # The pass that fills the cache ends before this layer; the first forward only looks at the logits.
    assert ran == [False] + [True] * 6


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3"])
def test_packed_and_padded_batches_give_the_same_gradients(family):
    model = make_tiny_model(family).train()
    params = [parameter for _, parameter in REGION.apply(model)]
    data, head = KeyedRows(alike(6)), chunked_head(model)
    found = []
    for packed in (False, True):
        batch = TrainingCollator(0, packed)([data[index] for index in range(6)])
        targets = batch["labels"][0, 1:]
        with trie_attention(model):
            loss = response_loss(model, _call(batch), batch["predictors"], targets, 1 / len(targets), head=head)
        found.append((loss.detach(), torch.autograd.grad(loss, params), batch["input_ids"].numel(), len(targets)))
    (loss, gradients, tokens, count), packed = found
    torch.testing.assert_close(packed[0], loss, rtol=1e-5, atol=0)
    for ours, theirs in zip(packed[1], gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6 * theirs.abs().max().item() + 1e-8)
    assert packed[2] < tokens / 2 and packed[3] == count


def test_a_row_without_a_prompt_predicts_all_but_its_first_token():
    data = KeyedRows([Encoded([5, 6, 7, 8], 0), Encoded([5, 6, 9], 1)])
    for packed in (False, True):
        batch = TrainingCollator(0, packed)([data[0], data[1]])
        assert sorted(batch["labels"][0, 1:].tolist()) == [6, 6, 7, 8, 9]


def test_batches_hold_the_same_rows_in_every_epoch_in_another_order():
    lengths = [5, 9, 3, 9, 7, 3, 5, 1, 2, 8]
    batches = FixedBatches(lengths, 4, seed=1, by_length=True)
    first = list(batches)
    batches.set_epoch(1)
    second = list(batches)
    assert sorted(map(tuple, first)) == sorted(map(tuple, second)) and first != second
    assert sorted(index for batch in first for index in batch) == list(range(10))
    assert sorted(sorted(lengths[index] for index in batch) for batch in first) == [[1, 2], [3, 3, 5, 5], [7, 8, 9, 9]]
    assert list(FixedBatches(lengths, 4, seed=1, by_length=True)) == first
    assert len(FixedBatches(lengths, 4, seed=1, by_length=False, drop_last=True)) == 2
    assert list(FixedBatches(lengths, 4, seed=1, by_length=True, shuffle=False)) == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_packing_is_chosen_where_it_saves_tokens_and_refused_where_it_cannot_be(tmp_path):
    together = [[0, 1, 2, 3, 4, 5]]
    assert packing_gain(alike(6), together) > 2
    assert packing_gain(rows(6), together) < 1.6
    with pytest.raises(CofituneError, match=r"memory\.packing is on, which .* sees 8 at once"):
        trajectory(tmp_path, {"packing": "on"}, model=make_tiny_model("mistral", sliding_window=8))


@pytest.mark.parametrize("memory", [
    {"gradient_release": "exact"}, {"gradient_release": "lagged"}, {"optimizer_states": "host"},
], ids=lambda memory: "-".join(memory.values()))
def test_released_gradients_and_host_states_give_the_bits_of_an_ordinary_run(tmp_path, memory):
    """Nothing is clipped at this norm, so even lagged clipping agrees to the bit."""
    training = {"max_grad_norm": 1e6}
    assert_same(trajectory(tmp_path / "a", memory, training=training), trajectory(tmp_path / "b", training=training))


@pytest.mark.parametrize("memory", [{"gradient_release": "lagged"}, {"optimizer_states": "host"}],
                         ids=lambda memory: "-".join(memory.values()))
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, memory):
    training = {"max_grad_norm": 0.01, "save_strategy": "steps", "save_steps": 4}
    whole = trajectory(tmp_path / "a", memory, training=training)
    checkpoint = str(Path(tmp_path / "a") / "checkpoint-4")
    resumed = trajectory(tmp_path / "b", memory, training={**training, "resume_from_checkpoint": checkpoint})
    assert resumed[0] == whole[0][4:]
    for name, tensor in whole[1].items():
        assert torch.equal(tensor, resumed[1][name]), name


def test_release_with_accumulation_is_refused(tmp_path):
    with pytest.raises(CofituneError, match=r"gradient_accumulation_steps must be 1, not 2"):
        trajectory(tmp_path, {"gradient_release": "exact"}, training={"gradient_accumulation_steps": 2})


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
], ids=["device", "host"])
def test_when_memory_runs_out_the_largest_parts_and_a_remedy_are_named(tmp_path, error):
    model = make_tiny_model()

    def fail(*_):
        raise error

    model.model.norm.register_forward_pre_hook(fail)
    with pytest.raises(CofituneError, match=r"Out of memory at step 1\. This run needs about .*GiB.*would take it to"):
        trajectory(tmp_path, {"prefix_cache": "off"}, model=model)


def test_other_runtime_errors_pass(tmp_path):
    model = make_tiny_model()
    model.model.layers[3].register_forward_pre_hook(lambda *_: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match="must match the size") as caught:
        trajectory(tmp_path, model=model)
    assert not isinstance(caught.value, CofituneError)
