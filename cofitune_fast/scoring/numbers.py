"""Numbers as people and models write them: digits of any script, separators, signs, LaTeX, fractions, powers of ten.

Digits are read, words (eighteen, 3 million) are not. A unit or percent sign behind a number is ignored.

- Thousands: 1,234,567, Indian 12,34,567, Swiss 1'234, with a no-break or thin space, 1 234 567, LaTeX 1{,}234 and
  1\\,234.
- 1.234,56 and 1.234.567 are read the European way. Alone, 1,234 has thousands and 1.234 has decimals.
- Fractions: 3/4, 1 1/2, \\frac{3}{4} and the single characters. A date such as 12/25/2020 is none.
- Powers of ten: 1.5e3, 10^3, 1.5 x 10^3, 1.5 \\times 10^{3}, with a raised digit too.
- Signs: + and -, and the Unicode minus and dashes. After a digit or a word they are operators or hyphens.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

ANSWER_MARK = "####"

_ONE_FORM = str.maketrans({
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe58\ufe63\uff0d", "-"),
    **dict.fromkeys("\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f", "\u00a0"),  # blanks that part thousands
    **dict.fromkeys("\u200e\u200f\u061c\u2066\u2067\u2068\u2069", None),  # directions of writing
    "\u2019": "'", "\u066c": "'", "\u066b": ".", "\uff0e": ".", "\u060c": ",", "\uff0c": ",",
    "\uff0b": "+", "\uff03": "#", "\u2044": "/", "\uff0f": "/",
})
_CURRENCY = re.compile(
    r"(?:\b(?:US|AU|CA|NZ|HK|[ACRS]))?\\?[$\u00a2-\u00a5\u0e3f\u20a0-\u20cf\uff04\uffe0\uffe1\uffe5]")
_SINGLE_FRACTION = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_RAISED = re.compile("(?<=10)[\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_POWER_ALONE = re.compile(r"((?:[x×*·⋅]|\\times|\\cdot)\s*)?(?<![\d.,])10\s*\^\s*\{?([-+]?\d{1,3})\}?")
_LATEX_THOUSANDS = re.compile(r"(?<=\d)(?:\{[,.]\}|,?\\[,!:; ]|\{\\,\}|~)(?=\d{3}(?!\d))")
_LATEX_DECIMALS = re.compile(r"(?<=\d)\{[,.]\}(?=\d)")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac(?:\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)(\d))")
_BOX = re.compile(r"\\f?boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")

_SIGN = r"(?<![^\W_])(?<![.)])[-+]"
_FRACTION = r"(?<![\d/.,])(?:(?P<whole>\d+)[ \u00a0])?(?P<over>\d+)/(?P<under>\d*[1-9]\d*)(?!/|[.,]?\d)"
_GROUPED = r"""(?<![\d.])[1-9]\d{0,2}(?:
    (?P<european>(?:\.\d{3})+,\d+|(?:\.\d{3}){2,})
    |(?P<spaced>(?:(?:'\d{3})+|(?:\u00a0\d{3})+|(?:[ ]\d{3}){2,})(?:[.,]\d+)?)
    |(?:(?:,\d{3})+|(?:,\d{2})+,\d{3})(?:\.\d+)?
    )(?!\.?\d)"""
_PLAIN = r"\d+(?:\.\d+)?|\.\d+"
_POWER = r"""[eE](?P<e>[-+]?\d{1,3})(?!\w|\.\d)
    |\s*(?:[x×*·⋅]|\\times|\\cdot)\s*10\s*\^\s*\{?(?P<ten>[-+]?\d{1,3})\}?"""


def _pattern(sign: str, digits: str) -> re.Pattern[str]:
    return re.compile(rf"(?P<sign>{sign})?(?:{_FRACTION}|(?P<digits>{digits})(?:{_POWER})?)", re.VERBOSE)


_IN_TEXT = _pattern(_SIGN, f"{_GROUPED}|{_PLAIN}")
# An answer is one number, so a comma before other than three digits is a decimal comma.
_ANSWER = _pattern(r"[-+][ \u00a0]?", rf"{_GROUPED}|(?P<comma>\d+,\d+)(?!,?\d)|{_PLAIN}")
_BEFORE_ANSWER = re.compile(
    r"(?:[\s*_`#:=≈~%٪({\[<>\"'“”‘’|]|\\[a-zA-Z]+|\\[(\[,;!: ]|(?:USD|EUR|GBP|JPY|CNY|INR|CHF|Rs\.?)(?=\s?[-+]?\d))*")
_BLANK_THOUSANDS = re.compile(r"(\W*[1-9]\d{0,2})((?: \d{3})+)(?=[.,]?\d*\W*$)")


def marked_answer(text: str) -> Fraction | None:
    """Read the number after the first #### that a number follows, as in GSM8K's answers; None if there is none.

    Between mark and number there may be symbols, emphasis, a currency and LaTeX such as \\boxed{, but no words. As an
    answer is one number, 1,5 is 1.5 and, alone on its line, 1 234 is 1234 and (5) is -5, as in accounts.
    """
    answers = (_answer(rest.lstrip().partition("\n")[0])[0] for rest in _one_form(text).split(ANSWER_MARK)[1:])
    return next((answer for answer in answers if answer is not None), None)


def _answer(line: str) -> tuple[Fraction | None, str]:
    """Read the number with which the line after a mark begins; returns it and the rest of the line."""
    if spaced := _BLANK_THOUSANDS.match(line):
        line = spaced[1] + spaced[2].replace(" ", "\u00a0") + line[spaced.end():]
    start = _BEFORE_ANSWER.match(line).end()  # type: ignore[union-attr]
    found = _ANSWER.match(line, start)
    if found is None:
        return None, line
    in_accounts = re.fullmatch(r"[\s*_]*\(", line[:start]) and re.fullmatch(r"\)[\s*_.%]*", line[found.end():])
    value = -_value(found) if in_accounts and not found["sign"] else _value(found)
    return value, line[found.end():]


def last_number(text: str) -> Fraction | None:
    """Read the number in the last \\boxed{}, or the last number of a text without one; None if there is none.

    Where the last number is an answer after ####, it is read as `marked_answer` reads it.
    """
    text = _one_form(text)
    line, _, later = text.rpartition(ANSWER_MARK)[2].lstrip().partition("\n")
    if ANSWER_MARK in text and not _IN_TEXT.search(later):
        answer, rest = _answer(line)
        if answer is not None and not _IN_TEXT.search(rest):
            return answer
    for part in [*reversed(_BOX.findall(text)), text]:
        if found := list(_IN_TEXT.finditer(part)):
            return _value(found[-1])
    return None


def _one_form(text: str) -> str:
    """Write digits, signs, separators and fractions in one way, and leave currencies out."""
    text = re.sub(r"\d", lambda digit: str(int(digit[0])), text.translate(_ONE_FORM))
    text = _SINGLE_FRACTION.sub(lambda one: _after_digit(one, unicodedata.normalize("NFKC", one[0])), text)
    text = text.replace("\u2044", "/")
    text = _RAISED.sub(lambda power: "^" + unicodedata.normalize("NFKC", power[0]).replace("\u2212", "-"), text)
    text = _CURRENCY.sub(lambda sign: _after_digit(sign, ""), text)
    text = _POWER_ALONE.sub(lambda power: power[0] if power[1] else f"1e{power[2]}", text)
    text = _LATEX_DECIMALS.sub(".", _LATEX_THOUSANDS.sub(",", text))
    return _LATEX_FRACTION.sub(lambda f: _after_digit(f, f"{f[1] or f[3]}/{f[2] or f[4]}"), text)


def _after_digit(found: re.Match[str], text: str) -> str:
    return f" {text}" if found.string[:found.start()][-1:].isdigit() else text


def _value(found: re.Match[str]) -> Fraction:
    groups = found.groupdict()
    if groups["under"]:
        value = _fraction(groups["over"]) / _fraction(groups["under"])
        if value < 1:
            value += _fraction(groups["whole"] or "0")
    else:
        digits = groups["digits"].replace("'", "").replace("\u00a0", "").replace(" ", "")
        if groups["european"]:
            digits = digits.replace(".", "")
        decimal_comma = groups["european"] or groups["spaced"] or groups.get("comma")
        value = _fraction(digits.replace(",", "." if decimal_comma else ""))
        value *= Fraction(10) ** int(groups["e"] or groups["ten"] or 0)
    return -value if (groups["sign"] or "").startswith("-") else value


def _fraction(digits: str) -> Fraction:
    return Fraction(Decimal(digits))  # Python reads no int of more than 4300 digits
