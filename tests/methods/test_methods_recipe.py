"""Recipes as plain values, the catalogue, and what is refused before anything is loaded."""

from __future__ import annotations

import json

import pytest

from cofitune_fast.errors import CofituneError
from cofitune_fast.methods import CATALOGUE, Recipe, read_methods


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
    ([{"method": "region", "lerning_rates": [1]}], {}, "unknown key lerning_rates; did you mean learning_rates?"),
    ([{"method": "lora", "lora": {"rnk": 4}}], {}, "under lora, has the unknown key rnk; did you mean rank?"),
    ([{"method": "lora", "lora": {"rank": 0}}], {}, "lora rank 0"),
    ([{"method": "lora", "lora": {"targets": "ffn.sideways@all"}}], {}, "Unknown role 'ffn.sideways'"),
    ([{"method": "lora", "region": "ffn@all"}], {}, "says by region and lora what is trained; give one of them."),
    ([{"method": "lora", "mask": {}}], {}, "puts a mask or a pull on LoRA"),
    ([{"method": "full-sft", "loss": "mse"}], {}, "has 'mse' as loss; choose one of ce, dft, eaft."),
    ([{"method": "region", "mask": {"mode": "weight"}}], {}, "has 'weight' as mask.mode"),
    ([{"method": "l2", "pull": {"kind": "l3"}}], {}, "has 'l3' as pull.kind; choose one of l2, l1."),
    ([{"method": "mix", "mix": 0}], {}, "has 0 as mix; it must lie above 0."),
    ([{"method": "mofo", "mofo": 1.5}], {}, "has 1.5 as mofo; it must lie above 0 and below 1."),
    ([{"method": "region", "region": 3}], {}, "has 3 as region, which is of the wrong type."),
    ([{"method": "region", "learning_rates": 1e-4}], {}, "as learning_rates; it must be a list of numbers."),
    ([{"method": "region", "learning_rates": [-1]}], {}, "has [-1] as learning_rates"),
    ([{"method": "region", "training": {"seed": 3}}], {}, "sets training.seed, which comes from"),
])
def test_what_cannot_be_is_refused_in_one_sentence(entries, rates, sentence):
    with pytest.raises(CofituneError) as error:
        read_methods(entries, rates)
    assert sentence in str(error.value)
