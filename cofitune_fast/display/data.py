"""Display of a look at the data: a table of the files, what is wrong or stands twice, and rows as they are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

_BARS = "▁▂▃▄▅▆▇█"
_LONGEST = {"prompt": 480, "thought": 240, "trained": 600, "end": 80}  # characters of a segment that are shown
_STYLES = {"prompt": "dim", "thought": "italic magenta", "trained": "bold green", "end": "bold yellow"}
_MARKS = {"trained": ("»", "«"), "thought": ("~", "~"), "end": ("¦", "")}
_ASCII_MARKS = {**_MARKS, "trained": (">>", "<<"), "end": ("|", "")}


class DataView:
    """Picture of the content of `cofitune data`, the dict that its --json prints.

    Where the console has no colours, what is trained stands between » and «, with ¦ before the end of the turn; on one
    without these characters between >> and <<.
    """

    def __init__(self, content: Mapping[str, Any]):
        self.content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        content, coloured = self.content, console.color_system is not None and not console.no_color
        if model := content["model"]:
            positions = f"{model['positions']:,} positions" if model["positions"] else "no limit of positions"
            template = "a chat template" if model["chat_template"] else "no chat template"
            yield Text(f"{model['source']}: {model['vocabulary']:,} tokens, {positions}, {template}", style="bold")
            yield Text()
        if content["files"]:
            yield _files(content)
            yield Text()
        for line, style in _lines(content):
            yield Text(line, style=style)
        if content["shown"]:
            yield Text()
            marks = None if coloured else _MARKS if console.encoding.lower().startswith("utf") else _ASCII_MARKS
            yield _legend(bool(model), marks)
        for row in content["shown"]:
            tokens = f", {row['tokens']} tokens" if row["tokens"] else ""
            title = Text(f"{_place(row['where'], content)}{tokens}")
            yield Rule(title, align="left", style="dim") if console.is_terminal else title
            yield _row(row["segments"], marks)
        yield Rule(style="dim") if console.is_terminal else Text()
        if content["usable"]:
            yield Text("The data can be used.", style="bold green")
        for part, problem in content["problems"].items():
            yield Text(f"{part} cannot be used: {problem}", style="bold red")


def _files(content: Mapping[str, Any]) -> Table:
    files = content["files"]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for part in files:
        table.add_column(part, justify="right")

    def line(name: str, value: Any) -> None:
        cells = [value(look) for look in files.values()]
        if any(cells):
            table.add_row(name, *(cell or "" for cell in cells))

    line("format", lambda look: look["format"].replace(", ", "\n"))
    line("rows", lambda look: f"{look['rows']:,}")
    line("bad rows", lambda look: _some(look["rows"] - look["good"]))
    line("responses", lambda look: f"{look['responses']:,}")
    line("turns a row", lambda look: _range(look["turns"]))
    line("trained tokens", lambda look: _known(look, "trained_tokens"))
    line("prompt tokens", lambda look: _known(look, "prompt_tokens"))
    for name, key in (("shortest row", "min"), ("median", "median"), ("95 % within", "p95"), ("longest row", "max")):
        line(name, lambda look, key=key: f"{look['lengths'][key]:,}" if "lengths" in look else None)
    line("lengths from 0", lambda look: _bars(look["lengths"]["histogram"]) if "lengths" in look else None)
    line("to", lambda look: f"{_end(look['lengths']['histogram']):,}" if "lengths" in look else None)
    line(f"cut at {content['max_length']}", lambda look: _some(look.get("cut", {}).get("count")))
    line("dropped", lambda look: _some(look.get("dropped", {}).get("count")))
    line("beyond positions", lambda look: _some(look.get("beyond_positions", {}).get("count")))
    line("unknown tokens", lambda look: _some(look.get("beyond_vocabulary", {}).get("count")))
    return table


def _lines(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Lines below the table, each with its style."""
    for part, look in content["files"].items():
        yield f"{part}: {look['path']}", "dim"
    for split, tasks in content["versatility"].items():
        names = ", ".join(f"{task['task']} ({task['items']:,})" for task in tasks)
        yield f"versatility, {split}: {names}", "dim"
    for part, look in content["files"].items():
        for kind, found in look["bad"].items():
            yield f"{part}: {_rows(found)} with {kind} ({_places(found, content)})", "red"
        for what, found in look["changed"].items():
            yield f"{part}: {_rows(found)} read with {what} ({_places(found, content)})", "yellow"
        for key, noun, words in (("cut", "response", f"cut at max_length {content['max_length']}"),
                                 ("dropped", "response", "dropped, as the prompt leaves no room for it"),
                                 ("beyond_positions", "row", "longer than the model's positions")):
            found = look.get(key) or {"count": 0}
            if found["count"]:
                yield f"{part}: {_rows(found, noun)} {words} ({_places(found, content)})", "yellow"
    twice = content["twice_in_train"]
    if twice and twice["prompt"]["count"]:
        exact, prompt = twice["exact"], twice["prompt"]
        if exact["count"]:
            yield f"train: {_rows(exact)} like an earlier one{_pairs(exact, content)}", "yellow"
        if prompt["count"] > exact["count"]:
            yield f"train: {_rows(prompt)} with a prompt used before{_pairs(prompt, content)}", "yellow"
    for overlap in content["overlaps"]:
        yield (f"{overlap['part']}: {_rows(overlap['prompt'])} whose prompt is also in {overlap['other']}, "
               f"{overlap['exact']['count']:,} with the same response{_pairs(overlap['prompt'], content)}"), "red"


