"""Labels: what a classifier can answer, and everything that depends on the kind of answer.

`Labels` is the only place that knows the three problem types. `read` accepts every form in which
people hold labels.
"""

from ptune.labels.columns import (
    LABEL_NAMES,
    MULTI,
    PROBLEM_TYPES,
    REGRESSION,
    SINGLE,
    LabelColumn,
    annotated,
    as_iterable,
    as_numbers,
    columns_of,
    indicators,
    is_container,
    is_missing,
    is_unicode,
    read,
    values_of,
    weights_of,
)
from ptune.labels.labels import (
    NO_LABEL,
    Labels,
    Prediction,
    comparable,
    known_names,
    leaves_out,
)
from ptune.labels.metrics import METRICS, compute, confusion, majority, mean_and_std, per_label
from ptune.labels.stored import labels_from_json, labels_to_json
from ptune.labels.values import in_words

__all__ = [
    "LABEL_NAMES",
    "METRICS",
    "MULTI",
    "NO_LABEL",
    "PROBLEM_TYPES",
    "REGRESSION",
    "SINGLE",
    "LabelColumn",
    "Labels",
    "Prediction",
    "annotated",
    "as_iterable",
    "as_numbers",
    "columns_of",
    "comparable",
    "compute",
    "confusion",
    "in_words",
    "indicators",
    "is_container",
    "is_missing",
    "is_unicode",
    "known_names",
    "labels_from_json",
    "labels_to_json",
    "leaves_out",
    "majority",
    "mean_and_std",
    "per_label",
    "read",
    "values_of",
    "weights_of",
]
