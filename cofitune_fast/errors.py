"""Exception for all errors that a user can put right, and what a sentence quotes of other errors."""

from __future__ import annotations


class CofituneError(ValueError):
    """Error that a user can put right, in one sentence: what is wrong, where, and what to do about it.

    The command line prints the sentence without a traceback and exits with status 2.
    """


def first_line(error: Exception) -> str:
    """Return the first line of an error's text without its full stop, for a sentence; its kind if it has no text."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return text.rstrip(".") or type(error).__name__
