"""Facts of a data file, seen without weights: bad rows, tokens, lengths, what is trained, rows that stand twice."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..errors import CofituneError
from .chat import generated_thought, turn_end
from .encode import Encoded, EncodedExamples, collect_encoded
from .faults import Faults, OnBadRow, RowFault
from .formats import Example, Message, detect_form, parse_row
from .rows import collect_rows

BINS = 16
"""Bars of a histogram of lengths."""

SegmentKind = Literal["prompt", "trained", "thought", "end"]


class Segment(NamedTuple):
    """A stretch of a rendered row. All kinds but "prompt" are trained, except a thought inside the prompt.

    kind: "prompt"; "trained", the response; "thought", a thinking block; "end", the end of the turn.
    """

    kind: SegmentKind
    text: str
    trained: bool


class Text(NamedTuple):
    """Prompt and response of a row or an item as plain text, to find those that stand somewhere twice."""

    prompt: str
    response: str | None
    where: str


@dataclass
class FileLook:
    """One data file as it was understood.

    Attributes:
        forms: number of rows that were read in each format.
        rows: rows that were read, bad ones included.
        examples: the responses of the good rows; none in a file of choices or continuations.
        faults: the bad rows.
        encoded: the good rows as tokens, cut at `max_length` (None: not cut); None if there was no tokenizer.
        unknown: rows with a token beyond the model's embedding, as sentences.
        beyond: places of the rows longer than the model's positions, after the cut.
        texts: prompts and responses as plain text, to find what stands twice.
    """

    path: str
    forms: Mapping[str, int]
    rows: int
    examples: list[Example]
    faults: Faults
    max_length: int | None = None
    encoded: EncodedExamples | None = None
    unknown: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)

    @property
    def form(self) -> str:
        """Name of the format; where rows are of several, each with its number of rows, the most frequent first."""
        if len(self.forms) < 2:
            return next(iter(self.forms), "unknown")
        return ", ".join(f"{name} {count:,}" for name, count in sorted(self.forms.items(), key=lambda item: -item[1]))

    @property
    def good(self) -> int:
        """Number of rows that can be used."""
        return self.rows - len({fault.where for fault in self.faults.found})

    @property
    def trained_tokens(self) -> int:
        return sum(len(row.input_ids) - row.response_start for row in self.encoded or ())

    @property
    def prompt_tokens(self) -> int:
        return sum(row.response_start for row in self.encoded or ())

    @property
    def sentence(self) -> str:
        """One line for a log: rows, tokens, and what the length limit did."""
        words = [f"{self.path}: {counted(self.good, 'row')}"]
        if self.encoded is not None:
            total = self.trained_tokens + self.prompt_tokens
            words[0] += f", {self.trained_tokens:,} trained tokens of {total:,}"
            if cut := len(self.encoded.truncated):
                words.append(f"{counted(cut, 'response')} cut at max_length {self.max_length}")
            if dropped := self.encoded.dropped:
                words.append(f"{counted(len(dropped), 'response')} dropped, as the prompt alone fills max_length "
                             f"{self.max_length} ({places(dropped)})")
        for what, found in self.faults.changed.items():
            words.append(f"{counted(len(found), 'row')} read with {what} ({places(found)})")
        if self.faults:
            words.append(f"{counted(self.rows - self.good, 'row')} left out: {self.faults.sentence}")
        return "; ".join(words)

    def encode(
        self, tokenizer: Any, max_length: int | None = None, *, vocabulary: int, positions: int | None,
        trained: bool = True,
    ) -> None:
        """Encode the good rows, and collect those that the chat template refuses.

        Args:
            max_length: longest row in tokens; None cuts nothing.
            vocabulary, positions: rows of the model's embedding, and its longest row if it says.
            trained: the rows are trained, so that each needs the thought that data.thinking asks for.

        Raises:
            CofituneError: no prompt leaves room within `max_length`.
        """
        self.max_length = max_length
        self.encoded = collect_encoded(self.examples, tokenizer, max_length, self.faults, needs_thought=trained)
        self.unknown = [sentence for row in self.encoded if (sentence := unknown_token(row, tokenizer, vocabulary))]
        self.beyond = [row.where for row in self.encoded if positions is not None and len(row.input_ids) > positions]

    def shown(self, count: int, seed: int, tokenizer: Any = None) -> list[dict[str, Any]]:
        """Render `count` rows that are drawn by the seed, each {where, tokens, segments: [{kind, text, trained}]}."""
        rows = self.examples if self.encoded is None else self.encoded
        drawn = sorted(random.Random(seed).sample(range(len(rows)), min(count, len(rows))))
        return [{
            "where": rows[index].where,
            "tokens": None if self.encoded is None else len(rows[index].input_ids),
            "segments": [segment._asdict() for segment in (
                plain_segments(rows[index]) if self.encoded is None else segments(rows[index], tokenizer))],
        } for index in drawn]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON; see docs/how-to/look-at-data.md for the fields."""
        content: dict[str, Any] = {
            "path": self.path, "format": self.form, "formats": dict(self.forms), "rows": self.rows, "good": self.good,
            "bad": {kind: listed(found) for kind, found in self.faults.by_kind().items()},
            "changed": {what: listed(found) for what, found in self.faults.changed.items()},
            "responses": len(self.examples),
            "turns": spread([len(example.prompt) + 1 for example in self.examples]),
        }
        if self.encoded is not None:
            content |= {
                "trained_tokens": self.trained_tokens, "prompt_tokens": self.prompt_tokens,
                "lengths": {**spread(self.encoded.lengths), "histogram": histogram(self.encoded.lengths)},
                "max_length": self.max_length, "cut": listed(self.encoded.truncated),
                "dropped": listed(self.encoded.dropped), "beyond_positions": listed(self.beyond),
                "beyond_vocabulary": {"count": len(self.unknown), "first": self.unknown[:3]},
            }
        return content


