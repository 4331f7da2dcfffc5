"""Compare a generated text with its references: n-gram statistics, ROUGE-L, and the number that is the answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal

import numpy as np

from ..errors import CofituneError
from .metrics import GeneratedItem, chrf

ANSWER_MARK = "####"
# A sign after a digit or a word is an operator or a hyphen. Commas may separate thousands.
_NUMBER = re.compile(r"(?:(?<![\w.)])[-+])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_CURRENCY = re.compile("[$€£]")


def text_scorer() -> Callable[[str, Sequence[str], bool], GeneratedItem]:
    """Make a function (text, references, True if these have an answer after ####) -> the item's statistics.

    BLEU is sacrebleu's, case-sensitive, with its 13a tokeniser and the reference length closest to the text's. chrF is
    counted against the reference with the highest chrF. ROUGE-L is rouge-score's F1 without stemming, the highest over
    the references. Raises CofituneError if one of the two packages is missing.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise CofituneError(f"Scores of generated text need {error.name}: pip install 'cofitune-fast[eval]'.") from None
    sentence_bleu, rouge = BLEU(effective_order=True), RougeScorer(["rougeL"])

    def score(text: str, references: Sequence[str], answers: bool) -> GeneratedItem:
        counts = sentence_bleu.sentence_score(text, list(references))
        return GeneratedItem(
            text, (counts.sys_len, counts.ref_len, *counts.counts, *counts.totals), _chrf_counts(text, references),
            rouge.score_multi(references, text)["rougeL"].fmeasure,
            any(marked_answer(text) == marked_answer(r) is not None for r in references) if answers else None,
            any(last_number(text) == marked_answer(r) is not None for r in references) if answers else None,
        )

    return score


def marked_answer(text: str) -> Decimal | None:
    """Read the number after the first ####, where GSM8K has its answers; None if there is none.

    1,000 and $1000.00 are equal. Text after the number, such as a full stop, % or a unit, is ignored.
    """
    _, _, rest = text.partition(ANSWER_MARK)
    found = _NUMBER.match(_CURRENCY.sub("", rest).lstrip())
    return _value(found[0]) if found else None


def last_number(text: str) -> Decimal | None:
    """Read the last number in the text, in the notation of `marked_answer`; None if there is none."""
    found = _NUMBER.findall(_CURRENCY.sub("", text))
    return _value(found[-1]) if found else None


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))


def _chrf_counts(text: str, references: Sequence[str]) -> tuple[int, ...]:
    candidates = np.array([_shared_ngrams(text, reference) for reference in references])
    return tuple(candidates[chrf(candidates.astype(np.float64)).argmax()].tolist())


def _shared_ngrams(text: str, reference: str) -> list[int]:
    counts = []
    for order in range(1, 7):
        ours, theirs = (_ngrams("".join(part.split()), order) for part in (text, reference))
        # An order for which the reference is too short does not count against the text.
        counts += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
    return counts


def _ngrams(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))
