"""Texts: what counts as one, how they become tokens, templates around them, and long ones."""

from ptune.texts.templates import VIRTUAL, Template, special_before
from ptune.texts.tokens import (
    PADDING,
    TOKENS_PER_TEXT,
    Encoded,
    batches,
    encode,
    lock_of,
    most_padding,
    padded,
    take,
)
from ptune.texts.values import Text, as_columns, as_rows, check, columns_of_texts, is_one, rows
from ptune.texts.windows import IN_WINDOWS, Reading, Weights, in_parts, pooled

__all__ = [
    "IN_WINDOWS",
    "PADDING",
    "TOKENS_PER_TEXT",
    "VIRTUAL",
    "Encoded",
    "Reading",
    "Template",
    "Text",
    "Weights",
    "as_columns",
    "as_rows",
    "batches",
    "check",
    "columns_of_texts",
    "encode",
    "in_parts",
    "is_one",
    "lock_of",
    "most_padding",
    "padded",
    "pooled",
    "rows",
    "special_before",
    "take",
]
