"""Every form in which people hold labels, and what becomes of it."""

import collections
import datetime
import decimal
import enum
import math
import warnings

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow
import pytest
import scipy.sparse
import torch
from conftest import Colour, Level, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.multiclass import type_of_target

from ptune import PtuneError
from ptune.labels import (
    MULTI,
    REGRESSION,
    SINGLE,
    Labels,
    labels_from_json,
    labels_to_json,
    majority,
    read,
)


class Side(enum.Flag):
    LEFT = 1
    RIGHT = 2


def learned(y, problem_type=None):
    return Labels.learn(y, problem_type)


def reloaded(labels):
    return labels_from_json(labels_to_json(labels), "ptune.json")


# Several labels per text.

SPARSE = [
    getattr(scipy.sparse, f"{form}_{kind}")
    for form in ("csr", "csc", "coo", "lil", "dok", "bsr", "dia")
    for kind in ("matrix", "array")
]
MATRIX = [[1, 0, 1], [0, 0, 0], [0, 1, 1]]


@pytest.mark.parametrize(
    "hold",
    [
        list,
        np.array,
        lambda m: np.array(m, dtype=bool),
        lambda m: np.array(m, dtype=float),
        lambda m: [tuple(row) for row in m],
        lambda m: [np.array(row) for row in m],
        *SPARSE,
        lambda m: pyarrow.array(m),
        lambda m: np.array(m, dtype=object),
        lambda m: np.array(m, dtype=np.uint8),
        np.matrix,
        np.ma.array,
        pd.DataFrame,
        lambda m: pd.Series(m),
        torch.tensor,
        lambda m: torch.tensor(m).to_sparse(),
        lambda m: torch.tensor(m, dtype=torch.bfloat16),
        lambda m: [torch.tensor(row) for row in m],
        lambda m: [pd.Series(row) for row in m],
        lambda m: pl.Series(m),
        lambda m: (row for row in m),
        lambda m: datasets.Dataset.from_dict({"labels": m})["labels"],
    ],
)
def test_a_matrix_of_zeros_and_ones_has_a_label_for_each_column(hold):
    labels = learned(hold(MATRIX))
    assert labels.is_multi
    assert labels.classes.tolist() == [0, 1, 2]
    assert labels.encode(hold(MATRIX)) == MATRIX


def test_columns_of_a_data_frame_name_the_labels_in_any_order():
    frame = pd.DataFrame(MATRIX, columns=["late", "broken", "rude"])
    labels = learned(frame)
    assert labels.names == ("late", "broken", "rude")
    assert labels.encode(frame[["rude", "late", "broken"]]) == MATRIX
    with pytest.raises(PtuneError, match="a column for each of the labels late, broken, rude"):
        labels.encode(frame[["rude", "late"]])


TABLE = {"late": [1, 0, 0], "broken": [0, 0, 1], "rude": [1, 0, 1]}


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame(TABLE, dtype="boolean"),
        pd.DataFrame(TABLE, dtype="Int8"),
        pd.DataFrame.sparse.from_spmatrix(scipy.sparse.csr_matrix(MATRIX), columns=list(TABLE)),
        pl.DataFrame(TABLE),
        pyarrow.table(TABLE),
        pyarrow.record_batch(TABLE),
        datasets.Dataset.from_dict(TABLE),
    ],
    ids=lambda table: type(table).__module__,
)
def test_columns_of_every_kind_of_table_name_the_labels(table):
    labels = learned(table)
    assert labels.names == ("late", "broken", "rude")
    assert labels.encode(table) == MATRIX


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": [0, 1]}),
        pd.DataFrame({"a": pd.array([True, None], dtype="boolean"), "b": [False, True]}),
        pl.DataFrame({"a": [True, None], "b": [False, True]}),
        pyarrow.table({"a": [1, None], "b": [0, 1]}),
        np.ma.array([[1, 0], [0, 1]], mask=[[0, 0], [1, 0]]),
    ],
    ids=lambda table: type(table).__module__,
)
def test_a_cell_that_a_table_lacks_is_unknown(table):
    np.testing.assert_array_equal(learned(table).encode(table), [[1, 0], [np.nan, 1]])