def read_file(path: str | Path, *, limit: int | None = None, on_bad_row: OnBadRow = "stop") -> FileLook:
    """Read a data file and collect its bad rows, which are not raised.

    Args:
        limit: take the first rows.
        on_bad_row: kept at the faults, for `Faults.settle`.

    Raises:
        CofituneError: the file is missing, or not a data file.
    """
    faults = Faults(on_bad_row)
    rows = collect_rows(path, limit, faults)
    read, examples = len(rows) + len(faults), []
    forms: Counter[str] = Counter()
    for row in rows:
        try:
            examples += parse_row(row, faults)
            forms[detect_form(row).name] += 1
        except RowFault as fault:
            faults.add(fault)
    return FileLook(str(path), forms, read, examples, faults, texts=list(map(text_of, examples)))


# Tokens that the model does not have ----------------------------------------------------------------------------------


def unknown_token(row: Encoded, tokenizer: Any, vocabulary: int) -> str | None:
    """Return a sentence if a row has a token beyond an embedding of `vocabulary` rows, else None."""
    token = max(row.input_ids)
    if token < vocabulary:
        return None
    return (f"{row.where or 'A row'} has the token {tokenizer.convert_ids_to_tokens(token)!r} with the id {token}, but "
            f"the model's embedding has {vocabulary} rows, while the tokenizer has {len(tokenizer)} tokens")


def refuse_unknown_tokens(rows: Iterable[Encoded], tokenizer: Any, vocabulary: int) -> None:
    """Refuse rows with tokens that the model has no embedding for.

    Args:
        vocabulary: rows of the embedding.

    Raises:
        CofituneError: one sentence with the first row, its token and both sizes.
    """
    if found := [sentence for row in rows if (sentence := unknown_token(row, tokenizer, vocabulary))]:
        raise unknown_tokens_error(found)


def unknown_tokens_error(found: Sequence[str]) -> CofituneError:
    """Error for rows with tokens beyond the embedding, given the sentences of `unknown_token`."""
    more = f"; {counted(len(found) - 1, 'more row')} likewise" if len(found) > 1 else ""
    return CofituneError(f"{found[0]}{more}: use the tokenizer that belongs to the model, or enlarge the model by "
                         "transformers' resize_token_embeddings and save both.")


# A row as it is trained -----------------------------------------------------------------------------------------------

SHOWN = 3
"""Rows that are shown as they are trained."""

_BLOCK = re.compile(r"([<\[])([\w:]*think\w*)([>\]]).*?[<\[]/\2[>\]]", re.DOTALL | re.IGNORECASE)


def segments(row: Encoded, tokenizer: Any) -> list[Segment]:
    """Split a row into what is prompt, thought, trained response and end of turn, as text.

    Decoding the ids and not the row shows what the model sees, special tokens included.
    """
    start = row.response_start
    response = row.input_ids[start:]
    before, after = turn_end(tokenizer, None).places(tokenizer, response)
    borders = [0, start, start + before, start + after, len(row.input_ids)]
    texts = [tokenizer.decode(row.input_ids[:border], skip_special_tokens=False) for border in borders[1:]]
    if not all(later.startswith(text) for text, later in itertools.pairwise(texts)):
        # a decoder that writes a text's beginning otherwise
        parts = [tokenizer.decode(row.input_ids[a:b], skip_special_tokens=False)
                 for a, b in itertools.pairwise(borders)]
    else:
        parts = [texts[0], *(later[len(text):] for text, later in itertools.pairwise(texts))]
    prompt, answer, end, rest = parts
    found = [*_blocks(prompt), *_thought(answer, tokenizer), Segment("end", end, True),
             Segment("trained", rest, True)]
    return [segment for segment in found if segment.text]


