"""Metrics of generated text against sacrebleu and rouge-score, their errors against the bootstrap, and the answers."""

from __future__ import annotations

import json
import random
import unicodedata
from decimal import Decimal

import numpy as np
import pytest

from cofitune_fast.errors import CofituneError
from cofitune_fast.scoring import Score, paired_difference, resampled_score
from cofitune_fast.scoring.metrics import METRICS, DriftItem, FollowedItem, estimate
from cofitune_fast.scoring.numbers import last_number, marked_answer
from cofitune_fast.scoring.results import score_of
from cofitune_fast.scoring.text_metrics import limits_of_metrics, text_scorer
from cofitune_fast.scoring.words import words

sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed (extra eval)")
rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is not installed (extra eval)")

TEXT = "the Blue Spice is a coffee shop in city centre , near riverside . It serves cheap food and wine £20"
WORDS = TEXT.split()


def sample(count, seed=0, noise=0.4):
    """Texts and one to three references each, some words of which are the text's."""
    draw = random.Random(seed)
    texts, references = [], []
    for _ in range(count):
        wanted = [[draw.choice(WORDS) for _ in range(draw.randint(4, 14))] for _ in range(draw.randint(1, 3))]
        texts.append(" ".join(draw.choice(WORDS) if draw.random() < noise else word for word in draw.choice(wanted)))
        references.append([" ".join(words) for words in wanted])
    return texts, references


def scored(texts, references):
    score = text_scorer()
    return [score(text, wanted, False) for text, wanted in zip(texts, references, strict=True)]


def corpus(metric, texts, references):
    columns = [[wanted[i] if i < len(wanted) else None for wanted in references] for i in range(3)]
    return metric.corpus_score(texts, columns).score / 100


@pytest.mark.parametrize("count", [2, 30])
@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_corpus_metrics_are_sacrebleus(name, count):
    texts, references = sample(count)
    wanted = corpus({"bleu": sacrebleu.BLEU(), "chrf": sacrebleu.CHRF()}[name], texts, references)
    assert 0.05 < wanted < 1
    assert estimate(name, scored(texts, references))[0] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("texts", [["", ""], ["", "zq"], ["a b", "c"], ["a b c d e", "x a b y"], ["a b c d", "a b c d"],
                                   ["a b c d x a b y", "q"]])
@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_corners_of_the_corpus_metrics(name, texts):
    references = [["a b c d"], ["a b c d", "a"]]
    wanted = corpus({"bleu": sacrebleu.BLEU(), "chrf": sacrebleu.CHRF()}[name], texts, references)
    assert estimate(name, scored(texts, references))[0] == pytest.approx(wanted, rel=1e-12, abs=1e-15)


def test_rouge_l_is_the_best_over_the_references():
    texts, references = sample(20)
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    wanted = [max(scorer.score(reference, text)["rougeL"].fmeasure for reference in several)
              for text, several in zip(texts, references, strict=True)]
    items = scored(texts, references)
    assert [item.rouge_l for item in items] == wanted
    value, influences = estimate("rouge_l", items)
    assert value == pytest.approx(np.mean(wanted))
    assert influences == pytest.approx(np.array(wanted) - np.mean(wanted), abs=1e-12)


@pytest.mark.parametrize("name", ["bleu", "chrf", "rouge_l"])
def test_errors_agree_with_the_bootstrap_alone_and_paired(name):
    texts, references = sample(200)
    first = score_of(scored(texts, references), name, (name,))
    second = score_of(scored(sample(200, noise=0.5)[0], references), name, (name,))
    one, two = (resampled_score("task", score, 4000, seed=1) for score in (first, second))
    assert one.mean() == pytest.approx(first.value, abs=3 * first.se)
    assert first.se == pytest.approx(one.std(), rel=0.1)
    difference, se = paired_difference(first, second)
    assert difference == first.value - second.value
    assert se == pytest.approx((one - two).std(), rel=0.1)


def test_ratios():
    items = [FollowedItem("a", (True, False), (True, True)), FollowedItem("b", (True,), (True,)),
             FollowedItem("c", (False, False, False), (False, True, False))]
    assert estimate("prompt_level_strict_acc", items)[0] == pytest.approx(1 / 3)
    assert estimate("inst_level_strict_acc", items)[0] == pytest.approx(2 / 6)
    assert estimate("prompt_level_loose_acc", items)[0] == pytest.approx(2 / 3)
    assert estimate("inst_level_loose_acc", items)[0] == pytest.approx(4 / 6)
    assert estimate("kl", [DriftItem(1.0, 3), DriftItem(2.0, 1)])[0] == pytest.approx(3 / 4)


