"""Recipes as plain values, the catalogue, and what is refused before anything is loaded."""

from __future__ import annotations

import json

import pytest

from cofitune_fast.anchor import NO_ANCHOR
from cofitune_fast.errors import CofituneError
from cofitune_fast.methods import CATALOGUE, Recipe, read_methods
from cofitune_fast.methods.recipe import LoraSettings, MaskSettings


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_named_method_is_plain_json_both_ways_with_four_rates(name):
    (method,) = read_methods([name])
    values = json.loads(json.dumps(method.recipe.to_dict()))
    assert Recipe.from_dict(values) == method.recipe
    assert Recipe.from_dict(values).digest == method.recipe.digest
    assert len(method.recipe.learning_rates) == 4 and method.sentence.endswith(".")


def test_the_digest_is_of_what_is_trained():
    full, region, wise, again = (one.recipe for one in read_methods(
        ["full-sft", "region", "wise-ft", {"name": "other", "method": "full-sft", "learning_rates": [1e-3]}]))
    assert full.digest == wise.digest == again.digest != region.digest
    digests = {one.recipe.digest for one in read_methods(list(CATALOGUE))}
    assert len(digests) == len(CATALOGUE) - 2  # wise-ft is full SFT, region-anchor-wise is anchor
    # of the empty recipe, whatever fields come later
    assert Recipe().digest == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_digests_stay_what_they_were_for_runs_are_found_by_them():
    assert {one.name: one.recipe.digest[:16] for one in read_methods(list(CATALOGUE))} == {
        "full-sft": "44136fa355b3678a",
        "region": "6aa7c2c2f88120e9",
        "lora": "b447e927a1cae1c2",
        "lora-ffn": "efa60e6741ca1ac8",
        "wise-ft": "44136fa355b3678a",
        "l2": "afc36098fe7e0881",
        "l1": "dd0fbf78bc22902d",
        "ewc": "0c2e3e39fafeafeb",
        "v-softmask": "c7ab0a510694ddbd",
        "mix": "a3f65760ec1f6aca",
        "bottom-frozen": "efad11275c531ae4",
        "hft": "61bce4323f0d6f16",
        "mofo": "cd999497908785a8",
        "dft": "edbb8b5ffba4fce8",
        "eaft": "4a1f6183722e3e49",
        "fine-gradient": "5b586e63efcce303",
        "fine-update": "70253c89902bac51",
        "fine-paper": "36df7b67fa5587ba",
        "fine-general": "deb7c7471062a680",
        "anchor": "f849ee696db28920",
        "full-anchor": "6ceda958ca8012b4",
        "lora-anchor": "f246ba7c089baca0",
        "region-anchor-wise": "f849ee696db28920",
        "self-mix": "563de154e46c1020",
        "region-self-mix": "e9d639db2d42342c",
        "sft-kl": "c4e892632dac88b7",
        "sft-kl-masked": "e297cc4329bdd6d3",
        "asft": "dcbee327fff5b5a1",
        "selfaug": "907c44ac7f9f1957",
        "stm": "b304e8211cb0b273",
        "attention": "93e8d5d0b88d4026",
        "gate-up": "512eb39f95fab677",
        "anchor-attention": "a65e76f95288001b",
        "anchor-gate-up": "a7f556efab5ac17c",
        "anchor-reverse": "c8ba068713a6f41e",
        "anchor-general-texts": "e2f1c1acc7866757",
        "anchor-free-texts": "ef6a9ac8724978da",
    }
    # a field of the anchor that came later counts only where it differs from its default
    for later in ({"loss": "kl", "source": "answers"}, {"loss": "ce"}, {"source": "free"}):
        digest = read_methods([{"method": "anchor", "anchor": later}])[0].recipe.digest
        assert digest.startswith("f849ee696db28920") is (later.get("loss") == "kl")
    # numbers as they were written, and only what was given
    entry = {"method": "full-sft", "mix": 1, "anchor": {"weight": 4, "rows": 2}, "pull": {"strength": 100}}
    assert read_methods([entry])[0].recipe.digest.startswith("93b028716d93ab98")
    entry = {"method": "lora", "lora": {"rank": 8, "alpha": 16}, "training": {"weight_decay": 0}}
    assert read_methods([entry])[0].recipe.digest.startswith("d9904b2ef03c62c0")


def test_which_methods_need_general_rows_and_where_an_anchor_takes_its_texts():
    needy = {one.name for one in read_methods(list(CATALOGUE)) if one.recipe.needs_general}
    assert needy == {"mix", "fine-general", "anchor-general-texts"}
    texts, own, plain = (read_methods([entry])[0].recipe for entry in (
        "anchor-general-texts", {"method": "anchor-general-texts", "anchor": {"prompts": "mine.jsonl"}}, "full-sft"))
    assert texts.anchor_settings("general.jsonl").prompts == "general.jsonl" and not own.needs_general
    assert own.anchor_settings("general.jsonl").prompts == "mine.jsonl" and plain.anchor_settings(None) == NO_ANCHOR
    with pytest.raises(CofituneError, match=r"set compare\.general"):
        texts.anchor_settings(None)


def test_what_is_given_as_another_type_is_read_as_what_it_is():
    recipe = Recipe.from_dict({"anchor": {"rows": "2", "weight": 1}, "lora": {"rank": 4}, "alphas": [0.5, 1]})
    assert recipe == Recipe(anchor={"rows": 2, "weight": 1}, lora=LoraSettings(4), alphas=(0.5, 1))
    with pytest.raises(CofituneError, match=r"lora\.rank is 0"):
        LoraSettings(rank=0)
    with pytest.raises(CofituneError, match=r"mask\.mode is 'weight'; choose one of update, gradient\."):
        MaskSettings(mode="weight")


