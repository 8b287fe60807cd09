"""What counts as a text, and how texts become batches of tokens."""

import collections
import copy
import enum
import os
import pickle
import string
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow
import pytest
from conftest import refused
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ptune import PtuneError, texts
from ptune.errors import Origin
from ptune.texts.tokens import spelled_share


@pytest.mark.parametrize(
    ("one", "several"),
    [
        ("a text", ["a text"]),
        (("first", "second"), [("first", "second")]),
    ],
)
def test_a_string_and_a_tuple_of_two_strings_are_one(one, several):
    assert texts.is_one(one)
    assert not texts.is_one(several)
    assert texts.as_columns(texts.rows(one)) == texts.as_columns(texts.rows(several))


def test_a_list_of_two_strings_is_two_texts():
    assert not texts.is_one(["a", "b"])
    assert texts.as_columns(["a", "b"]) == [["a", "b"]]


def test_pairs_make_two_columns():
    assert texts.as_columns([("a", "b"), ["c", "d"]]) == [["a", "c"], ["b", "d"]]


TEXTS, MORE = ["one a", "two b", "three c"], ["x", "y", "z"]
TABLE = {"a": TEXTS, "b": MORE}
HOLDERS = {
    "tuple": tuple,
    "iterator": iter,
    "dict values": lambda t: dict(enumerate(t)).values(),
    "deque": collections.deque,
    "objects": lambda t: np.array(t, dtype=object),
    "unicode": np.array,
    "NumPy's strings": lambda t: np.array(t, dtype=np.dtypes.StringDType()),
    "column vector": lambda t: np.array(t)[:, None],
    "np.str_": lambda t: list(np.array(t)),
    "Series": pd.Series,
    "Series with an index": lambda t: pd.Series(t, index=pd.MultiIndex.from_product([[7], t])),
    "nullable Series": lambda t: pd.Series(t, dtype="string"),
    "Arrow's Series": lambda t: pd.Series(t, dtype="string[pyarrow]"),
    "Categorical": pd.Categorical,
    "Index": pd.Index,
    "Polars": pl.Series,
    "Polars' categories": lambda t: pl.Series(t, dtype=pl.Categorical),
    "Arrow": pyarrow.array,
    "Arrow's chunks": lambda t: pyarrow.chunked_array([t[:1], t[1:]]),
    "Arrow's dictionary": lambda t: pyarrow.array(t).dictionary_encode(),
    "DataFrame": lambda t: pd.DataFrame({"a": t}),
    "DataFrame with a number as name": lambda t: pd.DataFrame({0: t}),
    "DataFrame with two levels of names": lambda t: pd.DataFrame({("a", "b"): t}),
    "Polars' DataFrame": lambda t: pl.DataFrame({"a": t}),
    "Arrow's table": lambda t: pyarrow.table({"a": t}),
    "Arrow's batch": lambda t: pyarrow.record_batch({"a": t}),
    "data set": lambda t: datasets.Dataset.from_dict({"a": t}),
    "streamed data set": lambda t: datasets.Dataset.from_dict({"a": t}).to_iterable_dataset(),
    "column of a data set": lambda t: datasets.Dataset.from_dict({"a": t})["a"],
    "members of an enum": lambda t: list(enum.Enum("E", dict(zip("abc", t)), type=str)),  # noqa: B905
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_every_container_of_texts_holds_them(hold):
    (found,) = texts.as_columns(texts.rows(hold(TEXTS)))
    assert found == TEXTS
    assert {type(text) for text in found} == {str}


PAIRS = {
    "tuples": lambda: zip(TEXTS, MORE, strict=True),
    "lists": lambda: [list(pair) for pair in zip(TEXTS, MORE, strict=True)],
    "array": lambda: np.array([TEXTS, MORE]).T,
    "Series of tuples": lambda: pd.Series(list(zip(TEXTS, MORE, strict=True))),
    "MultiIndex": lambda: pd.MultiIndex.from_arrays([TEXTS, MORE]),
    "DataFrame": lambda: pd.DataFrame(TABLE),
    "values of a DataFrame": lambda: pd.DataFrame(TABLE).values,
    "Polars": lambda: pl.DataFrame(TABLE),
    "Polars' lists": lambda: pl.Series([list(p) for p in zip(TEXTS, MORE, strict=True)]),
    "Arrow": lambda: pyarrow.table(TABLE),
    "Arrow's lists": lambda: pyarrow.array([list(p) for p in zip(TEXTS, MORE, strict=True)]),
    "data set": lambda: datasets.Dataset.from_dict(TABLE),
}


@pytest.mark.parametrize("hold", PAIRS.values(), ids=PAIRS)
def test_every_container_of_pairs_holds_them(hold):
    assert texts.as_columns(texts.rows(hold())) == [TEXTS, MORE]


def test_a_table_may_have_further_columns_if_those_of_the_texts_are_known():
    table = pd.DataFrame({**TABLE, "label": [1, 2, 3]})
    assert list(texts.rows(table, ["a"])) == TEXTS
    assert texts.as_columns(texts.rows(table, ["b", "a"])) == [MORE, TEXTS]


COLLECTION = "Expected a text, a pair of texts or a collection of them; found "
COLUMNS = "Expected a table with one column of texts, or two for pairs; found the columns "
SELECT = ' Select them, for example X[["text"]].'
MIXED = "Expected strings or pairs of strings, not a mixture."
FIX = "Correct them or leave them out."


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (3, COLLECTION + "'3' of type int."),
        (None, COLLECTION + "a missing value (None)."),
        (b"a", COLLECTION + "bytes (b'a'; call .decode() on them)."),
        (bytearray(b"ab"), COLLECTION + "bytes (b'ab'; call .decode() on them)."),
        (np.array("a"), COLLECTION + "'a' of type ndarray."),
        (str, COLLECTION + "\"<class 'str'>\" of type type."),
        (pl.LazyFrame(TABLE), COLLECTION + "… of type LazyFrame."),
        (
            {"text": "a"},
            COLLECTION + 'a dictionary (take the text out of it, for example row["text"]).',
        ),
        (pd.DataFrame({**TABLE, "c": MORE}), COLUMNS + "'a', 'b', 'c'." + SELECT),
        (pd.DataFrame([["x", "y"]], columns=["a", "a"]), COLUMNS + "'a', 'a'." + SELECT),
        (pd.DataFrame(index=[1]), COLUMNS + "(none)." + SELECT),
        (
            [1, 2],
            "Found numbers such as 1 in the texts, at position 0 (counting from 0); expected "
            "texts. Is it the right column? Convert numbers with str().",
        ),
        (
            pd.DataFrame({"a": TEXTS, "id": [1.5, 2, 3]}),
            "Found numbers such as 1.5 in the second texts of the pairs, at position 0 (counting "
            "from 0); expected texts. Is it the right column? Convert numbers with str().",
        ),
        (
            [{"text": "a"}] * 2,
            'Found a dictionary (take the text out of it, for example row["text"]) in the texts, '
            f"at position 0, 1 (counting from 0). {MIXED} 2 of 2 are wrong. {FIX}",
        ),
        (
            np.ma.array(TEXTS, mask=[0, 1, 0]),
            "Found a missing value (--) in the texts, at position 1 (counting from 0). Expected a "
            f"text at every position. {FIX}",
        ),
        (
            [("a", "b"), ("c", "\ud800")],
            "Found '\\ud800', which is not valid Unicode (it has a lone surrogate), in the second "
            f"texts of the pairs, at position 1 (counting from 0). {MIXED} {FIX}",
        ),
        (
            [("a", "b"), "c"],
            "Found the single text 'c' in the pairs of texts, at position 1 (counting from 0). "
            f"{MIXED} {FIX}",
        ),
        (
            np.array([["a", "b", "c"]]),
            "Found an ndarray of 3 (['a' 'b' 'c']) in the texts, at position 0 (counting from 0). "
            f"{MIXED} {FIX}",
        ),
    ],
)
def test_what_holds_no_texts_is_refused_with_its_position_and_the_fix(wrong, message):
    with refused(message):
        texts.as_columns(texts.rows(wrong))