@pytest.mark.parametrize(
    "container",
    [
        list,
        tuple,
        set,
        frozenset,
        np.array,
        pd.Series,
        pd.Index,
        pl.Series,
        collections.deque,
        lambda names: dict.fromkeys(names).keys(),
    ],
)
def test_containers_of_names_are_several_labels(container):
    y = [container(v) for v in (["late", "rude"], ["late"], ["broken"])]
    labels = learned(y)
    assert labels.is_multi
    assert labels.names == ("broken", "late", "rude")
    assert labels.encode(y) == [[0, 1, 1], [0, 1, 0], [1, 0, 0]]


def test_an_empty_list_is_no_label_and_lists_may_hold_numbers():
    labels = learned([[3, 5], [], [5]])
    assert labels.classes.tolist() == [3, 5]
    assert labels.encode([[3, 5], [], [5]]) == [[1, 1], [0, 0], [0, 1]]


@pytest.mark.parametrize("unknown", [np.nan, None, pd.NA])
def test_a_cell_without_a_value_is_unknown_and_counts_neither_way(unknown):
    y = [[1, 0], [unknown, 1], [0, 1]]
    labels = learned(y)
    targets, _ = labels.targets(y)
    assert np.isnan(targets).tolist() == [[False] * 2, [True, False], [False] * 2]
    right = np.array([[1, 0], [0, 1], [0, 1]])
    wrong = np.array([[1, 0], [1, 1], [0, 1]])
    for predictions in (right, wrong):
        scores = labels.scores(labels.metrics, targets, predictions)
        assert scores == {"accuracy": 1.0, "f1_micro": 1.0, "f1_macro": 1.0}


def test_an_unknown_cell_has_no_loss():
    torch = pytest.importorskip("torch")
    labels = learned([[1, 0], [0, 1]])
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.25]])
    targets = torch.tensor([[1.0, 0.0], [math.nan, 1.0]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), reduction="none"
    )
    expected[1, 0] = 0
    torch.testing.assert_close(labels.losses(logits, targets), expected)


@pytest.mark.parametrize("wrong", [2, -1, 0.5, "x"])
def test_a_matrix_of_other_numbers_is_refused_with_row_and_column(wrong):
    frame = pd.DataFrame({"late": [1, 0, wrong], "rude": [0, 1, 1]})
    with pytest.raises(PtuneError, match=r"only 0 and 1.*'late'.*position 2 \(counting from 0\)"):
        learned(frame)


# One label per text.


def test_a_column_vector_is_flattened_with_scikit_learns_warning():
    for y in (np.array([["a"], ["b"]]), pd.DataFrame({"label": ["a", "b"]}), [["a"], ["b"]]):
        with pytest.warns(DataConversionWarning) if not isinstance(y, list) else warnings_off():
            labels = learned(y, SINGLE)
        assert labels.names == ("a", "b")


def warnings_off():
    return warnings.catch_warnings()


VALUES = {
    "text": ["b", "a", "c"],
    "numbers as text": ["1.1", "1.10", "1.2", "007", "7"],
    "integers": [3, 7, -1, 10],
    "large integers": [2**70, 1],
    "booleans": [True, False],
    "whole floats": [1.0, 2.0],
    "enum": [Colour.BLUE, Colour.RED],
    "integer enum": [Level.HIGH, Level.LOW],
    "mixed": [3, "b", True],
    "int8": list(np.array([3, 7], dtype=np.int8)),
    "uint64": list(np.array([3, 2**63], dtype=np.uint64)),
    "float32": list(np.array([3, 7], dtype=np.float32)),
    "numpy text": list(np.array(["x", "y"])),
    "numpy booleans": list(np.array([True, False])),
    "objects": list(np.array(["x", "y"], dtype=object)),
    "flags": [Side.RIGHT, Side.LEFT],
    "ends of strings in C": ["a\0", "a"],
    "separators": ["a|b", "a,b", "a\nb"],
    "emoji": ["😀", "😢"],
}


