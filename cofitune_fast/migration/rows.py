"""Data sets of another tool as our data: their names, the fields of their rows, and parts cut off for validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..data import Row, parse_examples
from ..errors import CofituneError
from .draft import Draft

_TURNS = ("messages", "conversations", "conversation")


class Source(NamedTuple):
    """A data set: a file, a folder, or a hub id with split. problem: why its rows cannot be read as they are."""

    name: str
    is_hub: bool = False
    limit: int | None = None
    problem: str = ""
    remark: str = ""


def hub(name: str, split: str = "train", config: str | None = None) -> str:
    """Our name of a hub data set: OWNER/NAME:SPLIT or OWNER/NAME:CONFIG:SPLIT."""
    return ":".join([name, *([config] if config else []), split])


def problem_with_fields(prompt: str, response: str, addition: str | None = None, history: str | None = None) -> str:
    """Say why rows with these fields cannot be read, or "". Our own reader is asked, with a row that has them."""
    fields: dict[str, Any] = {prompt: "One.", response: "Two."}
    if addition:
        fields[addition] = "More."
    if history:
        fields[history] = [["Zero.", "None."]]
    try:
        (example,) = parse_examples([Row(fields, "a row")])
    except (CofituneError, ValueError):
        return f"rows with the fields {', '.join(fields)} are not read; rename them to instruction, input and output"
    parts = " ".join(str(message["content"]) for message in example.prompt)
    if example.response != "Two." or "One." not in parts or (addition and "More." not in parts):
        return f"of the fields {', '.join(fields)} not all are read as meant; rename them to instruction, input, output"
    return ""


def problem_with_turns(name: str, role: str, content: str) -> str:
    """Say why conversations in the field `name` cannot be read, or ""."""
    if name not in _TURNS:
        return f"turns are read from {', '.join(_TURNS)}; rename the field {name}"
    row = Row({name: [{role: "user", content: "One."}, {role: "assistant", content: "Two."}]}, "a row")
    try:
        parse_examples([row])
    except CofituneError:
        return f"turns with the keys {role} and {content} are not read; rename them to role and content"
    return ""


def write_data(draft: Draft, key: str, ours: str, sources: Sequence[Source]) -> None:
    """Write data.train or data.valid, if there is one data set whose rows can be read."""
    problems = [f"{one.name}: {one.problem}" for one in sources if one.problem]
    if problems:
        draft.refuse(key, f"{ours} is left out. {'; '.join(problems)}")
    elif len(sources) > 1:
        names = ", ".join(one.name for one in sources)
        draft.refuse(key, f"{ours} takes one file, folder or hub data set, and is left out so that nothing is trained "
                          f"on a part of the data: put the rows of all into one file, or their files into one folder "
                          f"({names})")
    elif sources:
        (one,) = sources
        if one.remark:
            draft.change(key, ours, one.name, one.remark)
        else:
            draft.take(key, ours, one.name)
        if one.limit and ours == "data.train":
            draft.change(key, "data.limit", one.limit, "the first rows")


def cut_off(draft: Draft, key: str, size: Any) -> None:
    """Cut validation rows off the training rows: `size` of them, or below 1 their share.

    A hub data set is cut by slices; of a file it is said how.
    """
    if not isinstance(size, (int, float)) or isinstance(size, bool) or size <= 0:
        draft.take(key, None)
        return
    train = draft.settings.get("data.train")
    if train is None or "data.valid" in draft.settings:
        draft.refuse(key, "set data.valid to a file with rows that are not in data.train")
        return
    share = round(100 * (1 - size), 6) if size < 1 else None
    place = str(int(share)) + "%" if share is not None and share == int(share) else f"-{int(size)}" if size >= 1 else ""
    is_slice = ":" in train and not train.endswith("]") and "data.limit" not in draft.settings
    if is_slice and place:
        draft.settings["data.train"] = f"{train}[:{place}]"  # its note stays: the key is the same
        draft.change(key, "data.valid", f"{train}[{place}:]", "the last rows, and data.train ends before them; "
                                                             f"{draft.tool} draws them at random")
        return
    count = int(size) if size >= 1 else "N"
    how = (f"head -n -{count} {train} > train.jsonl; tail -n {count} {train} > valid.jsonl"
           if train.endswith(".jsonl") else "such as the last rows, and take them out of data.train")
    if is_slice is False and train.endswith("]"):
        draft.refuse(key, f"data.train is a slice already; name another one in data.valid, such as "
                          f"{train.partition('[')[0]}[98%:]")
        return
    draft.refuse(key, f"no rows are cut off here; make a file of validation rows and name it in data.valid: {how}")


def columns_of(values: Any) -> Mapping[str, Any]:
    return values if isinstance(values, Mapping) else {}
