"""IFEval (Zhou et al., arXiv 2311.07911): check that a response follows instructions, with lm-eval's checkers."""

from __future__ import annotations

import contextlib
import io
import random
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from ..errors import CofituneError
from .metrics import FollowedItem
from .tasks import InstructionItem

_NEED_PUNKT = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}


def known_instructions(items: Sequence[InstructionItem]) -> list[InstructionItem]:
    """Select the items whose instructions can be checked here.

    Two kinds of instruction count sentences or split words with nltk's data punkt_tab, which nltk downloads. If it is
    missing, items with such an instruction are left out, with a warning. Raises CofituneError for an instruction
    unknown to lm-eval, or if lm-eval or a package of its checkers is missing.
    """
    checkers, has_punkt = _checkers()
    for item in items:
        for name in item.instructions:
            if name not in checkers.instructions_registry.INSTRUCTION_DICT:
                raise CofituneError(f"{item.where or 'An item'} has the instruction {name!r}, which lm-eval's IFEval "
                                    "does not know.")
    if has_punkt:
        return list(items)
    kept = [item for item in items if not _NEED_PUNKT & set(item.instructions)]
    if len(kept) < 2:
        raise CofituneError("These IFEval prompts need nltk's data punkt_tab: run python -m nltk.downloader punkt_tab.")
    if len(kept) < len(items):
        warnings.warn(
            f"{len(items) - len(kept)} of {len(items)} IFEval prompts are left out, because they need nltk's data "
            "punkt_tab: run python -m nltk.downloader punkt_tab.", stacklevel=2,
        )
    return kept


def followed_instructions(items: Sequence[InstructionItem], texts: Sequence[str]) -> list[FollowedItem]:
    """For each item and each of its instructions: True if the text follows it, strictly and loosely."""
    from langdetect import DetectorFactory

    checkers, _ = _checkers()
    state, seed = random.getstate(), DetectorFactory.seed
    try:
        DetectorFactory.seed = 0  # langdetect samples, so without a seed its answer can vary
        strict, loose = (_followed(checkers, check, items, texts) for check in (
            checkers.test_instruction_following_strict, checkers.test_instruction_following_loose))
        return list(map(FollowedItem, texts, strict, loose))
    finally:
        random.setstate(state)
        DetectorFactory.seed = seed


def _followed(
    checkers: Any, check: Callable[..., Any], items: Sequence[InstructionItem], texts: Sequence[str]
) -> list[tuple[bool, ...]]:
    random.seed(0)  # an instruction without arguments draws them at random
    examples = [checkers.InputExample(0, list(item.instructions), item.prompt, list(map(dict, item.arguments)))
                for item in items]
    return [tuple(map(bool, check(example, text).follow_instruction_list))
            for example, text in zip(examples, texts, strict=True)]


@cache
def _checkers() -> tuple[Any, bool]:
    """lm-eval's module with the checkers, and True if nltk's data are installed."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            import langdetect  # noqa: F401
            import nltk
            from lm_eval.tasks.ifeval import utils  # prints that it tries to load punkt_tab
    except ImportError as error:
        raise CofituneError(f"IFEval needs {error.name}: pip install 'cofitune-fast[eval]'.") from None
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return utils, False
    return utils, True