@pytest.mark.parametrize("y", VALUES.values(), ids=VALUES)
def test_values_and_their_type_come_back_after_saving(y):
    labels = learned(y)
    again = reloaded(labels)
    assert again == labels
    assert again.classes.dtype == labels.classes.dtype
    assert {(type(v), v) for v in again.values} == {
        (type(v), v) for v in (v.item() if isinstance(v, np.generic) else v for v in y)
    }
    assert again.encode(y) == [again.values.index(v) for v in y]
    logits = np.eye(len(again))[again.encode(y)]
    decoded = again.decode(logits)
    assert decoded.tolist() == list(y)
    assert [p.label for p in again.predictions(logits)] == list(y)


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint16", "float32", "bool", "int64"])
@pytest.mark.parametrize("container", [np.array, pd.Series])
def test_an_arrays_type_is_kept(container, dtype):
    y = container([1, 0, 1], dtype=dtype)
    assert reloaded(learned(y)).classes.dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    "y",
    [
        pd.Series(["b", "a"], dtype="category"),
        pd.Categorical(["b", "a"], categories=["a", "b", "never"]),
        pd.Series(["b", "a"], dtype="string"),
        pyarrow.array(["b", "a"]),
        pyarrow.chunked_array([["b"], ["a"]]),
        (v for v in ("b", "a")),
        pd.Index(["b", "a"]),
        pyarrow.array(["b", "a"]).dictionary_encode(),
        np.array(["b", "a"], dtype=np.dtypes.StringDType()),
        pd.Series(["b", "a"], dtype="string[pyarrow]"),
        pd.Series(["b", "a"], index=pd.MultiIndex.from_tuples([(1, 2), (3, 4)])),
        pd.Series(pd.Categorical(["b", "a"], categories=["b", "a", "never"], ordered=True)),
        pd.cut([9, 1], 2, labels=["a", "b"]),
        pl.Series(["b", "a"]),
        pl.Series(["b", "a"], dtype=pl.Categorical),
        pl.Series(["b", "a"], dtype=pl.Enum(["b", "a", "never"])),
        datasets.Dataset.from_dict({"label": ["b", "a"]})["label"],
        collections.deque(["b", "a"]),
        {1: "b", 2: "a"}.values(),
    ],
    ids=lambda y: type(y).__name__,
)
def test_columns_of_every_library_hold_names(y):
    assert learned(y).names == ("a", "b")


@pytest.mark.parametrize(
    ("y", "dtype"),
    [
        (pd.Series([3, 7], dtype="Int8"), np.int8),
        (pd.Series([3, 7], dtype="category"), np.int64),
        (pd.Series([True, False], dtype="boolean"), np.bool_),
        (pd.Series([True, False], dtype="bool[pyarrow]"), np.bool_),
        (pl.Series([3, 7], dtype=pl.Int16), np.int16),
        (pyarrow.array([3, 7], pyarrow.uint8()), np.uint8),
        (pyarrow.chunked_array([[3.0], [7.0]], pyarrow.float32()), np.float32),
        (torch.tensor([3, 7], dtype=torch.int32), np.int32),
        (torch.tensor([3, 7], dtype=torch.bfloat16), np.float32),
        ([torch.tensor(3), torch.tensor(7)], np.int64),
        (np.array([3, 7], dtype=np.longdouble), np.float64),
        (np.ma.array([3, 7], dtype=np.int8), np.int8),
    ],
    ids=str,
)
def test_a_columns_type_is_kept(y, dtype):
    labels = reloaded(learned(y))
    assert labels.classes.dtype == dtype
    assert [labels.values[i] for i in labels.encode(y)] in ([3, 7], [True, False])


def test_numbers_with_a_fraction_are_names_if_the_user_says_so():
    y = np.array([0.1, 0.7, 0.1], dtype=np.float32)
    labels = reloaded(learned(y, SINGLE))
    assert labels.names == ("0.1", "0.7")
    assert labels.encode(y) == [0, 1, 0]
    assert labels.classes.dtype == np.float32


def test_minus_zero_is_zero():
    assert learned([-0.0, 0.0, 1.0]).names == ("0.0", "1.0")


def test_nullable_integers_are_integers():
    labels = learned(pd.Series([3, 7, 3], dtype="Int64"))
    assert labels.classes.tolist() == [3, 7]
    assert labels.classes.dtype == np.int64


scalars = st.one_of(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)),
    st.lists(st.integers(-(2**62), 2**62)),
    st.lists(st.booleans()),
    st.lists(st.floats(-1e9, 1e9).map(round).map(float)),
    st.lists(st.sampled_from(Level)),
)


@settings(max_examples=200, deadline=None)
@given(scalars.filter(lambda y: len(set(y)) > 1))
@pytest.mark.filterwarnings("ignore:Some labels differ only")
def test_any_labels_come_back_equal_and_of_their_type(y):
    labels = reloaded(learned(y))
    decoded = labels.decode(np.eye(len(labels))[labels.encode(y)])
    assert decoded.tolist() == y
    assert [type(v) for v in decoded.tolist()] == [type(v) for v in y]
    if isinstance(y[0], bool | int | float | str) and not isinstance(y[0], enum.Enum):
        assert labels.classes.tolist() == sorted(set(y))


