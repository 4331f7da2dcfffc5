"""Batches of a run: which rows come together, and the tensors that a step needs of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Sampler, get_worker_info
from transformers import TrainingArguments

from ..anchor import Anchor, BaseRow
from ..data import (
    IGNORED_LABEL,
    Encoded,
    collate_trie,
    pack_rows,
    pad_rows,
    padded_places,
    plan_batches,
    row_predictors,
)
from ..errors import CofituneError
from ..memory.abilities import takes_tries, trie_ability
from ..memory.prefix_cache import PlacedRow, PrefixCache, row_keys
from ..models.attention import longest_row
from ..models.sharded import all_ranks
from .anchor_term import AnchorOrder


class FixedBatches(Sampler[list[int]]):
    """Batch sampler whose batches hold the same rows in every epoch, in a new order each time.

    A fixed batch has fixed padding. So its numbers are the same to the bit whether the frozen prefix is computed or
    cached.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a batch of one process.
        by_length: batch rows of similar length, which need little padding; otherwise rows at random.
        shuffle: False keeps rows and batches in the order of the data.
        rank, ranks: this process and the number of processes that train together. Each takes every ranks-th row of the
            batches that one process would have with batch_size * ranks rows. A batch with fewer rows than ranks joins
            another one.
        anchor: indices of the anchor's rows. `anchor_rows` of them, in turn, join each batch of each process.

    Raises:
        CofituneError: there are fewer rows than processes.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, *, by_length: bool, shuffle: bool = True,
                 drop_last: bool = False, rank: int = 0, ranks: int = 1, anchor: Sequence[int] = (),
                 anchor_rows: int = 0):
        if len(lengths) < ranks:
            raise CofituneError(f"There are {len(lengths)} training rows for {ranks} processes, and each needs one; "
                                "start fewer, or give more rows.")
        planned = plan_batches(lengths, max_tokens=None, batch_size=batch_size * ranks, sort=by_length and shuffle,
                               seed=seed if shuffle else None)
        if drop_last:
            planned = [batch for batch in planned if len(batch) == batch_size * ranks]
            if not planned:
                raise CofituneError(f"training.dataloader_drop_last leaves none of {len(lengths)} training rows, as a "
                                    f"batch has {batch_size * ranks}; leave it out, or take smaller batches.")
        self.batches = [batch[rank::ranks] for batch in _without_small(planned, ranks)]
        if anchor:
            order = AnchorOrder(anchor, anchor_rows, seed)
            for number, batch in enumerate(self.batches):
                batch += order.batch(number * ranks + rank)
        self.batch_size, self.drop_last = batch_size, drop_last  # accelerate reads these
        self._seed, self._shuffle, self._epoch = seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(len(self.batches)))
        if self._shuffle:
            random.Random(f"{self._seed} {self._epoch}").shuffle(order)
        return iter([self.batches[index] for index in order])


def _without_small(batches: list[list[int]], least: int) -> list[list[int]]:
    """Merge a batch of fewer than `least` rows into the one before it, or after it if it is the first."""
    small = next((index for index, batch in enumerate(batches) if len(batch) < least), None)
    if small is None:
        return batches
    start = max(small - 1, 0)
    return [*batches[:start], batches[start] + batches[start + 1], *batches[start + 2 :]]


