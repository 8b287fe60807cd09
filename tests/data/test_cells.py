"""Labels in the cells of files."""

import warnings

import numpy as np
import pytest
from conftest import refused

from ptune import PtuneError
from ptune.data.cells import indicator_columns, label_column, looks_continuous
from ptune.data.dataset import labelled_texts, load_files
from ptune.data.opening import Dialect
from ptune.data.tables import read_table
from ptune.labels import MULTI, Labels


def test_columns_of_zeros_and_ones_are_labels_and_empty_cells_are_unknown():
    column = indicator_columns(
        {"late": ["1", "0.0", "", None], "rude": ["False", "true", "1.0", 0]}, "a.csv"
    )
    labels = Labels.learn(column)
    assert labels.names == ("late", "rude")
    assert labels.is_multi
    unknown = np.nan
    np.testing.assert_array_equal(
        labels.encode(column), [[1, 0], [0, 1], [unknown, 1], [unknown, 0]]
    )


def test_another_value_among_zeros_and_ones_is_named():
    with refused(
        "A matrix of labels has a column for each label and holds only 0 and 1. Found 'often' in "
        "column 'late' of a.csv, at row 2 (counting from 1). Write 1 where a text has the label "
        "and 0 where it does not; an empty cell is unknown."
    ):
        indicator_columns({"late": ["1", "often"], "rude": ["0", "1"]}, "a.csv")


@pytest.mark.parametrize(
    ("cells", "continuous"),
    [
        ([str(i / 4) for i in range(30)], True),
        (["0.5", "1.5", "2.25"], True),
        (["1.1", "1.2", "2.0"] * 10, False),
        (["1.1", "1.10", "1.25"], False),
        (["1", "2", "3"], False),
        (["0.5", "high"], False),
    ],
)
def test_numbers_are_a_regression_only_if_they_look_continuous(cells, continuous):
    assert looks_continuous(cells) == continuous


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["red", "blue", "red|blue"], ("blue", "red")),
        (["red", "blue", "red | blue", ""], ("blue", "red")),
        (["red", "red|green", "blue"], ("blue", "green", "red")),
    ],
)
def test_cells_hold_several_labels_if_their_parts_stand_alone(cells, labels):
    column = label_column(cells, "a.csv")
    assert Labels.learn(column).names == labels
    assert Labels.learn(column).is_multi