def test_an_enum_class_that_is_not_imported_gives_names_and_imports_nothing():
    stored = {
        "labels": ["RED", "BLUE"],
        "problem_type": SINGLE,
        "label_type": "enum:antigravity:Colour",
    }
    labels = labels_from_json(stored, "ptune.json")
    assert labels.values == ["RED", "BLUE"]
    assert labels_to_json(labels) == stored
    assert "antigravity" not in __import__("sys").modules


@pytest.mark.parametrize(
    ("labels", "label_type"),
    [
        (["a", "b"], "int64"),
        (["1", "300"], "int8"),
        (["1", "2"], "object"),
        (["1", "2"], 5),
        (["1", "2"], ["int64"]),
        (["1", "nan"], "float64"),
        (["1", "2"], {"a": 1}),
        (["1", "2"], "enum:os:system; import os"),
        (["yes", "no"], "bool"),
    ],
)
def test_a_damaged_type_is_refused_by_name(labels, label_type):
    with pytest.raises(PtuneError, match=r"ptune\.json is damaged: label_type is"):
        labels_from_json({"labels": labels, "label_type": label_type}, "ptune.json")


@pytest.mark.parametrize("labels", [[], "ab", ["a", 3], {"a": 1}, [None]])
def test_damaged_labels_are_refused_by_name(labels):
    with pytest.raises(PtuneError, match=r"ptune\.json is damaged: labels is .*list of strings"):
        labels_from_json({"labels": labels}, "ptune.json")


@pytest.mark.parametrize(
    ("labels", "label_type", "twice"),
    [(["a", "b", "a"], "str", "a"), (["1", "1.0"], "float64", "1.0")],
)
def test_a_label_that_is_there_twice_is_refused(labels, label_type, twice):
    with refused(
        f"ptune.json has the label '{twice}' twice. Give each label its own name. To make one "
        "label of several, use `ptune merge-labels`."
    ):
        labels_from_json({"labels": labels, "label_type": label_type}, "ptune.json")


# What is not a label.


@pytest.mark.parametrize("missing", [None, math.nan, np.nan, pd.NA, pd.NaT, "", "  \t"])
def test_missing_labels_are_counted_with_their_positions(missing):
    y = ["red", "blue"] * 4 + [missing, "red", missing]
    with pytest.raises(PtuneError) as caught:
        learned(y)
    assert str(caught.value) == (
        "2 of 11 labels are missing (the labels), at position 8, 10 (counting from 0). Fill them "
        "in or leave those examples out."
    )


