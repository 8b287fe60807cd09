"""What counts as a text, and how texts become batches of tokens."""

import copy
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from ptune import PtuneError, texts


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


def test_no_texts_at_all_are_refused():
    with pytest.raises(PtuneError, match="There are no texts"):
        texts.as_columns([])


LENGTHS = [3, 50, 4, 100, 3, 60]


def test_every_text_is_in_one_batch_within_the_budget(monkeypatch):
    monkeypatch.setattr(texts, "TOKENS_PER_TEXT", 10)
    batches = list(texts.batches(LENGTHS, 12))
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    for batch in batches:
        longest = max(LENGTHS[i] for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= 120
    assert batches[0] == [3]


def test_texts_and_pairs_are_cut_to_their_own_limits(tokenizer):
    words = ["money " * 20, "money " * 3, "parcel " * 20]
    whole, none = texts.encode(tokenizer, [words], None)
    cut, count = texts.encode(tokenizer, [words], [10, 10, None])
    assert (none, count) == (0, 1)
    assert len(cut["input_ids"][0]) == 10
    assert cut["input_ids"][1:] == whole["input_ids"][1:]
    alone = tokenizer(words[0], truncation=True, max_length=10)
    assert cut["input_ids"][0] == alone["input_ids"]
    pairs, count = texts.encode(tokenizer, [words, words[::-1]], 8)
    assert count == 3
    assert [len(ids) for ids in pairs["input_ids"]] == [8, 8, 8]


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
            os._exit(0 if cut == 4 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [w.result()[1] for w in work] == [512] * 6
