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
from ..json_text import read_json
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
_SCRIPTS = {"sft.py": "ms-swift", "rlhf.py": "ms-swift", "src/train.py": "LLaMA-Factory",
            "src/train_bash.py": "LLaMA-Factory"}
_MODULES = {"swift.cli.sft": "ms-swift", "swift.cli.rlhf": "ms-swift", "axolotl.cli.train": "Axolotl",
            "llamafactory.train": "LLaMA-Factory"}
_LAUNCHERS = {"torchrun", "deepspeed", "accelerate", "torch.distributed.run", "torch.distributed.launch"}
_PER_NODE, _NODES, _IN_ALL = ("nproc_per_node", "num_gpus"), ("nnodes", "num_nodes"), ("num_processes",)


class Given(NamedTuple):
    """Keys and values of a file.

    Attributes:
        tool: the one whose command a script starts, if that is seen.
        processes: number of processes that the script starts; None if the file does not say.
    """

    values: dict[str, Any]
    tool: str | None = None
    processes: int | None = None


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
        place = next((place for place in range(before, len(words)) if _tool_at(words, place)), None)
        tool = None if place is None else _tool_at(words, place)
        first = 0 if place is None else place + 1
        if tool is not None and (named := next((word for word in words[first:] if word.endswith((".yaml", ".yml"))),
                                               None)):
            raise CofituneError(f"{path} starts {tool} with the configuration {named}; import that file.")
        start = next((place for place, word in enumerate(words[first:], first) if word.startswith("--")), None)
        if start is None:
            continue
        if tool is None and not words[0].startswith("--"):
            continue  # another command, such as torchrun's of an evaluation
        return Given(_arguments(words[start:]), tool, _processes(words[before:first], environment, tool))
    raise CofituneError(f"{path} holds no command of swift or llamafactory-cli with arguments; name a configuration of "
                        "Axolotl, LLaMA-Factory or ms-swift.")


def _filled_in(word: str, environment: dict[str, str]) -> str:
    """The word with the variables that the script itself has set."""
    return _VARIABLE.sub(lambda found: environment.get(found[1] or found[2], found[0]), word)


def _tool_at(words: list[str], place: int) -> str | None:
    """The tool whose arguments begin after the word at `place`."""
    *before, word = words[max(0, place - 1) : place + 1]
    pair = (Path(before[0]).name if before else "", Path(word).name)
    if before == ["-m"]:
        return _MODULES.get(word)
    return _COMMANDS.get(pair) or _SCRIPTS.get(pair[1]) or _SCRIPTS.get("/".join(Path(word).parts[-2:]))


def _processes(words: list[str], environment: dict[str, str], tool: str | None) -> int | None:
    """Number of processes, by the words before the tool's arguments; None if they do not say.

    LLaMA-Factory's command starts one for each GPU that it sees, ms-swift's one unless NPROC_PER_NODE is set.
    """
    launched = any(Path(word).name in _LAUNCHERS for word in words)
    given = {name: _count(value[0] if isinstance(value, list) else value) for name, value in _arguments(words).items()}
    if not launched and "NPROC_PER_NODE" in environment:
        given = {"nproc_per_node": _count(environment["NPROC_PER_NODE"]),
                 "nnodes": _count(environment.get("NNODES", "1"))}
    for name in _IN_ALL:
        if name in given:
            return given[name]
    for name in _PER_NODE:
        if name in given:
            nodes = next((given[one] for one in _NODES if one in given), 1)
            return None if given[name] is None or nodes is None else given[name] * nodes
    if not launched and tool == "ms-swift":
        return 1
    visible = [one for one in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip().isdecimal()]
    return len(visible) or None if tool == "LLaMA-Factory" and not launched else None


def _count(value: Any) -> int | None:
    return int(value) if str(value).isdecimal() else None


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
