from __future__ import annotations

import itertools

import pytest
from synthetic_report import method, node, synthetic_report

from cofitune_fast.report import write_report
from cofitune_fast.report.run.schema import checked
from cofitune_fast.report.search.tree import BOX_HEIGHT, chosen_path, layout
from cofitune_fast.report.style.palette import COLORS, LIGHT, STEPS, method_styles, step_of

pytest.importorskip("matplotlib")


def pixels(path):
    from matplotlib.image import imread

    image = imread(path)[..., :3]
    assert image.ndim == 3
    return image


def contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio of two hex colours."""

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_pictures_are_valid_sharp_and_not_blank(tmp_path):
    paths = write_report(synthetic_report(), tmp_path)["png"]
    assert [path.name for path in paths] == [
        "tradeoff.png", "uni_bars.png", "search_tree.png", "search_plane.png", "search_cost.png",
        "importance.png",
    ]  # fmt: skip
    for path in paths:
        image = pixels(path)
        assert image.shape[1] >= 900 and image.std() > 0.02
        ink = (image < 0.99).any(axis=(0, 2)).nonzero()[0]
        assert ink.max() - ink.min() > image.shape[1] / 2  # it fills its width


def test_a_picture_of_an_earlier_report_is_removed(tmp_path):
    write_report(synthetic_report(), tmp_path)
    paths = write_report(synthetic_report(search=None, importance=None), tmp_path)["png"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["tradeoff.png", "uni_bars.png"]
    assert sorted(path.name for path in paths) == ["tradeoff.png", "uni_bars.png"]


def test_each_method_keeps_its_color_in_every_picture(tmp_path):
    from matplotlib.colors import to_rgb

    names = ["base", "full SFT", "LoRA", "CoFiTune fine"]
    styles = method_styles(names)
    paths = {path.stem: pixels(path) for path in write_report(synthetic_report(), tmp_path)["png"]}
    for name in names:
        for picture in ("tradeoff", "uni_bars"):
            near = abs(paths[picture] - to_rgb(styles[name].light)).max(axis=2) < 0.01
            assert near.sum() > 50, (name, picture)


def test_known_methods_look_the_same_whoever_stands_beside_them():
    few, many = (
        method_styles(["base", "CoFiTune fine"]),
        method_styles(["mine", "LoRA", "CoFiTune fine", "other", "base"]),
    )
    assert few["CoFiTune fine"].color == many["CoFiTune fine"].color and few["base"] == many["base"]
    assert len({look.color for look in many.values()}) == 5
    crowd = method_styles([f"m{i}" for i in range(20)])
    assert len({(look.color, look.marker) for look in crowd.values()}) == 20


def test_colors_can_be_replaced_and_read():
    assert len(set(LIGHT.values())) == len(LIGHT)
    for scheme in (0, 1):
        surface = COLORS["surface"][scheme]
        for name in ("ink", "muted", "accent"):
            assert contrast(COLORS[name][scheme], surface) >= 4.5, (name, scheme)
        for name in ("base", "vermillion", "sky", "blue", "green", "pink", "amber", "purple", "brown", "olive"):
            assert contrast(COLORS[name][scheme], surface) >= 3, (name, scheme)
        for step in range(STEPS):
            assert contrast(COLORS[f"ink{step}"][scheme], COLORS[f"step{step}"][scheme]) >= 4, (step, scheme)


def test_steps_cover_the_range():
    assert step_of(0.5, 0.5, 0.9) == 0 and step_of(0.9, 0.5, 0.9) == STEPS - 1 and step_of(0.7, 0.7, 0.7) == STEPS // 2


def test_the_tree_never_overlaps_and_follows_its_parents():
    nodes = [node(f"r{i}", None, 1, 0.3, 0.5) for i in range(6)]
    nodes += [node(f"s{i}", "r4", 3, 0.3, 0.5) for i in range(9)] + [node(f"t{i}", "r0", 3, 0.3, 0.5) for i in range(5)]
    nodes += [node(f"u{i}", "s2", 7, 0.3, 0.5) for i in range(10)]
    nodes = checked(synthetic_report(search={"chosen": "u3", "nodes": nodes}))["search"]["nodes"]
    places, columns = layout(nodes)
    assert columns == 3 and len(places) == 30
    for (_, (column, y)), (_, (other, z)) in itertools.combinations(places.items(), 2):
        assert column != other or abs(y - z) > BOX_HEIGHT
    assert min(y for _, y in places.values()) == pytest.approx(BOX_HEIGHT / 2)
    assert max(places[f"t{i}"][1] for i in range(5)) < min(places[f"s{i}"][1] for i in range(9))  # r0 is above r4
    assert chosen_path({"nodes": nodes, "chosen": "u3"}) == {"u3", "s2", "r4"}
    assert chosen_path({"nodes": nodes, "chosen": None}) == set()


@pytest.mark.parametrize("amount", [1, 2, 30])
def test_any_number_of_nodes_and_strange_names_can_be_drawn(tmp_path, amount):
    name = "$\\frac{1}{2}$ <b>" + "long " * 30 + "模型"
    nodes = [
        node(str(i), None if i < 3 else "0", 1 if i < 3 else 2, 0.3 + i / 100, 0.5, label=name) for i in range(amount)
    ]
    nodes[-1].update(spec=None, uni=float("nan"), trained_parameters=None)
    report = synthetic_report(search={"chosen": "0", "split": "valid", "nodes": nodes})
    report["methods"].append(method(name, 0.3, 0.5, se=0.0, spec_se=None, uni_se=None))
    paths = {path.stem: path for path in write_report(report, tmp_path)["png"]}
    assert pixels(paths["search_tree"]).std() > 0.02
    assert ("search_plane" in paths) == (amount > 2)


@pytest.mark.parametrize("drop", [("attn.head",), ("ffn.neuron", "ffn.output"), ("ffn.output", "attn.head")])
def test_importance_is_drawn_from_what_is_there(tmp_path, drop):
    report = synthetic_report()
    for layer in report["importance"]["layers"][:-1]:
        for key in drop:
            layer[key] = None
    report["importance"]["layers"][0]["ffn.neuron"] = None
    for key in drop:
        del report["importance"]["layers"][-1][key]
    paths = {path.stem: path for path in write_report(report, tmp_path)["png"]}
    assert pixels(paths["importance"]).std() > 0.02
