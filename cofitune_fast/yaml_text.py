"""YAML reader for settings: numbers, true and false as in YAML 1.2, everything else text.

PyYAML reads YAML 1.1, in which `off` is false, `1e-4` text and `2024-05-01` a date. Quoted text is text in both.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from .errors import CofituneError

_MOST_VALUES = 100_000
_DEEPEST = 50
_TAG = "tag:yaml.org,2002:"
_BOOLEAN = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")
_FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$"
    r"|\.(?:nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's booleans and floats, and without dates."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML reads it from the class)
        first: [(tag, pattern) for tag, pattern in known
                if tag.removeprefix(_TAG) not in ("bool", "float", "timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(f"{_TAG}bool", _BOOLEAN, list("tTfF"))
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """Parse a YAML text.

    Raises:
        yaml.YAMLError: the text is not YAML, names a key twice, or is larger or deeper than any settings are.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {}, 0)
        return loader.construct_document(node)
    except (RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, RecursionError):
            raise yaml.YAMLError("it is nested too deeply") from None
        raise yaml.YAMLError(f"a value cannot be read ({error})") from None
    finally:
        loader.dispose()


def _measure(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Count the values below a node, aliases written out, and refuse what only an attack has.

    Args:
        known: counts of the nodes that were counted before, 0 while they are being counted.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if depth > _DEEPEST:
        raise _problem(node, "it is nested too deeply")
    if (found := known.get(id(node))) == 0:
        raise _problem(node, "an alias stands inside what it names")
    if found is not None:
        return found
    known[id(node)] = 0
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    count = 1 + sum(_measure(part, known, depth + 1) for part in parts)
    if count > _MOST_VALUES:
        raise _problem(node, f"it holds more than {_MOST_VALUES:,} values")
    known[id(node)] = count
    if isinstance(node, yaml.MappingNode):
        names = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
            raise _problem(node.value[len(names) - 1 - names[::-1].index(twice)][0], f"the key {twice[1]} stands twice")
    return count


def _problem(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def read_yaml(path: str | Path, what: str) -> Any:
    """Read a YAML or JSON file; `what` names it in errors, e.g. "configuration".

    Raises:
        CofituneError: the file is absent, cannot be read, or is not YAML.
    """
    path = Path(path)
    if path.is_dir():
        raise CofituneError(f"The {what} {path} is a folder; name a YAML file.")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CofituneError(f"No {what} at {path}: the file does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CofituneError(f"The {what} {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        if "'\\t'" in problem:
            problem = "a tab begins a value or indents the line, where YAML takes only blanks"
        raise CofituneError(f"The {what} {path} is not valid YAML{place}: {problem}.") from None
