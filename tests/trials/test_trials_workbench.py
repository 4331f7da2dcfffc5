"""A trial leaves the base as it was, whatever happens in it; what a workbench lacks it says in a sentence."""

from __future__ import annotations

import pytest
import torch
from tiny import make_recurrent_model, make_tiny_model, make_tiny_tokenizer, write_jsonl

from cofitune_fast.anchor import AnchorSettings
from cofitune_fast.errors import CofituneError
from cofitune_fast.models import LoadedModel, load_model
from cofitune_fast.regions import Region, load_delta, save_delta
from cofitune_fast.training import MemorySettings, TrainOptions
from cofitune_fast.trials import TrialData, Workbench
from cofitune_fast.trials import data as trial_data

TRAINING = {"learning_rate": 1e-2, "per_device_train_batch_size": 8, "save_strategy": "no"}
REGION = Region.parse("ffn.up+ffn.down@2-3")


@pytest.fixture
def make_bench(tiny_run):
    def make(**changes):
        data = {
            **{part: tiny_run[f"data.{part}"] for part in ("train", "valid", "test")},
            **{f"versatility_{part}": tiny_run[f"versatility.{part}"] for part in ("valid", "test")}, **changes,
        }
        return Workbench(load_model(tiny_run["model"]), TrialData(**data))

    return make


@pytest.fixture
def bench(make_bench):
    return make_bench()


