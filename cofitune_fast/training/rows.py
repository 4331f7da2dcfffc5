"""Rows of a user's data set as `Encoded` rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..anchor import TaskRow
from ..data import IGNORED_LABEL, Encoded, Example
from ..errors import CofituneError


def encoded_rows(rows: Any, name: str, vocabulary: int) -> list[Encoded]:
    """Return the rows of a data set, such as a list or a `datasets.Dataset`, as `Encoded` rows.

    A row is an `Encoded`, or a mapping with `input_ids` and `labels` of one length, as transformers takes them: a label
    is the token itself, or -100 where nothing is learnt. Where an `attention_mask` is 0 the row is padding, which is
    left out. Other columns are not looked at.

    Args:
        name: name of the data set in sentences.
        vocabulary: number of tokens that the model has.

    Raises:
        CofituneError: rows have no length, or a row is none of these; the sentence names the first such row.
    """
    if isinstance(rows, Mapping):
        raise CofituneError(f"{name} holds several data sets; give one, and measure the others by evaluate(rows, "
                            "metric_key_prefix=...).")
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__") or isinstance(rows, str):
        raise CofituneError(f"{name} is {type(rows).__name__}, but all rows are batched before training begins; give a "
                            "list of rows or a data set with a length.")
    if not len(rows):
        raise CofituneError(f"{name} is empty; give at least one row.")
    return [_encoded(rows[index], f"{name}[{index}]", vocabulary) for index in range(len(rows))]


def _encoded(row: Any, where: str, vocabulary: int) -> Encoded:
    if isinstance(row, Encoded):
        return row
    if isinstance(row, Example):
        raise CofituneError(f"{where} is an Example, which is text; encode the rows by cofitune_fast.encode_examples.")
    if not isinstance(row, Mapping) or not {"input_ids", "labels"} <= row.keys():
        has = f"has {', '.join(map(str, row)) or 'no keys'}" if isinstance(row, Mapping) else f"is {type(row).__name__}"
        raise CofituneError(f"{where} {has}, and a row needs input_ids and labels, which are -100 where nothing is "
                            "learnt; cofitune_fast.encode_examples makes rows from texts and messages.")
    ids, labels = _whole_numbers(row, "input_ids", where), _whole_numbers(row, "labels", where)
    present = _whole_numbers(row, "attention_mask", where) if row.get("attention_mask") is not None else [1] * len(ids)
    if not len(ids) == len(labels) == len(present):
        raise CofituneError(f"{where} has {len(ids)} input_ids, {len(labels)} labels and a mask of {len(present)}; "
                            "they must be of one length.")
    kept = [place for place, there in enumerate(present) if there]
    ids, labels = [ids[place] for place in kept], [labels[place] for place in kept]
    if row.get("position_ids") is not None:
        positions = _whole_numbers(row, "position_ids", where)
        if [positions[place] for place in kept] != list(range(len(kept))):
            raise CofituneError(f"{where} has position_ids that do not count from 0, as of several texts in one row; "
                                "give each text as a row of its own, which are packed by memory.packing.")
    if wrong := next((token for token in ids if not 0 <= token < vocabulary), None):
        raise CofituneError(f"{where} has the token {wrong}, and the model has tokens from 0 to {vocabulary - 1}; use "
                            "the model's own tokenizer.")
    learnt = [label != IGNORED_LABEL for label in labels]
    if any(here and label != token for here, label, token in zip(learnt, labels, ids, strict=True)):
        raise CofituneError(f"{where} has a label that is another token than its input_ids at that place; a label must "
                            "be the token itself, or -100 (they are shifted by the trainer).")
    if not any(learnt[1:]):
        raise CofituneError(f"{where} has only labels of -100, so that nothing can be learnt from it; leave it out.")
    start, stop = learnt.index(True), len(learnt) - learnt[::-1].index(True)
    response = learnt[max(start, 1) : stop]
    if all(response):
        return Encoded(ids[:stop], start, where)
    return TaskRow(ids[:stop], start, where, learnt=torch.tensor(response))


def _whole_numbers(row: Mapping[str, Any], key: str, where: str) -> list[int]:
    values = row[key]
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, Sequence) or not all(isinstance(value, int) for value in values):
        raise CofituneError(f"{where} has {key} that are no list of whole numbers; give one row without a batch "
                            "dimension.")
    return list(values)
