"""The words of the report follow the numbers, whoever wins."""

from __future__ import annotations

import math

import pytest
from synthetic_report import method, node, synthetic_report

from cofitune_fast.report.run.schema import checked
from cofitune_fast.report.run.sentences import headline
from cofitune_fast.report.run.verdict import best, difference
from cofitune_fast.report.search.sentences import search_sentence


def told(*methods, **more):
    return headline(checked(synthetic_report(methods=list(methods), **more)))


BASE = method("base", 0.10, 0.60)
FULL = method("full SFT", 0.40, 0.50)


def ours(spec, vers, **more):
    return method("CoFiTune fine", spec, vers, trained_parameters=10_000_000, **more)


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_a_win():
    line = told(BASE, FULL, ours(0.372, 0.576), search=None)
    assert line.outcome == "ahead" and line.badge == "clearly ahead of full SFT"
    assert plain(line.title) == (
        "CoFiTune fine keeps 96 % of the base's versatility and 93 % of full SFT's speciality, "
        "training 10 % of the weights."
    )
    text = plain(" ".join(line.sentences))
    assert "leads full SFT by 0.048 ± 0.008 in Uni (0.948 against 0.900), more than two standard errors" in text
    assert "speciality rises by 0.272 ± 0.006 over the base (0.100 before, 0.372 after)" in text
    assert "search" not in text
    assert [plain(tile.value) for tile in line.tiles] == ["96 %", "93 %", "10 %", "+0.048"]


def test_a_small_lead_is_no_proof():
    line = told(BASE, FULL, ours(0.38, 0.53))
    assert line.badge == "slightly ahead of full SFT"
    assert "more than one standard error but not two: a hint, no proof" in " ".join(line.sentences)


def test_a_tie_names_no_winner():
    line = told(BASE, FULL, ours(0.38, 0.523))
    assert line.outcome == "tie" and line.badge == "no measurable difference to full SFT in Uni"
    text = plain(" ".join(line.sentences))
    assert "cannot be told apart from full SFT: 0.903 against 0.900" in text
    assert "the difference of 0.003 ± 0.008 is within its standard error" in text
    assert "leads" not in text and "wins" not in line.title


def test_a_defeat_stands_in_the_title():
    line = told(BASE, FULL, ours(0.30, 0.52))
    assert line.outcome == "behind" and line.badge == "clearly behind full SFT"
    assert plain(line.title) == (
        "Full SFT wins here: it leads CoFiTune fine by 0.080 ± 0.008 in Uni, more than two standard errors."
    )
    assert "keeps 87 % of the base's versatility and 75 %" in plain(line.sentences[0])
    assert plain(line.tiles[-1].value) == "−0.080"


def test_a_small_defeat_is_said_in_the_same_words_as_a_small_win():
    line = told(BASE, FULL, ours(0.38, 0.51))
    assert line.title.startswith("Full SFT is slightly ahead of CoFiTune fine") and "a hint, no proof" in line.title


def test_more_than_all_is_said_as_all():
    assert "keeps all of the base's versatility (103 %) and all of full SFT's speciality (105 %)" in plain(
        told(BASE, FULL, ours(0.42, 0.618)).title
    )


def test_harm_and_idleness_are_said():
    assert "fell by 0.050" in plain(" ".join(told(BASE, FULL, ours(0.05, 0.60)).sentences))
    assert "did not move beyond the standard error" in " ".join(told(BASE, FULL, ours(0.102, 0.60)).sentences)
    base = method("base", 0.40, 0.60)
    assert "the untrained base is better than CoFiTune fine" in " ".join(told(base, FULL, ours(0.42, 0.50)).sentences)
    assert "within the standard error of the untrained base" in " ".join(told(base, FULL, ours(0.42, 0.579)).sentences)


def test_a_stronger_third_method_is_named():
    text = plain(" ".join(told(BASE, FULL, method("LoRA", 0.41, 0.60), ours(0.38, 0.58)).sentences))
    assert "LoRA scores higher than CoFiTune fine in Uni: 1.010 against 0.960, beyond the standard error" in text
    text = plain(" ".join(told(BASE, FULL, method("LoRA", 0.383, 0.58), ours(0.38, 0.58)).sentences))
    assert "0.963 against 0.960, within the standard error" in text


def test_the_strongest_full_sft_is_the_one_to_beat():
    tuned = method("full SFT, lr 3e-5", 0.42, 0.57)
    line = told(BASE, FULL, tuned, ours(0.38, 0.55))
    assert line.badge == "clearly behind full SFT, lr 3e-5"


def test_the_last_cofitune_row_speaks_even_if_an_earlier_one_scored_better():
    line = told(BASE, FULL, method("CoFiTune coarse", 0.40, 0.60), ours(0.30, 0.52))
    assert line.title.startswith("Full SFT wins here: it leads CoFiTune fine")
    assert "CoFiTune coarse scores higher than CoFiTune fine" in " ".join(line.sentences)


def test_the_price_includes_the_search():
    text = plain(" ".join(told(BASE, FULL, ours(0.38, 0.58, seconds=305.4)).sentences))
    assert "Training took 5 min 5 s (full SFT: 9 min 8 s)" in text and "the search before it took 23 min 32 s" in text


def test_missing_rows_and_numbers():
    assert "no full SFT in this report" in " ".join(told(BASE, ours(0.38, 0.58)).sentences)
    assert "base's versatility" not in told(FULL, ours(0.38, 0.58)).title
    assert "without standard errors no winner is named" in " ".join(
        told(BASE, FULL, ours(0.38, 0.58, uni_se=float("nan"))).sentences
    )
    assert "No method has been scored yet" in told().title
    assert "nothing stands beside it" in told(BASE).title
    assert plain(told(BASE, FULL).title) == "Full SFT has the highest Uni, 0.900, 0.200 ± 0.008 above base."
    nothing = ours(0.1, 0.1) | {"spec": None, "vers": None, "uni": None}
    assert "no scored CoFiTune run" in told(BASE, FULL, nothing).sentences[0]


def test_differences_and_the_rule_for_bold():
    rows = checked(synthetic_report(methods=[BASE, FULL, ours(0.406, 0.58), method("LoRA", 0.405, 0.40)]))["methods"]
    lead = difference(rows[2], rows[1], "spec")
    assert lead.value == pytest.approx(0.006) and lead.se == pytest.approx(math.hypot(0.004, 0.004))
    assert lead.outcome == "ahead" and not lead.clear
    assert best(rows, "vers") == "CoFiTune fine"  # the base's 0.60 is higher, but it is not in the contest
    assert best(rows, "spec") is None  # LoRA is too near
    rows[3]["vers_se"] = float("nan")
    assert best(rows, "vers") is None  # a lead over it cannot be judged
    assert best(rows[:2], "vers") is None  # one method alone leads nobody


def test_the_search_sentence():
    search = checked(synthetic_report())["search"]
    assert (
        search_sentence(search)
        == "None of the 5 other scored regions lies within the standard error of the chosen one."
    )
    near = node("g", "d", 3, 0.381, 0.593, label="node g")
    search = checked(synthetic_report(search={"chosen": "f", "split": "valid", "nodes": [*search["nodes"], near]}))[
        "search"
    ]
    text = search_sentence(search)
    assert "1 of the 6 other scored regions lies within" in text and "a close call" in text
    assert "The highest Uni, 0.974, is not that of the chosen region but of node g." in text
    search["chosen"] = None
    assert search_sentence(search) == ""