def copies(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(model, before):
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize("region", [REGION, Region.full()], ids=str)
def test_training_inside_a_trial_is_undone_to_the_bit(bench, region, tmp_path):
    before = copies(bench.model)
    names = {name for name, _ in region.parameters(bench.model)}
    with bench.trial(region):
        bench.train(region, tmp_path / "out", TRAINING)
        assert changed(bench.model, before) == names
    assert changed(bench.model, before) == set()
    assert all(p.grad is None and not p.requires_grad for p in bench.model.parameters())


def test_the_tokens_of_an_anchor_are_counted_before_its_texts_are_written(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("COFITUNE_CACHE", str(tmp_path / "cache"))
    general = write_jsonl(tmp_path / "general.jsonl", [{"prompt": "say " + "b" * i, "completion": "c" * (4 * i)}
                                                       for i in range(1, 4)])
    for values in ({"prompts": "task"}, {"source": "rows", "prompts": str(general)}, {"source": "free"}):
        settings = AnchorSettings(texts=5, tokens=6, top_k=8, **values)
        tokens, responses = bench.anchor_tokens(settings)
        rows = bench.anchor(settings).rows
        found = [sum(len(row.input_ids) for row in rows), sum(len(row.ids) for row in rows)]
        short = 5 * 6 - found[1] if settings.source == "answers" else 0  # a text may end before its maximum length
        assert (tokens - short, responses - short) == tuple(found), settings.source
    assert responses == 30 and tokens == 35


def test_every_trial_starts_from_the_same_base(bench, tmp_path):
    results = []
    for number in range(2):
        with bench.trial(REGION):
            bench.train(REGION, tmp_path / str(number), TRAINING)
            results.append(copies(bench.model))
        with bench.trial(Region.parse("mha@0")):
            bench.train(Region.parse("mha@0"), tmp_path / f"between-{number}", TRAINING)
    for name, first in results[0].items():
        torch.testing.assert_close(results[1][name], first, rtol=0, atol=0)


def test_an_exception_inside_a_trial_passes_and_the_base_is_back(bench):
    before = copies(bench.model)
    with pytest.raises(ZeroDivisionError), bench.trial(REGION):
        for _, parameter in REGION.apply(bench.model):
            parameter.data.add_(1)
            parameter.grad = torch.ones_like(parameter)
        1 / 0  # noqa: B018
    assert changed(bench.model, before) == set()
    assert all(parameter.grad is None for parameter in bench.model.parameters())


def test_a_change_outside_the_region_is_found(bench):
    with pytest.raises(CofituneError, match="bytes could not be put back after a trial"), bench.trial(REGION):
        bench.model.get_input_embeddings().weight.data[7, 3] += 1


def test_a_model_of_unknown_layers_is_trained_whole_and_scored(bench, tmp_path):
    model, region = make_recurrent_model(), Region.full()
    odd = Workbench(LoadedModel(model, make_tiny_tokenizer(), "odd"), bench.data)
    before, start = odd.score("valid"), copies(model)
    assert region.describe(model)
    odd.train(region, tmp_path, {**TRAINING, "learning_rate": 0.03}, TrainOptions())
    assert changed(model, start) == set(start)
    save_delta(model, region, tmp_path / "delta", base=odd.base)
    fresh = make_recurrent_model()
    load_delta(fresh, tmp_path / "delta")
    assert not changed(fresh, copies(model)) and odd.score("valid").spec != before.spec
    with pytest.raises(CofituneError, match="holds no list of layers"):
        odd.train(Region.parse("ffn@0"), tmp_path, TRAINING, TrainOptions())


@pytest.mark.parametrize(("missing", "use", "words"), [
    ("train", lambda bench: bench.train_rows, "No train data: set data.train to a data file, a folder or a hub id"),
    ("valid", lambda bench: bench.suite("valid"), "No valid data: set data.valid to"),
    ("test", lambda bench: bench.score("test"), "No test data: set data.test to"),
    ("versatility_valid", lambda bench: bench.score("valid"), "No versatility tasks for valid: set versatility.valid"),
    ("versatility_test", lambda bench: bench.suite("test"), "No versatility tasks for test: set versatility.test to a"),
])
def test_a_part_that_is_not_named(make_bench, missing, use, words):
    with pytest.raises(CofituneError, match=words):
        use(make_bench(**{missing: None}))


def test_what_is_not_named_is_not_missed_before_it_is_used(make_bench):
    bench = make_bench(valid=None, versatility_valid=None, versatility_test=None)
    assert len(bench.train_rows) == 16


def test_limits_of_rows_and_items(make_bench):
    bench = make_bench(limit=5, versatility_limit=3)
    assert len(bench.train_rows) == 5
    tasks = bench.score("valid").to_dict()["tasks"]
    assert tasks["knowledge"]["knowledge-valid"]["n"] == tasks["instruction"]["do-valid"]["n"] == 3


def test_the_versatility_limit_leaves_the_speciality_whole(make_bench):
    tasks = make_bench(versatility_limit=3).score("valid").to_dict()["tasks"]
    assert tasks["speciality"]["speciality-valid"]["n"] == 4


def test_a_suite_is_read_once_per_split(bench, monkeypatch):
    read = []
    monkeypatch.setattr(trial_data, "read_suite", lambda *args, _read=trial_data.read_suite, **kwargs: (
        read.append(args[0]), _read(*args, **kwargs))[1])
    first, again = bench.score("valid"), bench.score("valid")
    assert read == [bench.data.versatility_valid] and bench.suite("valid") is bench.suite("valid")
    assert again.to_dict() == first.to_dict()
    bench.score("test")
    assert read == [bench.data.versatility_valid, bench.data.versatility_test]


@pytest.mark.parametrize("memory, runs", [({}, (True, False, False)), ({"prefix_cache": "off"}, (True, True, True))],
                         ids=["cached", "off"])
def test_a_trained_region_is_scored_through_its_cached_prefix_to_the_same_bits(bench, tmp_path, memory, runs):
    memory, ran, seen = MemorySettings(**memory), [], []
    bench.model.model.layers[1].self_attn.register_forward_pre_hook(lambda *_: ran.append(1))
    for number, region in enumerate((REGION, REGION, Region.parse("mha@2"))):
        with bench.trial(region):
            bench.train(region, tmp_path / str(number), {**TRAINING, "seed": number}, TrainOptions(memory=memory))
            expected = bench.score("valid").to_dict(items=True)
            ran.clear()
            assert bench.score("valid", region=region, memory=memory).to_dict(items=True) == expected
            seen.append(bool(ran))
    assert tuple(seen) == runs


def test_importance_is_measured_on_the_first_rows_of_the_base(bench, make_bench):
    importance = bench.importance(REGION, samples=5, batch_size=2, seed=3)
    assert importance.samples == 5 and importance.layers == (2, 3)
    assert (importance.base_model, importance.base_fingerprint) == (bench.source, bench.base.fingerprint)
    assert importance.settings["seed"] == 3
    same = make_bench(limit=5).importance(REGION, samples=64, batch_size=2, seed=3)
    whole = bench.importance(REGION, samples=8, batch_size=2, seed=3)
    for kind, scores in importance.scores.items():
        torch.testing.assert_close(same.scores[kind], scores, rtol=0, atol=0)
        assert not torch.equal(whole.scores[kind], scores)


def test_masks_refuse_the_importance_of_another_base(bench, make_bench, tiny_run):
    mine = bench.importance(REGION, samples=4)
    assert set(bench.masks(mine, REGION, "rank")) == {name for name, _ in REGION.parameters(bench.model)}
    make_tiny_model(seed=9).save_pretrained(tiny_run["model"])
    other = make_bench()
    with pytest.raises(CofituneError, match=f"fingerprint {bench.base.fingerprint[:12]}.*"
                                            f"fingerprint {other.base.fingerprint[:12]}; compute it for this model"):
        other.masks(mine, REGION, "rank")