class KeyedRows(Dataset):
    """Data set of (prefix-cache key, row) items; the anchor's rows follow the `task_rows` rows of the task."""

    def __init__(self, rows: Sequence[Encoded], anchor: Anchor | None = None):
        anchor = anchor if anchor is not None and anchor.settings.weight > 0 else None
        self.anchor, self.task_rows = anchor, len(rows)
        self.rows = [*rows, *(anchor.rows if anchor is not None else ())]
        self.keys = row_keys(row.input_ids[:-1] for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[bytes, Encoded]:
        return self.keys[index], self.rows[index]


@dataclass
class TrainingCollator:
    """Turns rows into the tensors of a step; see `__call__`.

    Attributes:
        packed: store each distinct token of rows that begin alike once (data.packing).
        cache: the prefix cache to read from.
    """

    pad_token_id: int
    packed: bool
    cache: PrefixCache | None = None

    def __call__(self, items: Sequence[tuple[bytes, Encoded]]) -> dict[str, Any]:
        """Collate (key, row) items into the tensors of a step.

        Returns:
            input_ids, attention_mask and, if packed, position_ids, rows and owners, as the model takes them, and
            predictors: int64 [N], positions in the flattened [batch, tokens] that predict the response tokens;
            labels: int64 [1, N + 1], the response tokens after one -100, so that Trainer counts N of them;
            anchor_predictors, anchor_targets, anchor_ids, anchor_log_p: if there are anchor rows, their positions and
                response tokens likewise, and the base's top-k tokens and log-probabilities there;
            reference_predictors, ...: the same of the tokens of the task's rows that are held to the base. In packed
                rows a position that several rows share occurs once for each of them, as in padded rows;
            placed: the positions of each row's tokens for the prefix cache, without the last, which predicts nothing;
            states: the cached prefix, still being read, if there is a cache.
        """
        keys, rows = zip(*items, strict=True)
        batch, places = self._packed(rows) if self.packed else self._padded(rows)
        batch["placed"] = [PlacedRow(key, path) for key, path in zip(keys, places, strict=True)]
        pairs = list(zip(rows, places, strict=True))
        task = [(row, path) for row, path in pairs if not row.of_anchor]
        predictors, targets = _predictors(task)
        learnt = torch.cat([_learnt(row) for row, _ in task])
        batch["predictors"] = predictors[learnt]
        batch["labels"] = torch.nn.functional.pad(targets[learnt], (1, 0), value=IGNORED_LABEL)[None]
        batch |= of_base("anchor", [(row, path) for row, path in pairs if row.of_anchor])
        held = [(getattr(row, "held", None), path) for row, path in task]
        batch |= of_base("reference", [(row, path) for row, path in held if row is not None])
        # Start the disk read as early as the rows are known, so that it overlaps with earlier steps. The batch carries
        # its future, which a data-loader worker process could not send.
        if self.cache is not None and get_worker_info() is None:
            batch["states"] = self.cache.request(batch["placed"], tuple(batch["input_ids"].shape))
        return batch

    def _padded(self, rows: Sequence[Encoded]) -> tuple[dict[str, Any], list[torch.Tensor]]:
        """Return the model's inputs, and for each row the positions of its tokens without the last."""
        batch = pad_rows(rows, self.pad_token_id)
        places = padded_places(rows, batch["input_ids"].shape[1])
        return batch, [torch.arange(path.start, path.stop) for path in places]

    def _packed(self, rows: Sequence[Encoded]) -> tuple[dict[str, Any], list[torch.Tensor]]:
        pack = pack_rows(rows)
        paths = {index: torch.tensor(pack.path(places[-1])) for index, places, _ in pack.rows}
        return collate_trie(pack), [paths[index] for index in range(len(rows))]


def _predictors(rows: Sequence[tuple[Encoded, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions that predict the rows' responses, and the response tokens, both int64 [N]."""
    found = [row_predictors(row, path) for row, path in rows]
    return (torch.cat([positions for positions, _ in found]),
            torch.tensor([token for _, response in found for token in response], dtype=torch.long))


def _learnt(row: Encoded) -> torch.Tensor:
    """Return which of the row's response tokens have a loss, bool [N]."""
    learnt = getattr(row, "learnt", None)
    return learnt if learnt is not None else torch.ones(len(row.input_ids) - max(row.response_start, 1), dtype=bool)


def of_base(name: str, rows: Sequence[tuple[BaseRow, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the positions and tokens of rows with the base's distributions there, under names that begin with `name`.

    Args:
        rows: each with the positions of its tokens in the flattened batch; {} is returned if there are none.

    Returns:
        predictors and targets int64 [N], ids int32 [N, k], log_p float32 [N, k].
    """
    if not rows:
        return {}
    predictors, targets = _predictors(rows)
    return {f"{name}_predictors": predictors, f"{name}_targets": targets,
            f"{name}_ids": torch.cat([row.ids for row, _ in rows]),
            f"{name}_log_p": torch.cat([row.log_p for row, _ in rows])}


def packing_gain(rows: Sequence[Encoded], batches: Sequence[Sequence[int]]) -> float:
    """Return the factor by which packing saves tokens.

    It is the number of tokens in padded batches of similar length divided by the number of distinct tokens in the given
    batches.
    """
    lengths = [len(row.input_ids) for row in rows]
    size = max(map(len, batches))
    padded = sum(len(batch) * max(lengths[index] for index in batch)
                 for batch in plan_batches(lengths, max_tokens=None, batch_size=size))
    packed = sum(len(pack_rows([rows[index] for index in batch]).ids) for batch in batches)
    return padded / packed


def evaluation_batches(rows: KeyedRows, args: TrainingArguments) -> FixedBatches:
    """Plan batches of per_device_eval_batch_size rows in the order of the data."""
    return FixedBatches([len(row.input_ids) for row in rows.rows], args.eval_batch_size, args.seed, by_length=False,
                        shuffle=False, **_ranks(args))


def _ranks(args: TrainingArguments) -> dict[str, int]:
    return {"rank": args.process_index, "ranks": args.world_size}


def run_batches(
    model: nn.Module, data: KeyedRows, evaluated: KeyedRows | None, args: TrainingArguments, packing: str
) -> tuple[FixedBatches, FixedBatches | None, bool]:
    """Plan the batches of a run.

    It is collective: all ranks call it.

    Args:
        packing: "on", "off", or "auto", which packs where that saves a tenth of the tokens.

    Returns:
        The training batches, the evaluation batches or None, and whether rows are packed.

    Raises:
        CofituneError: packing is "on", but this model's attention does not allow it.
    """
    lengths = [len(row.input_ids) for row in data.rows]
    tasks = data.task_rows
    anchored = {"anchor": range(tasks, len(lengths)), "anchor_rows": data.anchor.settings.rows} if data.anchor else {}
    shuffle = getattr(args, "train_sampling_strategy", "random") != "sequential"
    seed = args.seed if args.data_seed is None else args.data_seed
    longest = max(*lengths, *(len(row.input_ids) for row in (evaluated.rows if evaluated is not None else ())), 0)
    for_evaluation = evaluation_batches(evaluated, args) if evaluated is not None else None

    def batches(by_length: bool) -> FixedBatches:
        return FixedBatches(lengths[:tasks], args.train_batch_size, seed, by_length=by_length, shuffle=shuffle,
                            drop_last=args.dataloader_drop_last, **_ranks(args), **anchored)

    if args.neftune_noise_alpha:  # rows that share tokens would share their noise
        if packing == "on":
            raise CofituneError("training.neftune_noise_alpha adds noise to each row of its own, and memory.packing is "
                                "on, where rows share tokens; set memory.packing to auto.")
        packing = "off"
    possible = packing != "off" and takes_tries(model, longest)
    if packing == "on" and not possible:
        reason = trie_ability(model).why_not or (f"the longest row has {longest} tokens, and its attention sees "
                                                 f"{longest_row(model)} at once")
        raise CofituneError(f"memory.packing is on, which this model does not allow: {reason}; set it to auto.")
    at_random = batches(by_length=False)
    if packing == "on" or (packing == "auto" and possible
                           and all_ranks(packing_gain(data.rows, at_random.batches) >= 1.1)):
        return at_random, for_evaluation, True
    return batches(by_length=True), for_evaluation, False
