"""Reader of other tools' files: a YAML or JSON mapping, or a shell script whose command line holds the arguments.

Nothing is executed: of a script only the words are read.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..errors import CofituneError
from ..files import read_json
from ..yaml_text import parse_yaml, read_yaml

_LARGEST = 1 << 20  # bytes; settings are thousands of times smaller
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")
_WORKED_OUT = re.compile(r"\$\([^()]*\)|`[^`]*`")
_NO_TEXT = re.compile(r"\\x00|\\u[dD][89a-fA-F]")
_COMMAND_ENDS = set(";&|<>")
_COMMANDS = {
    ("swift", "sft"): "ms-swift", ("swift", "rlhf"): "ms-swift",
    ("llamafactory-cli", "train"): "LLaMA-Factory", ("lmf", "train"): "LLaMA-Factory",
    ("axolotl", "train"): "Axolotl",
}
_SCRIPTS = {"sft.py": "ms-swift", "rlhf.py": "ms-swift"}


class Given(NamedTuple):
    """Keys and values of a file. tool: the one whose command a script starts, if that is seen."""

    values: dict[str, Any]
    tool: str | None = None


def read_given(path: Path) -> Given:
    """Read the keys and values of a file.

    Raises:
        CofituneError: the file is missing, too large, not readable, or holds no mapping and no command line.
    """
    if not path.exists():
        raise CofituneError(f"No configuration at {path}: the file does not exist.")
    if path.is_file() and path.stat().st_size > _LARGEST:
        raise CofituneError(f"{path} is larger than 1 MiB, which no configuration is; name the configuration itself.")
    if path.suffix == ".json":
        values = read_json(path, "configuration")
    elif path.is_file() and (path.suffix in (".sh", ".bash", ".txt") or _is_command(path)):
        return _of_script(path)
    else:
        values = read_yaml(path, "configuration")
    if not isinstance(values, dict) or not values:
        raise CofituneError(f"{path} holds no keys with values, as a configuration of Axolotl, LLaMA-Factory or "
                            "ms-swift does.")
    return Given(_of_text({str(key): value for key, value in values.items()}, path))


def _of_text(values: dict[str, Any], path: Path) -> dict[str, Any]:
    if _NO_TEXT.search(repr(values)):
        raise CofituneError(f"{path} holds a NUL or half of a character, which no name or setting does; take it out.")
    return values


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CofituneError(f"The configuration {path} cannot be read: {error}.") from None


def _is_command(path: Path) -> bool:
    return path.suffix not in (".yaml", ".yml") and re.search(r"(^|\s)--[a-z]", _text(path)) is not None


def _of_script(path: Path) -> Given:
    environment: dict[str, str] = {}
    for words in _command_lines(_text(path), path):
        words = [_filled_in(word, environment) for word in words]
        before = 0
        while before < len(words) and (match := _ASSIGNMENT.fullmatch(words[before])):
            environment[match[1]] = match[2]
            before += 1
        if words[before : before + 1] == ["export"]:
            environment |= dict(word.split("=", 1) for word in words[before + 1 :] if "=" in word)
            continue
        tool = _tool_of(words)
        if tool is not None and (named := next((word for word in words if word.endswith((".yaml", ".yml"))), None)):
            raise CofituneError(f"{path} starts {tool} with the configuration {named}; import that file.")
        start = next((place for place, word in enumerate(words) if word.startswith("--")), None)
        if start is None:
            continue
        if tool is None and not words[0].startswith("--"):
            continue  # another command, such as torchrun's of an evaluation
        first = next((place + 1 for place, word in enumerate(words) if _starts(words, place)), start)
        values = _arguments(words[first:])
        processes = environment.get("NPROC_PER_NODE", "1")
        return Given(values | ({"NPROC_PER_NODE": _value(processes)} if processes != "1" else {}), tool)
    raise CofituneError(f"{path} holds no command of swift or llamafactory-cli with arguments; name a configuration of "
                        "Axolotl, LLaMA-Factory or ms-swift.")


def _filled_in(word: str, environment: dict[str, str]) -> str:
    """The word with the variables that the script itself has set."""
    return _VARIABLE.sub(lambda found: environment.get(found[1] or found[2], found[0]), word)


def _starts(words: list[str], place: int) -> bool:
    """True if the arguments of the tool begin after the word at `place`."""
    pair = tuple(Path(word).name for word in words[place - 1 : place + 1])
    return pair in _COMMANDS or Path(words[place]).name in _SCRIPTS


def _tool_of(words: list[str]) -> str | None:
    for place, word in enumerate(words):
        if _starts(words, place):
            pair = tuple(Path(one).name for one in words[place - 1 : place + 1])
            return _COMMANDS.get(pair) or _SCRIPTS[Path(word).name]
    return None


def _command_lines(text: str, path: Path) -> Iterator[list[str]]:
    """Yield the words of each command, as a shell would split them; continued lines are one."""
    text = _WORKED_OUT.sub(lambda found: shlex.quote(" ".join(found[0].split())), text.replace("\\\r\n", " "))
    pending: list[str] = []
    quote = ""
    for line in text.replace("\\\n", " ").splitlines():
        kept, quote = _without_comment(line, quote)
        pending.append(kept)
        if quote:
            continue  # a quotation goes on in the next line
        words, pending = _split("\n".join(pending)), []
        command: list[str] = []
        for word in words:
            if word and set(word) <= _COMMAND_ENDS:
                if command:
                    yield command
                command = []
            else:
                command.append(word)
        if command:
            yield command
    if pending:
        raise CofituneError(f"{path} is no shell script that can be read: a quotation mark is never closed.")


def _without_comment(line: str, quote: str) -> tuple[str, str]:
    """The line without its comment, and the quotation mark that is open at its end, or "".

    quote: the mark that is open at the line's beginning. Each character is looked at once, however hostile the line.
    """
    escaped, before = False, " "
    for place, character in enumerate(line):
        if escaped:
            escaped = False
        elif character == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "#" and before.isspace():
            return line[:place], quote
        before = character
    return (line[:-1] if escaped and not quote else line), quote


def _split(line: str) -> list[str]:
    reader = shlex.shlex(line, posix=True, punctuation_chars="".join(sorted(_COMMAND_ENDS)))
    reader.commenters, reader.whitespace_split = "", True
    return list(reader)


def _arguments(words: list[str]) -> dict[str, Any]:
    """{name: value} of `--name value`, `--name=value`, `--name a b` and `--name` alone, which is true."""
    values: dict[str, Any] = {}
    name: str | None = None
    found: dict[str, list[Any]] = {}
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            found[name] = [_value(value)] if equals else []
        elif name is not None:
            found[name].append(_value(word))
    for key, items in found.items():
        values[key] = True if not items else items[0] if len(items) == 1 else items
    return values


def _value(word: str) -> Any:
    try:
        value = parse_yaml(word)
    except yaml.YAMLError:
        return word
    return word if value is None and word not in ("null", "None", "~") else value
