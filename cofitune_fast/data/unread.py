"""Fields of a row that its format does not read: told, or refused where they belong to what is trained."""

from __future__ import annotations

import re
from typing import Any

from .faults import Faults
from .messages import CONVERSATIONS, HARMLESS, Message, words
from .row import Row, parsed

_CONTEXTS = {"context", "input", "passage", "document", "article", "paragraph", "table", "text", "knowledge",
             "evidence", "hint", "background", "story", "schema", "choice", "option"}
_QUESTIONS = {"instruction", "prompt", "question", "query", "problem"}
_OPTION = re.compile(r"(?:option|choice|op)?[ _-]?[a-e1-5]")  # columns of options, as in A, B, C, D
_ABOUT = {"id", "ids", "idx", "index", "uuid", "hash", "url", "urls", "uri", "link", "license", "date", "time",
          "timestamp", "lang", "language", "split", "model", "source", "type", "category", "length", "count"}
HARMLESS_FIELDS = HARMLESS | {
    "url", "urls", "uri", "link", "key", "prompt_id", "question_id", "conversation_id", "category", "categories",
    "topic", "topics", "subject", "domain", "type", "kind", "task", "task_name", "dataset", "data_source", "subset",
    "split", "tag", "tags", "difficulty", "level", "license", "author", "generator", "created_at", "version",
    "__index_level_0__",
}
_PREFERENCES = ("rejected", "rejected_response", "rejected_messages", "rejected_output", "non_preferred_output",
                "chosen", "chosen_response", "preferred_output")
_VERDICTS = ("label", "kto_tag")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_WEIGHTS = ("weight", "loss_weight", "sample_weight", "loss_mask")
NOT_FOR_SFT = {*_PREFERENCES, *_VERDICTS, *_MEDIA, *_WEIGHTS}


def tell_unread(
    row: Row, read: tuple[str, ...], names: list[str], prompt: list[Message], response: str, faults: Faults,
    written: Row,
) -> None:
    """Record the fields of a row that are left out.

    Args:
        read: the fields that make its form, such as "question" and "answer".
        names: the fields that are not read.
        prompt, response: what was read.
        written: the row with its names as they are written.

    Raises:
        RowFault: a field belongs to the prompt and is not in it.
    """
    spelled = dict(zip(row.fields, written.fields, strict=True))
    pair = " and ".join(map(repr, read))
    options = [name for name in names if _OPTION.fullmatch(name.strip().lower()) and row.has(name)]
    for name in names:
        value = row.fields[name]
        if not row.has(name) or isinstance(value, bool):
            continue
        plain = name.strip().lower()
        bears = plain in _QUESTIONS or plain.startswith("system") or (len(options) > 1 and name in options) or (
            re.split(r"[^a-z]+", plain.removesuffix("_text"))[-1].removesuffix("s") in _CONTEXTS)
        if bears and read[0] not in CONVERSATIONS and not _stands_in(value, name, prompt, response):
            raise row.fault(f"a field {spelled[name]!r} beside {' and '.join(read)}",
                            f"has {spelled[name]!r} beside {pair}, and it is not plain where that "
                            "belongs; write the whole prompt as prompt and the response as completion.")
        if not _is_number(value, row.cells) and not words(name) & _ABOUT and not plain.startswith("meta"):
            faults.change(f"the field {spelled[name]!r} left out", row.where)


def _stands_in(value: Any, name: str, messages: list[Message], response: str) -> bool:
    """Whether a value already stands in the prompt, or is the whole row written out as one text (or its prompt)."""
    value = parsed(value)
    prompt = [str(turn.get("content") or "") for turn in messages]
    if isinstance(value, str):
        whole = prompt if name == "prompt" else [*prompt, response]
        if all(line.strip() in value for text in whole for line in text.splitlines()):
            return True
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(text, str) and any(text.strip() in turn for turn in prompt) for text in texts)


def _is_number(value: Any, cell: bool) -> bool:
    """Whether a value is a number or a truth value, in a cell of a table as text, or a list of such."""
    if isinstance(value, list):
        return all(_is_number(entry, cell) for entry in value)
    if cell and isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return value.strip().lower() in ("true", "false")
        return True
    return value is None or isinstance(value, bool | int | float)


def refuse_other_training(row: Row) -> None:
    """Raise RowFault for rows of another kind of training, which would mean something else as prompt and response."""
    given = {name: row.fields[name] for name in NOT_FOR_SFT if row.has(name)}
    preferences = [name for name in _PREFERENCES if name in given]
    if preferences:
        better = next((name for name in preferences if "rejected" not in name and "non_" not in name), "chosen")
        raise row.fault("preferences instead of a response",
                        f"has preferences ({', '.join(preferences)}), as for DPO, and here one response is trained; "
                        f"take {better!r} as the completion and remove the other.")
    for name in _VERDICTS:
        if isinstance(given.get(name), bool) or str(given.get(name, "")).strip().lower() in ("true", "false"):
            raise row.fault("a verdict on the response",
                            f"has a verdict ({name!r}), as for KTO, and here responses are learnt; keep the rows in "
                            f"which it is true, and remove {name!r}.")
    for name in _MEDIA:
        if name in given:
            raise row.fault("images, audio or video", f"has {name!r}; only text is trained.")
    for name in _WEIGHTS:
        if name in given and str(given[name]).strip() not in ("1", "1.0"):
            raise row.fault("a weight of its own", f"has {given[name]!r} as {name!r}; all rows count alike here, so "
                                                   f"remove {name!r}, and the rows that are not to be learnt.")
