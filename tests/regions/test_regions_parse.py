"""The grammar of region text: canonical form, round trip, layer arithmetic, and what is refused."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofitune_fast.errors import CofituneError
from cofitune_fast.regions import GROUPS, ROLES, LayerSet, Region

NAMES = [*ROLES, "mha", "ffn", "all"]


def layers_of(text: str, num_layers: int) -> list[int]:
    return sorted(LayerSet.parse(text, text).indices(num_layers, text))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("ffn.up+ffn.down@25%-50%", "ffn.up+ffn.down@25%-50%"),
        (" FFN.Down + ffn.UP @ 25.0 % - 50 % ", "ffn.up+ffn.down@25%-50%"),
        ("+".join(GROUPS["mha"]) + "@all", "mha@all"),
        ("ffn+ffn.router@1", "ffn+ffn.router@1"),
        ("mha+ffn@3", "all@3"),
        ("mha@1;attn.q@3", "mha@1;attn.q@1,3"),
        ("all@0;attn.q@1", "all@0;attn.q@0-1"),
        ("ffn@25%-50%;ffn.up@all", "ffn@25%-50%;ffn.up@all"),
        ("all@ALL", "all@all"),
        ("ffn+attn.q@1", "attn.q+ffn@1"),
        ("ffn@3,5,7-9,4,10", "ffn@3-5,7-10"),
        ("ffn@8-8", "ffn@8"),
        ("ffn@25%-50%,50%-75%", "ffn@25%-75%"),
        ("ffn@0%-50%,50%-100%", "ffn@all"),
        ("ffn@0%-100%", "ffn@all"),
        ("ffn@33.3%-66.70%,2", "ffn@2,33.3%-66.7%"),
        ("ffn@3,all", "ffn@all"),
        ("ffn.up@2;ffn.up@3", "ffn.up@2-3"),
        ("ffn.down@0-3;mha@all;ffn.up@0-3", "mha@all;ffn.up+ffn.down@0-3"),
        ("Full", "full"),
    ],
)
def test_canonical_text(text, canonical):
    region = Region.parse(text)
    assert str(region) == canonical
    assert Region.parse(canonical) == region
    assert hash(Region.parse(canonical)) == hash(region)


def test_full_and_all_differ():
    assert Region.parse("full") == Region.full() != Region.parse("all@all")


def test_a_region_passes_through_parse():
    region = Region.parse("mha@1")
    assert Region.parse(region) is region


def test_regions_are_frozen():
    with pytest.raises(AttributeError):
        Region.parse("mha@1").is_full = True


percents = st.decimals(0, 100, places=2)
layer_parts = st.one_of(
    st.just("all"),
    st.integers(0, 99).map(str),
    st.tuples(st.integers(0, 99), st.integers(0, 99)).map(lambda pair: "{}-{}".format(*sorted(pair))),
    st.tuples(percents, percents)
    .filter(lambda pair: pair[0] != pair[1])
    .map(lambda pair: "{}%-{}%".format(*sorted(pair))),
)
terms = st.tuples(
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map("+".join),
    st.lists(layer_parts, min_size=1, max_size=4).map(",".join),
).map("@".join)


@given(st.lists(terms, min_size=1, max_size=3))
def test_round_trip(parts):
    region = Region.parse(";".join(parts))
    assert Region.parse(str(region)) == region
    assert Region.parse(";".join(reversed(parts)).upper().replace("+", " + ")) == region


@given(st.lists(layer_parts, min_size=1, max_size=4), st.integers(100, 200))
def test_merging_ranges_keeps_the_layers(parts, num_layers):
    if not any(failure(part, num_layers) for part in parts):
        separate = set().union(*(layers_of(part, num_layers) for part in parts))
        assert set(layers_of(",".join(parts), num_layers)) == separate


def failure(part: str, num_layers: int) -> str:
    try:
        layers_of(part, num_layers)
    except CofituneError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("num_layers", "text", "first", "last"),
    [
        (40, "25%-50%", 10, 19),  # the figures of the paper for 13B, 7B and 33B
        (32, "25%-50%", 8, 15),
        (60, "25%-50%", 15, 29),
        (30, "25%-50%", 7, 14),
        (30, "0%-25%", 0, 6),
        (30, "50%-100%", 15, 29),
        (30, "50%-75%", 15, 21),
        (60, "33.3%-66.7%", 19, 39),
        (32, "25%-75%", 8, 23),
    ],
)
def test_percent_ranges(num_layers, text, first, last):
    assert layers_of(text, num_layers) == list(range(first, last + 1))


@given(st.integers(1, 1000), st.integers(0, 9999), st.integers(1, 10000))
def test_percent_arithmetic_is_exact(num_layers, low, width):
    high = min(low + width, 10000)
    expected = range(num_layers * low // 10000, num_layers * high // 10000)
    text = f"{low / 100:.2f}%-{high / 100:.2f}%"
    if len(expected):
        assert layers_of(text, num_layers) == list(expected)
    else:
        assert "selects no layer" in failure(text, num_layers)


def test_no_float_noise():
    assert 0.29 * 100 < 29  # what floats make of it
    assert layers_of("0%-29%", 100) == list(range(29))


def test_quarters_partition_the_layers():
    for num_layers in range(4, 80):
        quarters = [layers_of(f"{low}%-{low + 25}%", num_layers) for low in (0, 25, 50, 75)]
        assert list(chain(*quarters)) == list(range(num_layers))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "The region is empty"),
        ("  ", "The region is empty"),
        ("ffn", "'ffn' of region 'ffn' is incomplete; write ROLES@LAYERS"),
        ("@all", "is incomplete"),
        ("ffn@", "is incomplete"),
        ("ffn@all;", "The part '' of region"),
        ("ffn.upp@all", "Unknown role 'ffn.upp' in region 'ffn.upp@all', did you mean 'ffn.up'"),
        ("up@all", "did you mean 'ffn.up'"),
        ("q_proj@all", "did you mean 'attn.q'"),
        ("fnn@all", "did you mean 'ffn'"),
        ("zzzzz@all", "Unknown role 'zzzzz' in region 'zzzzz@all'; known are the roles .* groups mha, ffn, all"),
        ("ffn+@all", "Unknown role ''"),
        ("full+ffn@all", "Unknown role 'full'"),
        ("ffn@9-8", "run backwards; write 8-9"),
        ("ffn@50%-25%", "run backwards; write 25%-50%"),
        ("ffn@25%-25%", "select no layer: the end of a percent range is excluded"),
        ("ffn@50%-101%", "lie outside 0%-100%"),
        ("ffn@25%", "The layers '25%' of region 'ffn@25%' are not understood; write all, 8, 8-15, 25%-50%"),
        ("ffn@25-50%", "not understood"),
        ("ffn@-1", "not understood"),
        ("ffn@1,,2", "The layers '' of region"),
        ("ffn@1.5", "not understood"),
        ("ffn@1@2", "not understood"),
    ],
)
def test_bad_text(text, words):
    with pytest.raises(CofituneError, match=words):
        Region.parse(text)


def test_empty_cells_are_refused():
    with pytest.raises(CofituneError, match="The region is empty"):
        Region.from_cells([])


def test_from_cells():
    assert str(Region.from_cells([(3, "ffn.up"), (4, "ffn.up"), (3, "ffn.down"), (4, "ffn.down")])) == (
        "ffn.up+ffn.down@3-4"
    )
