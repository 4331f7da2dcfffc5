"""Training and scoring data: data files in the usual formats, token ids, and padded or packed batches."""

from .batches import batches, collate, pad_rows, plan_batches
from .encode import Encoded, EncodedExamples, encode_example, encode_examples, encode_prompt, pad_token_id
from .faults import Faults, RowFault
from .formats import Example, Examples, parse_examples, read_examples
from .packing import Pack, collate_trie, pack_rows, plan_packs
from .predictors import IGNORED_LABEL, label_predictors, padded_places, row_predictors
from .row import Row
from .rows import read_rows

__all__ = [
    "IGNORED_LABEL",
    "Encoded",
    "EncodedExamples",
    "Example",
    "Examples",
    "Faults",
    "Pack",
    "Row",
    "RowFault",
    "batches",
    "collate",
    "collate_trie",
    "encode_example",
    "encode_examples",
    "encode_prompt",
    "label_predictors",
    "pack_rows",
    "pad_rows",
    "pad_token_id",
    "padded_places",
    "parse_examples",
    "plan_batches",
    "plan_packs",
    "read_examples",
    "read_rows",
    "row_predictors",
]