def plain_segments(example: Example) -> list[Segment]:
    """Split an example into prompt and response where there is no tokenizer: each turn after its role."""
    turns = "".join(f"{message['role']}: {message.get('content') or ''}\n" for message in example.prompt)
    return [Segment("prompt", f"{turns}assistant: ", False), Segment("trained", example.response, True)]


def _thought(answer: str, tokenizer: Any) -> list[Segment]:
    thought = generated_thought(tokenizer, answer)
    return [Segment("thought", thought, True), Segment("trained", answer.removeprefix(thought), True)]


def _blocks(prompt: str) -> list[Segment]:
    found, place = [], 0
    for block in _BLOCK.finditer(prompt):
        found += [Segment("prompt", prompt[place:block.start()], False), Segment("thought", block[0], False)]
        place = block.end()
    return [*found, Segment("prompt", prompt[place:], False)]


# Rows that stand somewhere twice --------------------------------------------------------------------------------------


class Pairs(NamedTuple):
    """Rows that hold the same, each once: (place, the place that it repeats).

    exact: the same prompts and the same responses. prompt: the same prompt, with any response.
    """

    exact: list[tuple[str, str]]
    prompt: list[tuple[str, str]]

    def to_dict(self) -> dict[str, Any]:
        return {kind: {"count": len(found), "first": [list(pair) for pair in found[:3]]}
                for kind, found in self._asdict().items()}


def text_of(example: Example) -> Text:
    """Return prompt and response of an example, without space around them."""
    response = example.response.strip()
    if example.also:
        response += "\n" + "\n".join(f"{key}: {value}" for key, value in sorted(example.also.items()))
    return Text(messages_text(example.prompt), response, example.where)


def messages_text(messages: Sequence[Message]) -> str:
    return "\n".join(str(message.get("content") or "").strip() for message in messages)


def repeated(texts: Sequence[Text]) -> Pairs:
    """Find the rows of a file that repeat an earlier one in all their responses, or in one of their prompts."""
    first_exact: dict[Any, str] = {}
    first_prompt: dict[str, str] = {}
    pairs = Pairs([], [])
    for where, row in _by_row(texts).items():
        before = next((first_prompt[prompt] for prompt, _ in row if prompt in first_prompt), None)
        if before is not None:
            pairs.prompt.append((where, before))
        if (whole := tuple(row)) in first_exact:
            pairs.exact.append((where, first_exact[whole]))
        first_exact.setdefault(whole, where)
        for prompt, _ in row:
            first_prompt.setdefault(prompt, where)
    return pairs


def shared(texts: Sequence[Text], others: Sequence[Text]) -> Pairs:
    """Find the rows with a prompt that also stands among the others, with the first place there.

    A row counts as exact if a prompt stands there with the same response.
    """
    exact: dict[Any, str] = {}
    prompts: dict[str, str] = {}
    for other in others:
        exact.setdefault((other.prompt, other.response), other.where)
        prompts.setdefault(other.prompt, other.where)
    pairs = Pairs([], [])
    for where, row in _by_row(texts).items():
        if same := next((pair for pair in row if pair in exact), None):
            pairs.exact.append((where, exact[same]))
        if (known := next((prompt for prompt, _ in row if prompt in prompts), None)) is not None:
            pairs.prompt.append((where, prompts[known]))
    return pairs


def _by_row(texts: Iterable[Text]) -> dict[str, list[tuple[str, str | None]]]:
    """Return (prompt, response) of each response of a row, by the row's place."""
    rows: dict[str, list[tuple[str, str | None]]] = {}
    for text in texts:
        rows.setdefault(text.where, []).append((text.prompt, text.response))
    return rows


# Numbers in words -----------------------------------------------------------------------------------------------------


def spread(values: Sequence[int]) -> dict[str, float]:
    """Smallest, median, 95th percentile (nearest rank) and largest of whole numbers; zeros if there are none."""
    ordered = sorted(values) or [0]
    ranks = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {name: ordered[max(0, -(-round(share * 100) * len(ordered) // 100) - 1)] for name, share in ranks.items()}


def histogram(values: Sequence[int]) -> dict[str, Any]:
    """Counts of whole numbers in BINS bins of one width, from 0 on. "width": of a bin; "counts": [BINS]."""
    width = max(1, -(-(max(values, default=0) + 1) // BINS))
    counts = [0] * BINS
    for value in values:
        counts[value // width] += 1
    return {"width": width, "counts": counts}


def listed(found: Sequence[str]) -> dict[str, Any]:
    return {"count": len(found), "first": list(found[:3])}


def places(found: Sequence[str], shown: int = 3) -> str:
    """Write the first places as "a, b, c ..."."""
    return ", ".join(found[:shown]) + (" ..." if len(found) > shown else "")


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