@pytest.mark.parametrize("name", METRICS)
def test_scores_come_back_from_json(name):
    items = {
        "GeneratedItem": [text_scorer()(text, ["a b #### 3"], True) for text in ("a b #### 3", "c", "a b")],
        "FollowedItem": [FollowedItem("a", (True, False), (True, True)), FollowedItem("b", (True,), (True,))],
        "DriftItem": [DriftItem(0.5, 3), DriftItem(0.25, 1)],
    }[METRICS[name].item.__name__]
    score = score_of(items, name, (name,))
    again = Score.from_dict(json.loads(json.dumps(score.to_dict(items=True))))
    assert again == Score(**{**vars(score), "items": items})
    assert paired_difference(score, again) == (0, 0)


def test_ifeval_of_a_file_with_the_former_name_and_without_loose_answers():
    entry = {"value": 0.5, "se": 0.5, "n": 2, "metric": "prompt_strict", "metrics": {"prompt_strict": 0.5},
             "items": [["a", [True, False]], ["b", [True]]]}
    score = Score.from_dict(entry)
    assert score.metric == "prompt_level_strict_acc"
    assert score.items == [FollowedItem("a", (True, False)), FollowedItem("b", (True,))]
    assert paired_difference(score, score) == (0, 0)


SCRIPTS = {
    "Chinese": "今天天气很好，我们去公园。", "Japanese": "私はカタカナも読めます。", "Thai": "วันนี้อากาศดีมาก",
    "Tibetan": "དེ་རིང་གནམ་གཤིས་ཡག", "Burmese": "ဒီနေ့ရာသီဥတုကောင်းတယ်", "beyond 16 bits": "𠮷野家𠮷野家",
    "Russian": "Сегодня очень хорошая погода", "Arabic": "الطقس جميل اليوم في المدينة", "Hindi": "आज मौसम बहुत अच्छा है",
    "Korean": "오늘 날씨가 정말 좋네요", "Vietnamese": "ở đâu có đấy", "mixed": "我用 iPhone 15 拍照",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_equal_texts_of_any_script_score_1_and_others_less(script):
    text, other = SCRIPTS[script], SCRIPTS["Korean" if script != "Korean" else "Thai"]
    decomposed = unicodedata.normalize("NFD", text)
    for candidate, wanted in ((text, decomposed), (decomposed, text)):
        items = scored([candidate] * 2, [[wanted]] * 2)
        assert [estimate(name, items)[0] for name in ("bleu", "chrf", "rouge_l")] == [1, 1, 1]
    part = text[: len(text) * 2 // 3] + other[:2]
    found = scored([part], [[text]])[0]
    assert 0 < found.rouge_l < 1 and found.bleu[2] < found.bleu[6]
    assert scored([other], [[text]])[0].rouge_l == 0


def test_words():
    assert words("The <b>iPhone_15</b> isn't") == ["the", "b", "iphone", "15", "b", "isn", "t"]
    assert words("हिन्दी में ΟΔΟΣ οδός Café１２") == ["हिन्दी", "में", "οδοσ", "οδόσ", "café12"]
    assert words("用 GPT4o 写字。") == ["用", "gpt4o", "写", "字"]
    assert words("ที่นี่ co\u00adop می\u200cخواهم a\u200bb") == ["ที่", "นี่", "coop", "میخواهم", "a", "b"]
    assert words("👍 ❤\ufe0f !? — …") == []


def test_latin_texts_have_the_tokens_of_rouge_and_13a_and_chinese_those_of_zh():
    draw = random.Random(0)
    texts = ["".join(draw.choice("ab Z9.,'-_$\n") for _ in range(40)) for _ in range(200)]
    scorer, score = rouge_scorer.RougeScorer(["rougeL"]), text_scorer()
    for text, wanted in zip(texts, reversed(texts), strict=True):
        assert score(text, [wanted], False).rouge_l == scorer.score(wanted, text)["rougeL"].fmeasure
    bleu = {"13a": ("Он, “да” — naïve–£20.", "Он: “нет” — naïve–£2."),
            "zh": ("他说：“你好”，用 GPT-4 写了3个、4.5个！", "他说：“您好”，用GPT-4写了3个、4.5个（假的）！")}
    for tokenizer, (text, wanted) in bleu.items():
        found = sacrebleu.BLEU(tokenize=tokenizer, effective_order=True).sentence_score(text, [wanted])
        assert score(text, [wanted], False).bleu == (found.sys_len, found.ref_len, *found.counts, *found.totals)


def test_metrics_without_meaning_are_told_and_rows_without_words_are_not_counted():
    assert limits_of_metrics([["👍"], [""]])[0].keys() == {"bleu", "rouge_l"}
    assert limits_of_metrics([[""], [" "]])[0].keys() == {"bleu", "chrf", "rouge_l"}
    assert limits_of_metrics([["a b c d"], ["a"]]) == ({}, {})
    none, some = limits_of_metrics([["今天天气"], ["a"], ["?", "b"], ["..."]])
    assert not none and some == {"rouge_l": "1 of 4 rows are left out, as their references have no word"}
    items = scored(["a b", "c", "👍"], [["a b"], ["d"], ["👍", "!"]])
    assert [item.rouge_l for item in items] == [1, 0, None]
    assert estimate("rouge_l", items) == (0.5, [pytest.approx(1), pytest.approx(-1), pytest.approx(0)])


@pytest.mark.parametrize(("text", "number"), [
    ("so 3.\n#### 18", "18"), ("#### 1,234.50 dollars", "1234.5"), ("####$-5.", "-5"), ("#### -5%", "-5"),
    ("#### 7\n#### 8", "7"), ("18", None), ("#### none 4", None), ("#### .5", ".5"), ("#### £1,000,000", "1000000"),
    ("#### 1{,}234", "1234"), (r"#### 1\,234.5", "1234.5"), (r"#### 1,\!234", "1234"), ("#### 1\u202f234", "1234"),
    ("#### 1\u00a0234\u00a0567", "1234567"), ("#### 1’234", "1234"), ("#### 12,34,567", "1234567"),
    ("#### 1 234", "1234"), ("#### 5 100 bills", "5"), ("#### 1.234,56", "1234.56"), ("#### 1.234.567", "1234567"),
    ("#### 1.234", "1.234"), ("#### 1,5", "1.5"), ("#### 1, 5", "1"), ("#### 0,125", "0.125"),
    ("#### −5", "-5"), ("#### –5", "-5"), ("#### - 5", "-5"), ("#### ($1,234)", "-1234"), ("#### (5) apples", "5"),
    ("#### **18**", "18"), ("#### $18$", "18"), (r"#### \$18", "18"), (r"#### \boxed{18}", "18"),
    (r"#### \(18\)", "18"), (r"#### $\text{18}$", "18"), ("#### `18`", "18"), ("#### = 18", "18"), ("##### 18", "18"),
    ("####\n18.", "18"),
    ("#### Step 1\n#### 18", "18"), ("#### US$5", "5"), ("#### USD 1,200", "1200"), ("#### %5", "5"),
    ("#### 1.5e3", "1500"), ("#### 1.5 × 10³", "1500"), (r"#### 2\times10^{-2}", ".02"),
    ("#### 3/4", ".75"), ("#### 1½", "1.5"), (r"#### $-\frac{3}{4}$", "-.75"), ("#### 1 1/2", "1.5"),
    ("#### ٣٫٥", "3.5"), ("#### ١٬٢٣٤", "1234"), ("＃＃＃＃ １，２３４", "1234"), ("#### १२", "12"), ("#### 3²", "3"),
])
def test_marked_answers(text, number):
    assert marked_answer(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(("text", "number"), [
    ("16-3 = 13 eggs.", "13"), ("it is 16-3", "3"), ("costs $1,200.", "1200"), ("1, 2,3", "3"), ("a -2", "-2"),
    ("none", None), ("in 12,3456", "3456"), ("x = −5.", "-5"), ("10–5", "5"), ("3$, 4$", "4"), ("the rest ($5)", "5"),
    (r"thus \boxed{1{,}018} (step 2)", "1018"), (r"\boxed{x}, so 3", "3"), ("half: 3/4", ".75"), ("12/25/2020", "2020"),
    ("48/2=24", "24"), ("3*10=30", "30"), ("50/0", "0"), ("about 1\u00a0234 km", "1234"), ("5 m²", "5"),
    ("1.5e3.", "1500"), ("1.234,5.678", "5.678"), ("１２", "12"), ("**-5**", "-5"), ("_-5_", "-5"),
    ("1e999999999", "999999999"),
    ("costs 1 000 000 won", "1000000"), ("2×10^3 or 10^3", "1000"), ("in 2019 300 men", "300"),
    ("#### 5 000\n", "5000"), ("#### 5 000\nor 7", "7"), ("7" * 5000, "7" * 5000),
])
def test_last_numbers(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


def test_answers_are_right_where_the_numbers_are_equal():
    score = text_scorer()
    items = [score(text, ["so #### 1,000"], True) for text in ("x #### 1000.0", "it is $1000.", "#### 5, not 1000", "")]
    assert [item.exact_answer for item in items] == [True, False, False, False]
    assert [item.last_number for item in items] == [True, True, True, False]
    assert score("3", ["3"], False).exact_answer is None
    for text in ("#### 5 000", "#### 1,50 €", "#### (5)", "#### 12:30", "#### 18 km/h for 2 h", "#### 10^3"):
        assert score(text, [text], True)[3:] == (1, True, True) or not words(text)


@pytest.mark.parametrize("missing", ["sacrebleu.metrics", "rouge_score.rouge_scorer"])
def test_a_missing_package_is_said(monkeypatch, missing):
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    with pytest.raises(CofituneError, match=r"pip install 'cofitune-fast\[eval\]'"):
        text_scorer()
