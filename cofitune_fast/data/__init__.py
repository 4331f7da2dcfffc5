"""Training and scoring data: files in the forms of the field, their token ids, and padded batches."""

from .batches import IGNORED_LABEL, batches, collate, plan_batches
from .encode import Encoded, EncodedExamples, encode_example, encode_examples, encode_prompt, pad_token_id
from .formats import Example, parse_examples, read_examples
from .rows import Row, read_rows

__all__ = [
    "IGNORED_LABEL",
    "Encoded",
    "EncodedExamples",
    "Example",
    "Row",
    "batches",
    "collate",
    "encode_example",
    "encode_examples",
    "encode_prompt",
    "pad_token_id",
    "parse_examples",
    "plan_batches",
    "read_examples",
    "read_rows",
]
