"""Pack rows with common beginnings into a prefix trie, so that shared tokens are computed once.

Rows of a chat model share a system prompt, and the choices of an item share its query. A trie of such rows holds each
distinct prefix once. The layers work on the trie's tokens, except for attention, which expands them per row
(`models.attention`). So the model's outputs are those of the separate rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from ..errors import CofituneError
from .encode import Encoded
from .predictors import row_predictors

ROW_TOKENS = 4
"""Bound on the tokens of a trie's padded rows, as a multiple of `max_tokens`. Shared tokens count in each row."""


@dataclass
class Pack:
    """A prefix trie of rows: the `ids` of its tokens, their `parents` (-1: none) and their `positions` in their rows.

    rows[i] = (index of the row, its predictors, its targets): the token at place predictors[j] predicts targets[j], see
    `predictors.row_predictors`. The last token of a row predicts nothing, so the trie does not hold it.
    """

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    rows: list[tuple[int, list[int], list[int]]] = field(default_factory=list)
    _places: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)  # (parent, id) -> place

    def add(self, index: int, row: Encoded) -> None:
        path, place = [], -1
        for position, token in enumerate(row.input_ids[:-1]):
            parent, place = place, self._places.setdefault((place, token), len(self.ids))
            if place == len(self.ids):
                self.ids.append(token)
                self.parents.append(parent)
                self.positions.append(position)
            path.append(place)
        self.rows.append((index, *row_predictors(row, path)))

    def new_tokens(self, row: Encoded) -> int:
        """Number of tokens that the row would add."""
        place = -1
        for known, token in enumerate(row.input_ids[:-1]):
            if (place := self._places.get((place, token))) is None:
                return len(row.input_ids) - 1 - known
        return 0

    def path(self, place: int) -> list[int]:
        """Places of a row's tokens, from its first token to the one at `place`."""
        path = []
        while place >= 0:
            path.append(place)
            place = self.parents[place]
        return path[::-1]

    def paths(self) -> list[list[int]]:
        """Places of the tokens of each row, without rows that are the beginning of another row."""
        inner = set(self.parents)
        return [self.path(place) for place in range(len(self.ids)) if place not in inner]


def pack_rows(rows: Sequence[Encoded]) -> Pack:
    """Pack all rows into one trie."""
    pack = Pack()
    for index in sorted(range(len(rows)), key=lambda index: rows[index].input_ids):
        pack.add(index, rows[index])
    return pack


def plan_packs(rows: Sequence[Encoded], max_tokens: int) -> Iterator[Pack]:
    """Divide rows of at least 2 tokens among tries of at most `max_tokens` tokens. A longer row is a trie of its own.

    Attention pads the rows of a trie to the longest of them. So rows of similar length come together, with the longest
    first, and the padded rows of a trie have at most ROW_TOKENS * max_tokens tokens. Neighbours in sorted order that
    share at least half of their tokens stay together. The result depends only on the rows and on `max_tokens`.
    """
    if max_tokens < 1:
        raise CofituneError(f"max_tokens is {max_tokens}; it must be at least 1.")
    pack, longest = Pack(), 0
    for index in _in_families(rows):
        length = len(rows[index].input_ids) - 1
        longest = max(longest, length)
        too_many = len(pack.ids) + pack.new_tokens(rows[index]) > max_tokens
        if pack.rows and (too_many or (len(pack.rows) + 1) * longest > ROW_TOKENS * max_tokens):
            yield pack
            pack, longest = Pack(), length
        pack.add(index, rows[index])
    if pack.rows:
        yield pack


def _in_families(rows: Sequence[Encoded]) -> list[int]:
    """Indices of the rows, grouped into families that share at least half of their tokens; longest rows first."""
    families: list[list[int]] = []
    before: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: rows[index].input_ids):
        ids = rows[index].input_ids
        if not families or 2 * _shared(before, ids) < len(ids):
            families.append([])
        families[-1].append(index)
        before = ids
    families.sort(key=lambda family: -max(len(rows[index].input_ids) for index in family))
    return [index for family in families for index in family]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                min(len(one), len(other)))


def collate_trie(pack: Pack) -> dict[str, torch.Tensor]:
    """Collate a pack for `models.attention.trie_attention`. There is no padding among the tokens.

    input_ids, position_ids: int64 [1, tokens]. attention_mask: [1, 1, 1, 1], not read.
    rows: int64 [rows, length], the places of each row's tokens, without rows that are the beginning of another row.
    owners: int64 [tokens], for each token one place in the flattened rows that holds it.
    """
    paths = pack.paths()
    length = max(map(len, paths))
    rows = torch.tensor([path + [path[-1]] * (length - len(path)) for path in paths])
    owners = torch.empty(len(pack.ids), dtype=torch.long)
    for number, path in enumerate(paths):
        owners[path] = torch.arange(len(path)) + number * length
    return {"input_ids": torch.tensor([pack.ids]), "position_ids": torch.tensor([pack.positions]),
            "attention_mask": torch.zeros(1, 1, 1, 1), "rows": rows, "owners": owners}