def test_entries_go_over_the_catalogue_and_sweeps_over_both():
    first, second = read_methods(
        ["region", {"name": "strong", "method": "anchor", "anchor": {"rows": 8}, "training": {"weight_decay": 0.1}}],
        rates={"region": [1e-3, 2e-3]}, region="mha@all")
    assert first.recipe.region == second.recipe.region == "mha@all"
    assert first.recipe.learning_rates == (1e-3, 2e-3)
    assert second.recipe.anchor == {"weight": 1.0, "rows": 8, "tokens": 48}
    assert second.recipe.training == {"weight_decay": 0.1}
    assert Recipe.from_dict({"region": "all"}) == Recipe()


@pytest.mark.parametrize(("entries", "rates", "sentence"), [
    (["regoin"], {}, "unknown method 'regoin'; did you mean region?"),
    ([{"name": "x"}], {}, "unknown method None"),
    (["region", "region"], {}, "compare.methods has region twice; give one of them another name."),
    (["region"], {"lora": [1e-3]}, "rates for lora, which is not among compare.methods"),
    ([{"method": "region", "lerning_rates": [1]}], {},
     "Unknown key lerning_rates in the method region of compare.methods; did you mean learning_rates?"),
    ([{"method": "lora", "lora": {"rnk": 4}}], {},
     "Unknown key lora.rnk in the method lora of compare.methods; did you mean lora.rank?"),
    ([{"method": "anchor", "anchor": {"wieght": 4}}], {},
     "Unknown key wieght in the anchor of the method anchor of compare.methods; did you mean weight?"),
    ([{"method": "anchor", "anchor": {"weight": -1}}], {},
     "The anchor of the method anchor of compare.methods: anchor.weight is -1.0; it must be at least 0."),
    ([{"method": "anchor", "anchor": {"rows": "few"}}], {},
     "rows in the anchor of the method anchor of compare.methods"),
    ([{"method": "anchor", "anchor": {"loss": "jsd"}}], {},
     "loss in the anchor of the method anchor of compare.methods is wrong: Input should be 'kl', 'reverse_kl' or 'ce'"),
    ([{"method": "anchor", "anchor": {"source": "rows", "prompts": "task"}}], {}, "the task's own rows are no anchor"),
    ([{"method": "sft-kl", "reference": {"weight": 0}}], {}, "reference.weight is 0; it must be above 0."),
    ([{"method": "sft-kl", "reference": {"top_k": 0}}], {}, "reference.top_k is 0; it must be at least 1."),
    ([{"method": "sft-kl", "reference": {"tokens": "all"}}], {}, "Input should be 'response' or 'prompt'"),
    ([{"method": "sft-kl", "reference": {"wieght": 1}}], {}, "did you mean reference.weight?"),
    ([{"method": "stm", "token_filter": 1}], {}, "token_filter is 1; it must be above 1."),
    ([{"method": "lora", "lora": {"rank": 0}}], {},
     "The method lora of compare.methods: lora.rank is 0; it must be above 0."),
    ([{"method": "lora", "lora": {"dropout": 1}}], {}, "lora.dropout is 1; it must be at least 0 and below 1."),
    ([{"method": "lora", "lora": {"targets": "ffn.sideways@all"}}], {}, "Unknown role 'ffn.sideways'"),
    ([{"method": "lora", "lora": 16}], {}, "lora in the method lora of compare.methods is wrong"),
    ([{"method": "lora", "region": "ffn@all"}], {}, "region and lora say what is trained; give one of them."),
    ([{"method": "lora", "mask": {}}], {}, "A mask or a pull acts on the model's own weights, which LoRA leaves alone"),
    ([{"method": "mofo", "mask": {}}], {}, "MoFO makes a mask of its own at every step"),
    ([{"method": "full-sft", "loss": "mse"}], {},
     "loss in the method full-sft of compare.methods is wrong: Input should be 'ce', 'dft' or 'eaft' (given: 'mse')."),
    ([{"method": "region", "mask": {"mode": "weight"}}], {},
     "mask.mode in the method region of compare.methods is wrong"),
    ([{"method": "l2", "pull": {"kind": "l3"}}], {}, "'l2' or 'l1' (given: 'l3')."),
    ([{"method": "l2", "pull": {"strength": 0}}], {}, "pull.strength is 0; it must be above 0."),
    ([{"method": "mix", "mix": 0}], {}, "mix is 0; it must lie above 0."),
    ([{"method": "mix", "mix": "much"}], {}, "mix in the method mix of compare.methods is wrong"),
    ([{"method": "mofo", "mofo": 1.5}], {}, "mofo is 1.5; it must lie above 0 and below 1."),
    ([{"method": "region", "region": 3}], {}, "region in the method region of compare.methods is wrong"),
    ([{"method": "region", "learning_rates": 1e-4}], {}, "learning_rates in the method region of compare.methods is"),
    ([{"method": "region", "learning_rates": [-1]}], {}, "learning_rates is [-1]; its numbers must be above 0."),
    ([{"method": "region", "training": {"seed": 3}}], {}, "training.seed comes from the sweep and the seeds"),
    ([3], {}, "An entry of compare.methods must be a name or a mapping, not 3."),
])
def test_what_cannot_be_is_refused_in_one_sentence(entries, rates, sentence):
    with pytest.raises(CofituneError) as error:
        read_methods(entries, rates)
    assert sentence in str(error.value)
