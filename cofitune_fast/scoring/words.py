"""Words of a text in any script: those that ROUGE-L compares, and what BLEU's tokeniser must be shown apart.

Most scripts put blanks between words. Some do not, and there a word cannot be told without a dictionary: Chinese,
Japanese, Thai, Lao, Tibetan, Khmer, Burmese and more. Of these each character counts as a word, together with the marks
(vowels, tones) that it carries. The rule looks at one character at a time, so it holds for texts of several scripts.
"""

from __future__ import annotations

import re
import unicodedata

# By Unicode block. Punctuation of the same blocks is among them, as BLEU counts punctuation.
_ALONE = re.compile(
    "["
    "\u0e00-\u0fff"  # Thai, Lao, Tibetan
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u2e80-\u2fdf\u3000-\u303f\u3100-\u312f\u31a0-\u31ef\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese
    "\U00020000-\U0003ffff"
    "\u3040-\u30ff\u31f0-\u31ff\U0001b000-\U0001b16f"  # kana
    "\ua000-\ua4cf"  # Yi
    "\ufe10-\ufe1f\ufe30-\ufe4f\uff00-\uffef"  # full width and half width
    "]"
)
_ZERO_WIDTH_SPACE = "\u200b"  # the only format character that parts words; the others are in the middle of one


def words(text: str) -> list[str]:
    """Split a text into words without regard to case; punctuation, symbols and emoji are no words.

    A word is a run of letters and digits with their marks, or one character of a script without blanks. Of a text
    whose letters are a to z these are rouge-score's own tokens. Full-width and other compatible forms of a letter or
    digit are the same (NFKC).
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    found: list[str] = []
    inside, joins = False, False  # a mark belongs to the last word; a letter does
    for char in text:
        kind = unicodedata.category(char)
        if kind == "Cf" and char != _ZERO_WIDTH_SPACE:
            continue
        if kind[0] == "M":
            if inside:
                found[-1] += char
        elif kind[0] in "LN":
            alone = bool(_ALONE.match(char))
            if joins and not alone:
                found[-1] += char
            else:
                found.append(char)
            inside, joins = True, not alone
        else:
            inside = joins = False
    return found


def spaced(text: str) -> str:
    """Put blanks around each character of a script without them, so that a tokeniser that splits at blanks parts them.

    Other text comes back as it is.
    """
    if not _ALONE.search(text):
        return text
    parts: list[str] = []
    before = False
    for char in text:
        alone = bool(_ALONE.match(char))
        if unicodedata.category(char)[0] != "M" and (alone or before):
            parts.append(" ")
        parts.append(char)
        before = alone
    return "".join(parts)