def _legend(tokens: bool, marks: Mapping[str, tuple[str, str]] | None) -> Text:
    kinds = {"prompt": "prompt", "trained": "trained"}
    if tokens:
        kinds |= {"end": "the end of the turn, trained too", "thought": "a thought"}
    text = Text("Rows as they are trained: ")
    for kind, words in kinds.items():
        if marks is None:
            text.append(words, style=_STYLES[kind]).append("  ")
    if marks is not None:
        begin, end = marks["trained"]
        text.append(f"{begin} trained {end}" + (f", {marks['end'][0]} the end of the turn, ~ a thought ~" if tokens
                                                else ""))
    return text


def _row(segments: Sequence[Mapping[str, Any]], marks: Mapping[str, tuple[str, str]] | None) -> Text:
    text, trained = Text(), False
    for segment in segments:
        words = _shortened(segment["text"], _LONGEST[segment["kind"]])
        if marks is None:
            text.append(words, style=_STYLES[segment["kind"]])
            continue
        if segment["trained"] and not trained:
            text.append(marks["trained"][0])
        trained = segment["trained"]
        before, after = ("", "") if segment["kind"] == "trained" else marks.get(segment["kind"], ("", ""))
        text.append(f"{before}{words}{after}")
    return text.append(marks["trained"][1] if trained and marks is not None else "")


def _shortened(text: str, longest: int) -> str:
    """Leave out the middle of a long text."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"


def _bars(histogram: Mapping[str, Any]) -> str:
    most = max(histogram["counts"]) or 1
    return "".join(" " if not count else _BARS[-(-count * len(_BARS) // most) - 1] for count in histogram["counts"])


def _end(histogram: Mapping[str, Any]) -> int:
    return histogram["width"] * len(histogram["counts"]) - 1


def _range(spread: Mapping[str, float]) -> str:
    return f"{spread['min']}" if spread["min"] == spread["max"] else f"{spread['min']} to {spread['max']}"


def _known(look: Mapping[str, Any], key: str) -> str | None:
    return f"{look[key]:,}" if key in look else None


def _some(count: int | None) -> str | None:
    return f"{count:,}" if count else None


def _rows(found: Mapping[str, Any], noun: str = "row") -> str:
    return f"{found['count']:,} {noun}{'' if found['count'] == 1 else 's'}"


def _places(found: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    return ", ".join(_place(one, content) for one in found["first"]) + _more(found)


def _pairs(found: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    pairs = (f"{_place(one, content)} = {_place(other, content)}" for one, other in found["first"])
    return f" ({', '.join(pairs)}{_more(found)})"


def _more(found: Mapping[str, Any]) -> str:
    return " ..." if found["count"] > len(found["first"]) else ""


def _place(where: str, content: Mapping[str, Any]) -> str:
    """Name a place by its part, as "train:12", where its file is one of the parts."""
    for part, look in content["files"].items():
        if where.startswith(f"{look['path']}:"):
            return part + where.removeprefix(look["path"])
    return where
