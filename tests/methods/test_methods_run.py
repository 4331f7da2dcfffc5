"""One run: what it trains, what it hands on, what it scores, and that the base is back afterwards."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from comparison_cases import make_bench, make_job, make_setup
from tiny import write_jsonl

from cofitune_fast.anchor import AnchorSettings
from cofitune_fast.data import encode_example
from cofitune_fast.errors import CofituneError
from cofitune_fast.methods import CATALOGUE, Recipe, read_methods, run_method
from cofitune_fast.methods.run import mixed_rows, random_half, what_is_trained
from cofitune_fast.models.fingerprint import tensor_digests
from cofitune_fast.training import LossNotFinite, TrainOptions, TrainResult

REGION = "ffn.up+ffn.down@2-3"


NOTHING_TRAINED = TrainResult("ffn", 3, 1, 1.0, 7, 0.5, 1e-2, 0.1, 5, "resident", 2, 10)


@pytest.fixture
def bench(tiny_run):
    return make_bench(tiny_run)


@pytest.fixture
def do(tiny_run, bench):
    def run(recipe, **values):
        return run_method(bench, make_setup(tiny_run, bench), make_job(bench, Recipe.from_dict(recipe), **values))

    return run


@pytest.fixture
def calls(bench, monkeypatch):
    """What `Workbench.train` is called with; nothing is trained."""
    seen = []

    def train(self, trained, folder, training, options, **watching):
        seen.append(SimpleNamespace(trained=trained, training=training, options=options, rows=watching["rows"],
                                    base=tensor_digests(self.model) == self.digests))
        return NOTHING_TRAINED

    monkeypatch.setattr(type(bench), "train", train)
    return seen


def spec(result, index=0, split="test"):
    return result["scores"][index][split]["spec"]


@pytest.mark.parametrize("recipe", [
    {}, {"region": REGION}, {"lora": {"rank": 4}}, {"lora": {"rank": 4, "targets": "ffn"}}, {"random_half": True},
    {"frozen_bottom": 0.5}, {"mofo": 0.1}, {"region": REGION, "mask": {"preset": "paper", "mode": "gradient"}},
    {"mask": {}},
], ids=str)
def test_a_method_trains_is_scored_and_leaves_the_base(do, bench, recipe):
    result = do(recipe)
    assert tensor_digests(bench.model) == bench.digests
    assert result["state"] == "done" and result["why"] is None
    (scores,) = result["scores"]
    assert scores["alpha"] is None and scores["test"]["spec"] != bench.score("test").spec
    assert len(scores["valid"]["tasks"]["speciality"]["speciality-valid"]["items"]) == 4
    cost = result["cost"]
    assert cost["trained_parameters"] == what_is_trained(Recipe.from_dict(recipe), bench.layout, 1).count(bench.model)
    assert cost["tokens"] == sum(len(row.input_ids) for row in bench.train_rows)
    assert cost["seconds"] == cost["training_seconds"] + cost["scoring_seconds"] > 0


_TEXTS = {"texts": 6, "tokens": 6, "top_k": 8}


@pytest.mark.parametrize("name", [
    "self-mix", "region-self-mix", "sft-kl", "sft-kl-masked", "asft", "selfaug", "stm", "attention", "anchor-gate-up",
    "anchor-reverse", "anchor-general-texts", "anchor-free-texts",
])
def test_a_baseline_of_the_catalogue_trains_and_leaves_the_base(do, bench, name, tmp_path, monkeypatch):
    monkeypatch.setenv("COFITUNE_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"count {i}", "completion": str(i)} for i in range(4)]
    general = write_jsonl(tmp_path / "general.jsonl", rows)
    entry = {"method": name}
    if "anchor" in CATALOGUE[name][1]:
        entry["anchor"] = _TEXTS
    if name == "stm":
        entry["token_filter"] = 255  # of the tiny model's nearly even distributions it leaves some
    recipe = read_methods([entry], region=REGION)[0].recipe
    result = do(recipe.to_dict(), general=str(general))
    assert tensor_digests(bench.model) == bench.digests
    assert result["state"] == "done" and spec(result) != bench.score("test").spec
    training = result["training"]
    assert (training["reference_kl"] is not None) is (recipe.reference is not None)
    assert (training["anchor_kl"] is not None) is bool(recipe.anchor and recipe.anchor.get("loss") != "ce")
    assert any("token filter leaves" in note for note in training["notes"]) is (name == "stm")
    made = 1 if recipe.anchor or recipe.reference or recipe.token_filter else 0
    assert len(list((tmp_path / "cache").glob("anchor/*"))) == made
    if name == "anchor-general-texts":
        with pytest.raises(CofituneError, match=r"set compare\.general"):
            do(recipe.to_dict())


def test_mixed_rows_have_the_bases_distributions_too(do, bench, calls, tmp_path, monkeypatch):
    monkeypatch.setenv("COFITUNE_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"count {i}", "completion": str(i)} for i in range(4)]
    general = write_jsonl(tmp_path / "general.jsonl", rows)
    do({"mix": 0.5, "reference": {"top_k": 8}, "token_filter": 300}, general=str(general))
    (call,) = calls
    assert len(call.rows) == 16 + 8 and call.options.reference.top_k == 8
    assert all(len(row.held.ids) == len(row.learnt) == len(row.input_ids) - row.response_start for row in call.rows)


def test_the_base_is_scored_without_training_and_has_no_drift(tiny_run, bench, calls):
    job = {"id": "base", "recipe": None, "data": vars(bench.data), "drift_rows": 3}
    result = run_method(bench, make_setup(tiny_run, bench), job)
    ((alpha, *parts),) = [one.values() for one in result["scores"]]
    for split, scores in zip(("valid", "test"), parts, strict=True):
        drift = scores.pop("drift")
        assert scores == bench.score(split).to_dict(items=True)
        assert drift["value"] == 0 and drift["n"] == 3 and [kl for kl, _ in drift["items"]] == [0.0] * 3
    assert alpha is None and not calls


@torch.no_grad()
def test_the_drift_is_the_kl_to_the_base_on_the_instruction_rows_of_each_part(do, bench, monkeypatch):
    def change(model):
        for parameter in model.parameters():
            parameter.mul_(1.25)

    def train(self, trained, folder, training, options, **watching):
        change(self.model)
        return NOTHING_TRAINED

    monkeypatch.setattr(type(bench), "train", train)
    (scores,) = do({}, drift_rows=3)["scores"]
    (without,) = do({}, drift_rows=0)["scores"]
    assert "drift" not in without["test"] and without["test"]["spec"] == scores["test"]["spec"]
    changed = copy.deepcopy(bench.model)
    change(changed)
    for split in ("valid", "test"):
        expected = []
        for example in bench.suite(split).instruction[0].items[:3]:
            row = encode_example(example, bench.tokenizer)
            p, q = (model(torch.tensor([row.input_ids])).logits[0, row.response_start - 1 : -1].double().log_softmax(-1)
                    for model in (bench.model, changed))
            expected.append([(p.exp() * (p - q)).sum(), len(p)])
        found = torch.tensor(scores[split]["drift"]["items"], dtype=torch.float64)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-7)
        assert scores[split]["drift"]["value"] > 0


@pytest.mark.parametrize("recipe", [{}, {"region": REGION}, {"lora": {"rank": 4}}], ids=str)
def test_interpolations_are_between_base_and_trained(do, bench, recipe):
    result = do(recipe, alphas=[None, 1e-6, 0.5, 1.0])
    assert [scores["alpha"] for scores in result["scores"]] == [None, 1e-6, 0.5, 1.0]
    base, low, half, whole, trained = bench.score("test").spec, *(spec(result, i) for i in (1, 2, 3, 0))
    assert trained == spec(do(recipe))
    assert low == pytest.approx(base, rel=1e-4)
    assert whole == pytest.approx(trained, rel=1e-4) and (whole == trained or "lora" in recipe)
    assert half not in (base, trained, low, whole)
    alone = do(recipe, alphas=[0.5, 1.0])
    assert [spec(alone, 0), spec(alone, 1)] == [half, whole]
    assert tensor_digests(bench.model) == bench.digests


def test_a_diverged_run_is_a_result_and_the_base_is_back(do, bench, monkeypatch):
    def train(self, trained, folder, training, options, **watching):
        with torch.no_grad():
            self.model.get_input_embeddings().weight.fill_(math.nan)
        raise LossNotFinite(3, math.nan)

    monkeypatch.setattr(type(bench), "train", train)
    result = do({}, alphas=[0.5, 1.0])
    assert result["state"] == "failed" and result["scores"] == []
    assert result["why"].startswith("The loss is nan at step 4")
    assert tensor_digests(bench.model) == bench.digests


def test_scores_that_are_no_numbers_are_a_diverged_run_too(do, bench, monkeypatch):
    def train(self, trained, folder, training, options, **watching):
        with torch.no_grad():
            self.model.get_input_embeddings().weight.fill_(math.nan)
        return NOTHING_TRAINED

    monkeypatch.setattr(type(bench), "train", train)
    result = do({})
    assert result["state"] == "failed" and result["scores"] == [] and result["cost"]["tokens"] == 7
    assert "a log-likelihood that is not finite" in result["why"]
    assert tensor_digests(bench.model) == bench.digests


def test_rate_and_seed_go_over_the_runs_training_arguments(do, calls):
    do({"region": REGION, "training": {"weight_decay": 0.5}}, seed=9, learning_rate=3e-3)
    (call,) = calls
    assert call.training == {"per_device_train_batch_size": 8, "max_steps": 2, "weight_decay": 0.5, "seed": 9,
                             "data_seed": 9, "learning_rate": 3e-3, "save_strategy": "no"}
    assert str(call.trained) == REGION and call.base
    assert vars(call.options) == vars(TrainOptions()) and call.rows is None


def test_general_rows_are_mixed_in_at_the_ratio_and_by_the_seed(do, bench, calls, tmp_path):
    general = write_jsonl(tmp_path / "general.jsonl", [{"prompt": f"count {i}", "completion": str(i)}
                                                       for i in range(10)])
    do({"mix": 1.5}, general=str(general))
    task, rows = bench.train_rows, calls[0].rows
    assert rows[:16] == task and len(rows) == 16 + 24
    drawn = [row.where for row in rows[16:]]
    assert sorted(map(drawn[:10].count, set(drawn))) == [1] * 10  # all of them before any comes again
    assert mixed_rows(task, rows[16:26], 0.5, 1) == mixed_rows(task, rows[16:26], 0.5, 1) != mixed_rows(
        task, rows[16:26], 0.5, 2)
    with pytest.raises(CofituneError, match=r"set compare\.general"):
        do({"mix": 1.0})


def test_importance_of_general_rows_is_another_and_is_measured_once(do, bench, calls, tmp_path, monkeypatch):
    general = write_jsonl(tmp_path / "general.jsonl", [{"prompt": f"count {i}", "completion": str(i)}
                                                       for i in range(10)])
    for source in ("task", "general", "general"):
        do({"region": REGION, "mask": {"importance": source}}, general=str(general))
    task, first, again = (call.options.masks for call in calls)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], task[name]) for name in first)
    assert len(list((tmp_path / "run" / "importance").iterdir())) == 2
    assert {call.options.mask_mode for call in calls} == {"update"}


def test_contrasted_importance_spares_what_the_task_needs(do, bench, calls, tmp_path):
    do({"region": REGION, "mask": {"importance": "contrast"}})
    (call,) = calls
    kept, used = (bench.importance(call.trained, samples=8, proxy=proxy) for proxy in ("kl_dropout", "task_nll"))
    expected = bench.masks(kept.against(used), call.trained, "rank")
    for name, mask in call.options.masks.items():
        torch.testing.assert_close(mask, expected[name], rtol=0, atol=0)
    assert not all(torch.equal(mask, expected[name])
                   for name, mask in bench.masks(kept, call.trained, "rank").items())
    assert len(list((tmp_path / "run" / "importance").iterdir())) == 2


def test_loss_and_anchor_are_handed_on_the_anchor_made_from_the_base(do, bench, calls, monkeypatch):
    monkeypatch.setattr(type(bench), "anchor", lambda self, settings: (settings, tensor_digests(self.model)),
                        raising=False)
    do({"lora": {}, "loss": "dft", "anchor": {"weight": 2.0}})
    (call,) = calls
    assert call.options.loss == "dft"
    assert call.options.anchor == (AnchorSettings(2.0), bench.digests)  # before there were adapters
    assert call.options.storage == "auto"


@pytest.mark.parametrize("units", ["none", "importance", "importance_squared"])
def test_a_pull_has_the_mean_strength_of_its_layer_and_the_shape_of_a_mask(do, bench, calls, units):
    do({"pull": {"kind": "l1", "strength": 2.0, "units": units}})
    pull = calls[0].options.pull
    assert (pull.kind, pull.strength) == ("l1", 2.0)
    parameters = dict(bench.model.named_parameters())
    assert all(torch.equal(pull.initial[name], parameter) for name, parameter in parameters.items())
    if units == "none":
        assert pull.units is None
        return
    importance = bench.importance(samples=8)
    for name in parameters:
        if "mlp" not in name:
            continue
        layer = int(name.split(".")[2])
        raw = importance.scores["ffn.neuron"][layer].double() ** (2 if units == "importance_squared" else 1)
        expected = (raw / raw.mean()).float()
        expected = expected[None, :] if "down_proj" in name else expected[:, None]
        torch.testing.assert_close(pull.units[name], expected, rtol=1e-5, atol=1e-6)
    assert all(pull.units[name].shape == () for name in parameters if "norm" in name or "embed" in name)


def test_a_random_half_is_half_of_each_layer_and_another_with_another_seed(bench):
    cells = [(cell.layer, cell.role) for cell in random_half(bench.layout, 1).cells(bench.layout)]
    by_layer = [[role for layer, role in cells if layer == index] for index in range(4)]
    assert [sum(role.startswith("attn") for role in roles) for roles in by_layer] == [2] * 4
    assert sorted(sum(role.startswith("ffn") for role in roles) for roles in by_layer) == [1, 1, 2, 2]
    assert len({str(random_half(bench.layout, seed)) for seed in (1, 1, 2, 3)}) == 3


def test_the_frozen_bottom_is_a_share_of_the_layers(bench):
    region = what_is_trained(Recipe(frozen_bottom=0.5), bench.layout, 1)
    assert str(region) == "all@2-3"
    with pytest.raises(CofituneError, match="layer 9"):
        what_is_trained(Recipe(region="ffn@9"), bench.layout, 1)
