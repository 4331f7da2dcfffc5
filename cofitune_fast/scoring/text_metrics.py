"""Compare a generated text with its references: n-gram statistics, ROUGE-L, and the number that is the answer."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import CofituneError
from .metrics import GeneratedItem, chrf
from .numbers import last_number, marked_answer
from .words import spaced, words


def text_scorer() -> Callable[[str, Sequence[str], bool], GeneratedItem]:
    """Make a function (text, references, True if these have an answer after ####) -> the item's statistics.

    BLEU is sacrebleu's, case-sensitive, with its 13a tokeniser and the reference length closest to the text's; each
    character of a script without blanks is put apart before, see `words`. chrF is counted against the reference with
    the highest chrF. ROUGE-L is rouge-score's F1 on `words.words`, without stemming, the highest over the references
    that have words; None if none has. Texts that differ in their Unicode form alone (NFC) are equal.
    Raises CofituneError if one of the two packages is missing.
    """
    sentence_bleu, rouge = _bleu(), _rouge()

    def score(text: str, references: Sequence[str], answers: bool) -> GeneratedItem:
        text, references = _composed(text), [_composed(reference) for reference in references]
        counts = sentence_bleu.sentence_score(spaced(text), [spaced(reference) for reference in references])
        with_words = [reference for reference in references if words(reference)]
        return GeneratedItem(
            text, (counts.sys_len, counts.ref_len, *counts.counts, *counts.totals), _chrf_counts(text, references),
            rouge.score_multi(with_words, text)["rougeL"].fmeasure if with_words else None,
            any(marked_answer(text) == marked_answer(r) is not None for r in references) if answers else None,
            any(text == r.strip() or last_number(text) == marked_answer(r) is not None for r in references)
            if answers else None,
        )

    return score


def limits_of_metrics(references: Sequence[Sequence[str]]) -> tuple[dict[str, str], dict[str, str]]:
    """Find the metrics that have no meaning for the rows of a task: {metric: the reason}, of all rows and of some.

    references: those of each row. BLEU needs four tokens, of which its longest n-grams are made, in one reference at
    least. ROUGE-L needs words, and a standard error needs two rows with them. chrF needs a character.
    """
    tokens = _bleu().tokenizer
    longest = max(len(tokens(spaced(_composed(text))).split()) for texts in references for text in texts)
    wordless = sum(not any(words(text) for text in texts) for texts in references)
    none, some = {}, {}
    if longest < 4:
        none["bleu"] = "no reference has the four words or characters that it counts together"
    if not any(text.strip() for texts in references for text in texts):
        none["chrf"] = "all references are empty"
    if len(references) - wordless < 2:
        none["rouge_l"] = f"{wordless} of {len(references)} rows have no word in their references"
    elif wordless:
        some["rouge_l"] = f"{wordless} of {len(references)} rows are left out, as their references have no word"
    return none, some


def _bleu() -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise _missing(error) from None
    return BLEU(effective_order=True)


def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import Tokenizer
    except ImportError as error:
        raise _missing(error) from None

    class Words(Tokenizer):  # type: ignore[misc]
        def tokenize(self, text: str) -> list[str]:
            return words(text)

    return RougeScorer(["rougeL"], tokenizer=Words())


def _missing(error: ImportError) -> CofituneError:
    return CofituneError(f"Scores of generated text need {error.name}: pip install 'cofitune-fast[eval]'.")


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


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
