"""Rows that begin alike, packed so that what they share is computed once.

Rows of a chat model share their system prompt, and the choices of an item share its query. Sorted, such rows form a
prefix tree; a pack is one token sequence that holds a tree's nodes, each seeing only its own ancestors and standing at
the position it has in its row. The model's outputs are then those of the separate rows, for fewer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .encode import Encoded


@dataclass
class Pack:
    """One token sequence: `ids`, the `parents` of its tokens (-1: none) and their `positions` in their rows.

    rows[i] = (index of the row, where its response is predicted, the response's ids): the token at place
    predictors[j] predicts targets[j]. The last token of a row predicts nothing and is left out.
    """

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    rows: list[tuple[int, list[int], list[int]]] = field(default_factory=list)

    def ancestors(self) -> np.ndarray:
        """bool [tokens, tokens]: which tokens (columns) each token (row) sees, itself among them."""
        seen = np.eye(len(self.ids), dtype=bool)
        for place, parent in enumerate(self.parents):  # a parent stands before its children
            if parent >= 0:
                seen[place] |= seen[parent]
        return seen

    def path(self, place: int) -> list[int]:
        """The places of a row's tokens, from its first to the one at `place`."""
        path = []
        while place >= 0:
            path.append(place)
            place = self.parents[place]
        return path[::-1]


def pack_rows(rows: Sequence[Encoded], capacity: int | None = 256) -> list[Pack]:
    """Pack rows into sequences of at most `capacity` tokens (a longer row is a pack of its own; None: all in one)."""
    packs: list[Pack] = []
    path: list[int] = []  # the places, in the last pack, of the row put there last
    for index in sorted(range(len(rows)), key=lambda index: rows[index].input_ids):
        row = rows[index]
        ids = row.input_ids[:-1]
        shared = _shared(path, packs[-1], ids) if packs else 0
        if not packs or (capacity is not None and len(packs[-1].ids) + len(ids) - shared > capacity):
            packs.append(Pack())
            path, shared = [], 0
        pack = packs[-1]
        path = path[:shared]
        for position in range(shared, len(ids)):
            pack.parents.append(path[-1] if path else -1)
            path.append(len(pack.ids))
            pack.ids.append(ids[position])
            pack.positions.append(position)
        start = max(row.response_start, 1)  # nothing predicts a row's first token
        pack.rows.append((index, path[start - 1 :], row.input_ids[start:]))
    return packs


def collate_packs(packs: Sequence[Pack], pad_token_id: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors for one forward: input_ids and position_ids [packs, tokens], attention_mask [packs, 1, tokens, tokens].

    The mask is additive, in `dtype` (the model's): 0 where a token is seen and the least number where it is not.
    """
    length = max(len(pack.ids) for pack in packs)
    input_ids = torch.full((len(packs), length), pad_token_id)
    position_ids = torch.zeros_like(input_ids)
    seen = np.broadcast_to(np.eye(length, dtype=bool), (len(packs), length, length)).copy()  # padding sees itself
    for number, pack in enumerate(packs):
        size = len(pack.ids)
        input_ids[number, :size] = torch.tensor(pack.ids)
        position_ids[number, :size] = torch.tensor(pack.positions)
        seen[number, :size, :size] = pack.ancestors()
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(torch.from_numpy(~seen), torch.finfo(dtype).min)
    return {"input_ids": input_ids, "position_ids": position_ids, "attention_mask": mask[:, None]}


def collate_trie(pack: Pack, length: int) -> dict[str, torch.Tensor]:
    """A pack for an attention that takes rows apart (models.attention): no padding among the tokens.

    input_ids and position_ids [1, tokens]; rows int64 [rows, length], the places of each row's tokens, in the order of
    `pack.rows`; owners int64 [tokens], for each token a place in the flattened rows where it stands.
    """
    paths = [pack.path(predictors[-1]) for _, predictors, _ in pack.rows]
    rows = torch.tensor([path + [path[-1]] * (length - len(path)) for path in paths])
    owners = torch.empty(len(pack.ids), dtype=torch.long)
    for number, path in enumerate(paths):
        owners[path] = torch.arange(len(path)) + number * length
    return {"input_ids": torch.tensor([pack.ids]), "position_ids": torch.tensor([pack.positions]),
            "attention_mask": torch.zeros(1, 1, 1, 1), "rows": rows, "owners": owners}


def _shared(path: list[int], pack: Pack, ids: list[int]) -> int:
    count = 0
    for place, token in zip(path, ids, strict=False):
        if pack.ids[place] != token:
            break
        count += 1
    return count