def test_a_missing_label_inside_a_list_is_missing():
    with pytest.raises(PtuneError, match=r"1 of 3 labels .* position 2"):
        learned([["a"], ["b"], ["a", None]])
    with pytest.raises(PtuneError, match=r"1 of 3 labels .* position 1"):
        learned([["a"], None, ["b"]])


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ("abc", "one label per example, and the labels are of type str"),
        ({"a": 1}, "of type dict"),
        (3, "of type int"),
        (None, "of type NoneType"),
        ([b"a", b"b"], "'b'a'' is of type bytes|of type bytes"),
        ([{"a": 1}, {"b": 2}], "Write the names of the labels that are 1"),
        ([1.0, math.inf], "The label inf is not a finite number"),
        (["a", "\ud800"], "not valid Unicode"),
        ([3, "3"], "Two labels of different types are both written '3'"),
        (["a", 1, True], "The labels 1 and True are equal in Python"),
        (["a", "a"], "Every example has the label 'a'"),
        ([], "No example has a label"),
        ([[], []], "No example has a label"),
        ([["a"], []], "Every example has the label 'a' or none"),
        ({"a", "b"}, "of type set"),
        (np.zeros((2, 2, 2)), "of type ndarray with 3 dimensions"),
        (np.array("a"), "of type ndarray with 0 dimensions"),
        (list, "of type type"),
        (pl.LazyFrame({"y": ["a"]}), "of type LazyFrame"),
        ([b"a", b"b"], r"with \.decode\(\)"),
        ([decimal.Decimal("1.5"), decimal.Decimal(2)], r"with float\(\)"),
        ([datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)], r"'2020-01-01' is of type date"),
        (np.array(["2020", "2021"], dtype="datetime64[Y]"), "is of type datetime64"),
        (pd.Series(pd.to_timedelta([1, 2])), "is of type Timedelta"),
        ([1j, 2j], "is of type complex"),
        ([[0.7, 0.3], [0, 1]], r"Found \[0.7, 0.3\].* with the shares as sample_weight"),
        ([{"a": 0.7, "b": 0.3}, "a"], r"Found \{'a': 0.7, .* with the shares as sample_weight"),
        ([{"a": 1, "b": 0}, {"a": 0, "b": 1}], "Write the names of the labels that are 1"),
        ([{"name": "a"}, {"name": "b"}], "Write only the name, or a list of names"),
        ([[0.5], [1.5]], r"Found \[0.5\].*Numbers to predict are not in lists"),
        ([Side.LEFT, Side.LEFT | Side.RIGHT], "combines members of Side .* position 1 "),
        ([["0", "1"], ["1", "1"]], "hold the strings '0' and '1'"),
        ([[1, 0], [1, 0, 1]], "rows of 0 and 1 in the labels have from 2 to 3 values"),
        (np.array(MATRIX).astype(str), "hold the strings '0' and '1'"),
        ([[["a"]], [["b"]]], "of type list"),
        (pd.DataFrame(MATRIX, columns=["a", "a", "b"]), "Two columns of the labels are named 'a'"),
        (pd.DataFrame(MATRIX, columns=["a", None, "b"]), "The label nan .*name of a column"),
        (pd.DataFrame(index=range(3)), "The table of the labels has no columns"),
        (pd.DataFrame({("u", "a"): [1, 0], ("u", "b"): [0, 1]}), "is of type tuple"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), "Found 'x' in column 'a' of the labels"),
        (list(range(300)), "300 different labels in 300 examples"),
    ],
)
def test_what_cannot_be_labels_is_refused(y, message):
    with pytest.raises(PtuneError, match=message):
        learned(y)


# Problem types.


@pytest.mark.parametrize(
    ("y", "problem_type"),
    [
        ([0.5, 1.5, 2.0], REGRESSION),
        ([1.0, 2.0, 3.0], SINGLE),
        ([1, 2, 3], SINGLE),
        (["1.5", "2.5"], SINGLE),
        ([True, False], SINGLE),
        ([["a"], ["b", "c"]], MULTI),
        (np.array([[1, 0], [0, 1]]), MULTI),
    ],
)
def test_the_problem_type_is_what_scikit_learn_would_choose(y, problem_type):
    assert learned(y).problem_type == problem_type
    if not isinstance(y[0], list):
        known = {"continuous": REGRESSION, "multilabel-indicator": MULTI}
        assert known.get(type_of_target(y), SINGLE) == problem_type


@pytest.mark.parametrize(
    ("y", "problem_type", "targets"),
    [
        ([1, 2, 1], REGRESSION, [1.0, 2.0, 1.0]),
        (["1.5", "2"], REGRESSION, [1.5, 2.0]),
        ([0.5, 1.5, 0.5], SINGLE, [0, 1, 0]),
        (["a", "b"], MULTI, [[1, 0], [0, 1]]),
        ([["a"], ["b"]], SINGLE, [0, 1]),
        ([[1, 0], [0, 1]], SINGLE, [0, 1]),
    ],
)
def test_a_problem_type_that_is_given_decides(y, problem_type, targets):
    labels = learned(y, problem_type)
    assert labels.problem_type == problem_type
    assert labels.encode(y) == targets


@pytest.mark.parametrize(
    ("y", "problem_type", "message"),
    [
        ([["a"], ["a", "b"]], SINGLE, "needs one label per text.*position 1"),
        ([[1, 0], [1, 1]], SINGLE, "needs one label per text.*position 1"),
        ([["a"], ["b"]], REGRESSION, "needs one label per text"),
        (["a", "b"], REGRESSION, "A regression needs numbers.*'a' at position 0"),
        (["0.5", "-0,5"], REGRESSION, r"'-0,5' at position 1 .*\. Write a point for the comma\.$"),
        (["a", "b"], "classification", "problem_type is 'classification'"),
    ],
)
def test_a_problem_type_that_does_not_fit_is_refused(y, problem_type, message):
    with pytest.raises(PtuneError, match=message):
        learned(y, problem_type)


# Names that look alike.


