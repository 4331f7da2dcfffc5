"""Training and scoring data: files in the forms of the field, their token ids, and padded batches."""

from .batches import IGNORED_LABEL, batches, collate, plan_batches
from .encode import Encoded, EncodedExamples, encode_example, encode_examples, encode_prompt, pad_token_id
from .formats import Example, parse_examples, read_examples
from .packing import Pack, collate_trie, pack_rows, plan_packs
from .rows import Row, read_rows

__all__ = [
    "IGNORED_LABEL",
    "Encoded",
    "EncodedExamples",
    "Example",
    "Pack",
    "Row",
    "batches",
    "collate",
    "collate_trie",
    "encode_example",
    "encode_examples",
    "encode_prompt",
    "pack_rows",
    "pad_token_id",
    "parse_examples",
    "plan_batches",
    "plan_packs",
    "read_examples",
    "read_rows",
]
