"""Mutations of a good file: bytes, values of JSON, headers of safetensors. The same seed makes the same file."""

from __future__ import annotations

import json
import random

_VALUES = [None, True, False, -1, 0, 1, 2.5, 10**12, 2**63, -(2**64), float("nan"), float("inf"), 1e308, "", "\0",
           "../../x", "/", "\ud800", "<script>", "[/b]", "\x1b[31m", "~", [], {}, [[]], {"": {}}, [None], ["", 1],
           {"a": 1}]
_RAW = ["[" * 100_000 + "]" * 100_000, '{"a":' * 20_000 + "1" + "}" * 20_000, "7" * 5_000,
        "-" + "9" * 5_000, "1e999999"]
_PIECES = [b"\0", b"\xff\xfe", b"\xc3\x28", b"\n", b"\r", b"{", b"}", b"[", b"]", b'"', b"'", b",", b":", b"-", b"#",
           b"&a [*a]", b"*a", b"!!bool x", b"!!python/object:os.system x", b"2024-99-99", b"0b_", b"1:99:99", b"<<: 1",
           b"? ", b"- - - - -", b"%YAML 9.9\n", b"7" * 5000, b"[" * 3000, b"{" * 3000, b"\xef\xbb\xbf", b"$(x)", b"\\"]


def mutated(content: bytes, kind: str, random: random.Random) -> bytes:
    """One to three mutations. kind: "json", "jsonl", "safetensors" or "bytes"."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        by_form = {"json": _json, "jsonl": _line, "safetensors": _safetensors}.get(kind)
        content = by_form(content, random) if by_form and random.random() < 0.75 else _bytes(content, random)
    return content


def _bytes(content: bytes, random: random.Random) -> bytes:
    begin = random.randrange(len(content) + 1)
    end = min(len(content), begin + random.choice((0, 1, 8, 100)))
    other = random.randrange(len(content) + 1)
    flipped = bytes(byte ^ 1 << random.randrange(8) for byte in content[begin : begin + 1])
    middle = random.choice([b"", flipped, random.choice(_PIECES), random.choice(_PIECES), content[begin:end] * 2,
                            content[other : other + 50], random.randbytes(8)])
    return content[:begin] + middle + (b"" if random.random() < 0.1 else content[end:])


def _places(value: object, found: list) -> list:
    """Every (container, key) of a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in list(pairs):
        found.append((value, key))
        _places(inside, found)
    return found


def _json(content: bytes, random: random.Random) -> bytes:
    try:
        root = [json.loads(content)]
    except (ValueError, RecursionError):
        return _bytes(content, random)
    places = _places(root, [])
    container, key = random.choice(places)
    raw, choice = None, random.random()
    if choice < 0.15:
        del container[key]
    elif choice < 0.25:
        raw, container[key] = random.choice(_RAW), "\x01RAW"
    elif choice < 0.35:
        other, name = random.choice(places)
        container[key] = json.loads(json.dumps(other[name]))
    elif choice < 0.45 and isinstance(container[key], str):  # texts that hold JSON, as headers do
        container[key] = _json(container[key].encode("utf-8", "replace"), random).decode("utf-8", "replace")
    elif choice < 0.5 and isinstance(container, dict):
        container[random.choice(["", "x", "\0", "__class__", "../x"])] = container.pop(key)
    else:
        container[key] = random.choice(_VALUES)
    text = json.dumps(root[0]) if root else ""
    return (text if raw is None else text.replace('"\\u0001RAW"', raw)).encode()


def _line(content: bytes, random: random.Random) -> bytes:
    lines = content.split(b"\n")
    place = random.randrange(len(lines))
    if random.random() < 0.2:
        lines.insert(place, lines.pop(random.randrange(len(lines))))
    else:
        lines[place] = _json(lines[place], random)
    return b"\n".join(lines)


def _safetensors(content: bytes, random: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    if not 0 < length <= len(content) - 8:
        return _bytes(content, random)
    header, rest = content[8 : 8 + length], content[8 + length :]
    try:
        tree = json.loads(header)
        about = tree["__metadata__"]
        name = random.choice(sorted(about))
        if random.random() < 0.7:
            about[name] = _json(about[name].encode(), random).decode("utf-8", "replace")
            header = json.dumps(tree).encode()
        else:
            header = _json(header, random)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        header = _json(header, random)
    return len(header).to_bytes(8, "little") + header + rest