@pytest.mark.parametrize(
    "alike",
    [("True", "true"), (" a", "a"), ("caf\u00e9", "cafe\u0301"), ("New York", "new  york")],
)
def test_labels_that_look_alike_stay_apart_and_are_reported(alike):
    y = [*alike, "other"]
    with pytest.warns(UserWarning, match="differ only in case, white space or Unicode form") as w:
        labels = learned(y)
    assert len(labels) == 3
    assert all(repr(name) in str(w[0].message) for name in alike)


@pytest.mark.parametrize("y", [["1.1", "1.10", "1.2"], ["100", "1e2", "0100"], ["1", "01", "1.0"]])
def test_names_that_look_like_numbers_never_merge(y):
    assert learned(y).names == tuple(sorted(y))


# Labels of another form than in training.


@pytest.mark.parametrize(
    ("trained", "other"),
    [
        ([0, 1], ["0", "1"]),
        ([0, 1], [0.0, 1.0]),
        ([0, 1], [False, True]),
        (["0", "1"], [0, 1]),
        ([True, False], ["True", "false"]),
        ([True, False], [1, 0]),
        ([1.0, 2.0], ["1", "2.0"]),
        (["1.0", "2.0"], [1.0, 2.0]),
        ([Colour.RED, Colour.BLUE], ["RED", "BLUE"]),
        (["RED", "BLUE"], [Colour.RED, Colour.BLUE]),
        ([Level.LOW, Level.HIGH], [1, 10]),
    ],
)
def test_labels_are_recognised_in_another_type(trained, other):
    labels = learned(trained)
    assert labels.encode(other) == labels.encode(trained)


def test_text_labels_are_not_compared_as_numbers():
    labels = learned(["1.1", "1.2"])
    with pytest.raises(PtuneError, match=r"'1\.10' occurs 1 time"):
        labels.encode(["1.10"])


def test_unseen_labels_count_as_errors():
    labels = learned(["a", "b"])
    targets, unseen = labels.targets(["a", "b", "green", "green"])
    assert unseen == {"green": 2}
    scores = labels.scores(labels.metrics, targets, np.array([0, 1, 0, 1]))
    assert scores["accuracy"] == 0.5
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_an_unseen_label_among_several_is_never_right():
    labels = learned([["a"], ["b"]])
    targets, unseen = labels.targets([["a", "green"], ["b"]])
    assert unseen == {"green": 1}
    assert labels.scores(["accuracy"], targets, np.array([[1, 0], [0, 1]])) == {"accuracy": 0.5}


def test_the_score_of_a_regression_is_r_squared():
    labels = learned([0.5, 1.5, 4.0])
    score = labels.score([0.5, 1.5, 4.0], np.array([[1.0], [1.0], [3.0]]))
    assert score == pytest.approx(1 - (0.25 + 0.25 + 1.0) / (2.25 + 0.25 + 4.0))


def test_a_matrix_without_names_has_a_column_for_each_label():
    """Also if each text has one label, whatever the labels are."""
    labels = Labels.learn(["yes", "no", "maybe"])
    assert labels.names == ("maybe", "no", "yes")
    assert labels.encode(np.eye(3)[[2, 0, 1, 1]]) == [2, 0, 1, 1]
    numbers = Labels.learn([10, 20, 30])
    assert numbers.encode([[0, 0, 1], [1, 0, 0]]) == [2, 0]
    with refused(
        "Expected a column for each of the labels maybe, no, yes; the labels have 2 columns "
        "without names."
    ):
        labels.encode(np.eye(2))


def test_sample_weights_count_in_the_score():
    labels = learned(["a", "b"])
    logits = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert labels.score(["a", "b"], logits, sample_weight=[3, 1]) == 0.75


def test_the_majority_of_equally_frequent_labels_is_the_first():
    assert majority([1, 0, 0, 1]) == (0, True)
    assert majority([1, 0, 1]) == (1, False)


@pytest.mark.parametrize("y", [[3, 7], [True, False], [1.0, 2.0], [Colour.RED, Colour.BLUE]])
def test_files_and_servers_get_names(y):
    labels = learned(y)
    (prediction,) = labels.predictions(np.array([[0.0, 3.0]]))
    named = labels.by_name(prediction)
    assert named.label == labels.names[1]
    assert tuple(named.probabilities) == labels.names
    several = learned([{v} for v in y], MULTI)
    (prediction,) = several.predictions(np.array([[-1.0, 3.0]]))
    assert several.by_name(prediction).label == [several.names[1]]


def test_reading_twice_is_reading_once():
    column = read(["a", "b"])
    assert read(column) is column