@pytest.mark.parametrize("used", [",", ";", "/"])
def test_other_separators_are_reported_where_the_parts_stand_alone(used):
    joined = f"late{used}lost"
    message = f"'{joined}' contains '{used}'.*use --label-separator '{used}'"
    with pytest.warns(UserWarning, match=message):
        column = label_column(["late", "lost", joined], "column 'y'")
    assert Labels.learn(column).names == tuple(sorted(["late", "lost", joined]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        label_column([f"Paris{used}Texas", f"Rome{used}Georgia"], "column 'y'")


def test_a_separator_without_evidence_is_part_of_the_name_and_reported():
    with pytest.warns(UserWarning, match=r"'a\|b' contains '\|'.*--label-separator"):
        assert Labels.learn(label_column(["a|b", "c"], "a.csv")).names == ("a|b", "c")


def test_labels_on_separate_lines_of_a_cell_are_reported_and_can_be_read():
    cells = ["late", "late\nlost", "lost\nbroken"]
    with pytest.warns(UserWarning, match=r"'late\\nlost' contains '\\n'.*--label-separator '\\n'"):
        label_column(cells, "column 'y'")
    column = label_column(cells, "column 'y'", separator="\n")
    assert Labels.learn(column).names == ("broken", "late", "lost")


def test_a_separator_that_no_label_has_is_reported_if_another_one_is_likely():
    with pytest.warns(UserWarning, match=r"No label contains ';', and 'a\|b' contains '\|'"):
        label_column(["a", "b", "a|b"], "column 'y'", separator=";")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        label_column(["a", "b", "c/d"], "column 'y'", separator=";")
        label_column(["a", "b;a", "a|b"], "column 'y'", separator=";")


def test_an_empty_cell_is_no_label_only_where_there_may_be_several():
    several = label_column(["a", "", "b"], "a.csv", problem_type=MULTI)
    assert Labels.learn(several).encode(several) == [[1, 0], [0, 0], [0, 1]]
    with pytest.raises(PtuneError, match=r"1 of 3 labels are missing \(a.csv\), at row 2 "):
        Labels.learn(label_column(["a", "", "b"], "a.csv"))


def test_white_space_around_a_cell_is_removed_unless_labels_would_merge():
    assert Labels.learn(label_column([" a", "b "], "a.csv")).names == ("a", "b")
    with pytest.warns(UserWarning, match="differ only in"):
        assert Labels.learn(label_column([" a", "a"], "a.csv")).names == (" a", "a")


def test_examples_without_a_label_can_be_left_out(tmp_path, caplog):
    file = tmp_path / "a.csv"
    file.write_text("text,label\nx,a\ny,\nz,b\n")
    texts, column = labelled_texts(file, skip_unlabelled=True)
    assert (texts, column.values) == ([["x", "z"]], ["a", "b"])
    assert "Left out 1 of 3 examples without a label." in caplog.text


def test_nothing_is_left_of_examples_without_texts_or_labels(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("text,label\n,a\nx,\n")
    with refused(f"No row of {file} has both a text and a label. Check the columns."):
        labelled_texts(file, skip_unlabelled=True, skip_empty=True)


def test_commas_without_quotes_belong_to_the_text_if_the_last_cells_are_labels(tmp_path):
    file = tmp_path / "a.csv"
    rows = [f"one, two {i},{'ab'[i % 2]}" for i in range(10)]
    file.write_text("\n".join(["text,label", *rows]))
    with pytest.warns(UserWarning, match=r"10 rows of .* the first in line 2\."):
        data = load_files(file)
    assert data.labels.names == ("a", "b")
    assert {*data.train["text"], *data.evaluation[""]["text"]} == {
        f"one, two {i}" for i in range(10)
    }


@pytest.mark.parametrize("header", ["label,text", "a,b", "label,class"])
def test_commas_without_quotes_are_refused_unless_the_label_is_last(tmp_path, header):
    """`label,text` and `pos,Hello, thanks` made a label of `pos,Hello`."""
    file = tmp_path / "a.csv"
    rows = [f"{'ab'[i % 2]},Hello {i}, {('thanks', 'bye')[i % 2]}" for i in range(10)]
    file.write_text("\n".join([header, *rows]))
    with refused(f"Line 2 of {file} has 3 cell(s), and the header has 2. A text with …"):
        read_table(file)


def test_rows_with_commas_without_quotes_stay_in_their_places(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nx,a\none, two,b\ny,b\n,a\nthree, four,a\n")
    with pytest.warns(UserWarning, match=r"2 rows of .* the first in line 3\."):
        table = read_table(tmp_path / "a.csv")
    assert table == {"text": ["x", "one, two", "y", "", "three, four"], "label": [*"abbaa"]}
    (tmp_path / "b.csv").write_text("x,a\none, two,b\ny,b\nz,a\n")
    with pytest.warns(UserWarning, match=r"1 rows of .* the first in line 2\."):
        table = read_table(tmp_path / "b.csv", Dialect(header=False))
    assert table == {"1": ["x", "one, two", "y", "z"], "2": [*"abba"]}


def test_lists_of_whole_numbers_are_several_labels():
    column = label_column(["[1, 2]", "[3]", "[]", '["1", 3]'], "column 'label' of a.csv")
    assert (column.kind, list(column.values)) == ("several", [[1, 2], [3], [], [1, 3]])


@pytest.mark.parametrize("cells", [["(1, 2)", "(1,)"], ["{a}", "{a b}"], ["[1.5]", "[a]"]])
def test_brackets_that_are_not_lists_are_reported(cells):
    with pytest.warns(UserWarning, match="Each label is in brackets, such as"):
        column = label_column(cells, "column 'label' of a.csv")
    assert list(column.values) == cells


def test_numbers_with_too_many_digits_are_names():
    cells = ["1" * 5000, "7", *map(str, range(30))]
    assert list(label_column(cells, "column 'label' of a.csv").values) == cells
    assert list(label_column([*cells, "0.5"], "…").values) == [*cells, "0.5"]


def test_whole_numbers_are_known_with_and_without_the_fraction_that_pandas_adds(tmp_path):
    whole, missing = tmp_path / "whole.csv", tmp_path / "missing.csv"
    whole.write_text("text,label\none,0\ntwo,1\n")
    missing.write_text("text,label\none,0.0\ntwo,1.0\nthree,\n")
    for train, other in ((whole, missing), (missing, whole)):
        data = load_files(train, other, skip_unlabelled=True)
        assert data.evaluation[""]["label"] == [0, 1]
        assert data.labels.names == (("0", "1") if train == whole else ("0.0", "1.0"))