def test_rows_of_files_count_from_one():
    with refused(
        "Found a missing value (None) in column 'a' of b.csv, at row 12 (counting from 1). "
        f"Expected a text in every row. {FIX}"
    ):
        texts.check(["x", None], Origin.column("a", "b.csv", before=10))


def test_no_texts_at_all_are_refused():
    with pytest.raises(PtuneError, match="There are no texts"):
        texts.as_columns([])


LENGTHS = [3, 50, 4, 100, 3, 60]


def test_every_text_is_in_one_batch_within_the_budget(monkeypatch):
    monkeypatch.setattr(texts.tokens, "TOKENS_PER_TEXT", 10)
    batches = list(texts.batches(LENGTHS, 12))
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    for batch in batches:
        longest = max(LENGTHS[i] for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= 120
    assert batches[0] == [3]


@pytest.mark.parametrize(
    ("most_padding", "expected"),
    [
        (0, [[3], [5], [1], [2], [0, 4]]),
        (45, [[3, 5], [1], [2, 0, 4]]),
        (None, [[3, 5, 1, 2, 0, 4]]),
    ],
)
def test_texts_of_other_lengths_start_another_batch(most_padding, expected):
    assert list(texts.batches(LENGTHS, 100, most_padding)) == expected


def test_only_texts_and_pairs_that_are_too_long_are_cut(tokenizer):
    words = ["money " * 20, "money " * 2, "money " * 5]
    whole, none = texts.encode(tokenizer, [words], None)
    cut, first = texts.encode(tokenizer, [words], 10)
    assert (none, first) == ([], [0])
    assert len(cut["input_ids"][0]) == 10
    assert cut["input_ids"][1:] == whole["input_ids"][1:]
    alone = tokenizer(words[0], truncation=True, max_length=10)
    assert cut["input_ids"][0] == alone["input_ids"]
    limit = len(tokenizer(words[1], words[1])["input_ids"])
    pairs, too_long = texts.encode(tokenizer, [words, words[::-1]], limit)
    assert too_long == [0, 2]
    assert [len(ids) for ids in pairs["input_ids"]] == [limit] * 3


def test_threads_share_a_tokenizer(tokenizer):
    """A fast tokenizer raises "Already borrowed" if a thread cuts texts while another reads."""
    words = [[("money " * (1 + i % 40)).strip() for i in range(j, j + 64)] for j in range(32)]
    limits = [None, 5, 10, 20]
    expected = [texts.encode(tokenizer, [w], limits[i % 4]) for i, w in enumerate(words)]
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda i: texts.encode(tokenizer, [words[i]], limits[i % 4]), range(32))
        )
    assert found == expected


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_a_used_tokenizer_can_be_copied(tokenizer, clone):
    expected = texts.encode(tokenizer, [["my money", "my parcel"]], 3)
    assert texts.encode(clone(tokenizer), [["my money", "my parcel"]], 3) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_can_tokenize_while_a_thread_of_the_parent_does(tokenizer):
    words = ["money " * 30] * 512
    with ThreadPoolExecutor(2) as pool:
        work = [pool.submit(texts.encode, tokenizer, [words], 10) for _ in range(6)]
        child = os.fork()
        if not child:
            _, cut = texts.encode(tokenizer, [words[:4]], 10)
            os._exit(0 if len(cut) == 4 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [len(w.result()[1]) for w in work] == [512] * 6


@pytest.mark.parametrize(
    ("columns", "pairs", "message"),
    [
        (
            ["text", "label"],
            None,
            "Expected a table with one column of texts, or two for pairs; found the columns "
            "'text', 'label', of which 'label' is called like a label. Select them, for example "
            'X[["text"]].',
        ),
        (
            ["title", "body"],
            False,
            "Expected a table with one column of texts; found the columns 'title', 'body'. Select "
            'them, for example X[["text"]].',
        ),
        (
            ["title"],
            True,
            "Expected a table with two columns of texts, for pairs; found the columns 'title'. "
            'Select them, for example X[["text"]].',
        ),
    ],
)
def test_a_table_with_other_columns_is_refused(columns, pairs, message):
    frame = pd.DataFrame(dict.fromkeys(columns, TEXTS))
    for table in (frame, datasets.Dataset.from_pandas(frame), pl.from_pandas(frame)):
        with refused(message):
            texts.rows(table, pairs=pairs)


def test_columns_that_training_used_are_taken_whatever_they_are_called():
    frame = pd.DataFrame({"label": TEXTS, "y": MORE, "id": [1, 2, 3]})
    assert list(texts.rows(frame, ["label"])) == TEXTS
    assert list(texts.rows(frame, ["label", "y"])) == list(zip(TEXTS, MORE, strict=True))


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("hello (again) hello", 0.0),
        ("где где", 1.0),
        ("hello где!", 0.5),
        ("гд hello де", 0.0),  # short words
        ("荷物荷物 hello", 0.0),
        ("12345 678", 0.0),
        ("", 0.0),
    ],
)
def test_words_that_a_model_reads_letter_by_letter(text, share):
    letters = [*"абгде荷物!()", *string.digits]
    pieces = ["[UNK]", "hello", "again", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]")
    tokenizer = Tokenizer(vocabulary)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    assert spelled_share(fast, [text]) == share


def test_a_single_value_in_an_array_is_no_collection():
    with refused("Expected a text, a pair of texts or a collection of them; found …"):
        texts.rows(np.array("a text"))
