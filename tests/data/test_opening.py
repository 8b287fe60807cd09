"""Files as spreadsheets and colleagues write them."""

# ruff: noqa: RUF001 (texts in several languages)

import bz2
import codecs
import gzip
import json
import lzma
import warnings

import numpy as np
import pyarrow
import pytest
from conftest import refused
from pyarrow import feather, parquet

from ptune import PtuneError
from ptune.data.dataset import load_files
from ptune.data.opening import Dialect, delimiter_of
from ptune.data.tables import Columns, find_columns, read_batches, read_table

ROWS = [(f"The ball, number {i}; is | red", "red") for i in range(6)]
ROWS += [(f"The sky number {i}", "blue") for i in range(6)]
TABLE = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}


def table(delimiter=",", header=("text", "label")):
    rows = [[f'"{text}"', label] for text, label in ROWS]
    return (
        "\n".join(delimiter.join(row) for row in ([list(header)] if header else []) + rows) + "\n"
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_whatever_the_texts_hold(tmp_path, delimiter):
    (tmp_path / "a.csv").write_text(table(delimiter))
    assert read_table(tmp_path / "a.csv") == TABLE


def test_a_file_of_one_column_has_no_delimiter_to_find(tmp_path):
    (tmp_path / "a.csv").write_text("text\none; two\nthree | four\n")
    assert read_table(tmp_path / "a.csv") == {"text": ["one; two", "three | four"]}


def test_excels_line_about_the_delimiter_is_not_a_header(tmp_path):
    (tmp_path / "a.csv").write_text("sep=;\n" + table(";"))
    assert read_table(tmp_path / "a.csv") == TABLE


@pytest.mark.parametrize("given", ["#", "tab"])
def test_another_delimiter_can_be_given(tmp_path, given):
    (tmp_path / "a.csv").write_text(table({"tab": "\t"}.get(given, given)))
    assert read_table(tmp_path / "a.csv", Dialect(given)) == TABLE


def test_a_delimiter_of_several_characters_is_refused(tmp_path):
    with pytest.raises(PtuneError, match="'::' is not one character"):
        delimiter_of(tmp_path / "a.csv", Dialect("::"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_byte_order_mark_decides_the_encoding(tmp_path, encoding, name):
    lines = [json.dumps({"text": t, "label": v}) for t, v in ROWS]
    content = table() if name == "a.csv" else "\n".join(lines)
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert read_table(tmp_path / name) == TABLE


LANGUAGES = {
    "cp1252": "Das Café ist rot, “größer” – 5 €",
    "cp1250": "Żółta łódź płynie, příliš žluťoučký kůň",
    "cp850": "Das Café ist rot und größer",
    "cp1251": "мяч красный, Небо синее",
    "koi8_r": "мяч красный, Небо синее",
    "shift_jis": "ボールは赤いです。空は青い",
    "euc_jp": "ボールは赤いです。空は青い",
    "euc_kr": "공은 빨간색입니다",
    "gb18030": "球是红色的。天空是蓝色的",
    "big5": "球是紅色的。天空是藍色的",
}


@pytest.mark.parametrize("encoding", LANGUAGES)
def test_the_most_likely_encoding_is_named_and_can_be_given(tmp_path, encoding):
    text = LANGUAGES[encoding]
    file = tmp_path / "a.csv"
    file.write_bytes(f'text,label\nhello,b\n"{text}",a\n'.encode(encoding))
    with refused(
        f"{file} is not UTF-8: byte 0x… in line 3. It is probably {encoding}: use --encoding "
        f"{encoding}, or convert the file (`iconv -f {encoding} -t utf-8 a.csv > utf8-a.csv`)."
    ):
        read_table(file)
    assert read_table(file, Dialect(encoding=encoding))["text"] == ["hello", text]


def test_a_folder_that_is_called_as_a_file_is_named(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with refused(f"{tmp_path}/a.csv is a folder. Name a file in it."):
        read_table(tmp_path / "a.csv")


def test_a_given_encoding_counts_if_a_byte_order_mark_is_wrong(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(codecs.BOM_UTF8 + "text,label\nGröße,b\nweiß,a\n".encode("cp1252"))
    with refused(
        f"{file} is not UTF-8, although it starts with its byte-order mark: byte 0xf6 in line 2. "
        "It is probably cp1252: use --encoding cp1252, or convert the file (`iconv …`)."
    ):
        read_table(file)
    table = read_table(file, Dialect(encoding="cp1252"))
    assert table == {"text": ["Größe", "weiß"], "label": ["b", "a"]}


def test_a_file_that_is_no_text_is_not_taken_for_an_encoding(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(np.random.default_rng(0).bytes(3000))
    with refused(
        f"{file} is not text: … of its first 3,000 bytes are control characters. Name another "
        "file, or save this one as CSV in UTF-8."
    ):
        read_table(file)


def test_a_column_without_a_name_is_listed_as_such(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text(";Nachricht;Art\n1;wo ist es;a\n")
    with refused(
        f"No column of {file} is called like a label (…); it has (no name), Nachricht, Art. Name "
        "it with --label-column, or each column of 0 and 1 with --indicator-column, or use "
        "--no-header if the first line is an example."
    ):
        find_columns(read_table(file), Columns(), file)


@pytest.mark.parametrize("language", ["cp1252", "cp1251", "shift_jis"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_utf16_without_a_mark_is_named_and_can_be_given(tmp_path, encoding, language):
    text = LANGUAGES[language]
    file = tmp_path / "a.csv"
    content = f'text,label\n"{text}",a\n'
    file.write_bytes(content.encode(encoding))
    with refused(
        f"{file} is not UTF-8: … of its first … bytes are zero. It is probably {encoding}: use "
        f"--encoding {encoding}, or convert the file (`iconv -f {encoding} -t utf-8 a.csv > …`)."
    ):
        read_table(file)
    assert read_table(file, Dialect(encoding=encoding))["text"] == [text]
    file.write_bytes(("\ufeff" + content).encode(encoding))
    assert read_table(file)["text"] == [text]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\3\4", "a zip file, such as .xlsx or .ods,"),
        (gzip.compress(b"text,label\n", mtime=0), "compressed (.gz)"),
        (b"PAR1", "a Parquet file (.parquet)"),
    ],
)
def test_what_is_not_text_is_named(tmp_path, content, what):
    file = tmp_path / "a.csv"
    file.write_bytes(content)
    with refused(
        f"{file} is {what} and not text. Give it the ending that says so, or save it as CSV in "
        "UTF-8."
    ):
        read_table(file)


@pytest.mark.parametrize("name", ["a.csv", "a.xls"])
def test_an_old_excel_file_is_to_be_saved_as_xlsx(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(PtuneError, match=r"an old Excel file \(.xls\).* Save it as .xlsx"):
        read_table(file)


def test_an_unknown_encoding_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text(table())
    with pytest.raises(PtuneError, match="no encoding 'latin-99'"):
        read_table(tmp_path / "a.csv", Dialect(encoding="latin-99"))


def zstd(data):
    return pyarrow.compress(data, "zstd", asbytes=True)


COMPRESSIONS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_compressed_files_read_like_others(tmp_path, ending):
    compress = COMPRESSIONS[ending]
    (tmp_path / f"a.csv.{ending}").write_bytes(compress(table().encode()))
    assert read_table(tmp_path / f"a.csv.{ending}") == TABLE
    parquet.write_table(pyarrow.table(TABLE), tmp_path / "a.parquet")
    (tmp_path / f"a.parquet.{ending}").write_bytes(compress((tmp_path / "a.parquet").read_bytes()))
    assert read_table(tmp_path / f"a.parquet.{ending}") == TABLE


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_a_truncated_compressed_file_is_refused(tmp_path, ending):
    text = "".join(f"some text {i * i},a\n" for i in range(20_000))
    whole = COMPRESSIONS[ending](f"text,label\n{text}".encode())
    (tmp_path / f"a.csv.{ending}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PtuneError, match=r"a\.csv\.\w+ could not be read .*damaged, incomplete"):
        read_table(tmp_path / f"a.csv.{ending}")


def test_a_file_without_a_header_has_the_label_last(tmp_path):
    (tmp_path / "a.csv").write_text(table(header=None))
    data = load_files(tmp_path / "a.csv", dialect=Dialect(header=False))
    assert data.labels.names == ("blue", "red")
    assert len(data.train) + len(data.evaluation[""]) == 12


@pytest.mark.parametrize("form", ["file", "stream", "feather", "compressed feather"])
def test_arrow_files_are_read_in_batches(tmp_path, form):
    source, file = pyarrow.table(TABLE), tmp_path / "a.arrow"
    if form == "file":
        with pyarrow.ipc.new_file(file, source.schema) as out:
            out.write_table(source)
    elif form == "stream":
        with pyarrow.OSFile(str(file), "wb") as f, pyarrow.ipc.new_stream(f, source.schema) as out:
            out.write_table(source)
    else:
        file = tmp_path / "a.feather"
        feather.write_feather(source, file, compression="zstd" if " " in form else "uncompressed")
    assert read_table(file) == TABLE
    assert [len(batch) for batch in read_batches(file, 5)] == [5, 5, 2]


def test_null_bytes_and_empty_headers_are_kept(tmp_path):
    (tmp_path / "a.csv").write_text("text,label,,\nwith\0null,a,1,2\n")
    assert read_table(tmp_path / "a.csv") == {
        "text": ["with\0null"],
        "label": ["a"],
        "column 2": ["1"],
        "column 3": ["2"],
    }


def test_deeply_nested_json_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(PtuneError, match="nested too deeply"):
        read_table(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "content",
    ['{"text": "a", "label": %s}', '[{"text": "a", "label": %s}]'],
)
def test_json_with_a_number_of_too_many_digits_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content % ("1" * 5000))
    with refused(
        "… in or after line 1 has more than 4,300 digits. Write it as a string, in quotes."
    ):
        read_table(tmp_path / "a.json")


@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather", "stream.arrow"])
def test_arrow_files_with_two_columns_of_one_name_are_refused(tmp_path, ending):
    table = pyarrow.table([["a"], ["b"], ["x"]], names=["text", "text", "label"])
    file = tmp_path / f"a.{ending}"
    if ending == "parquet":
        parquet.write_table(table, file)
    else:
        new = pyarrow.ipc.new_stream if ending.startswith("stream") else pyarrow.ipc.new_file
        with new(file, table.schema) as out:
            out.write_table(table)
    with refused(f"{file} has two columns named 'text'. Rename one."):
        read_table(file)


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (Columns(text="label", label="label"), "label"),
        (Columns("text", "text", "label"), "text"),
        (Columns("text", "label", "label"), "label"),
        (Columns("text", indicators=("label", "label")), "label"),
        (Columns("text", indicators=("label", "text")), "text"),
    ],
)
def test_a_column_is_not_used_twice(columns, name):
    with refused(f"The column {name!r} of a.csv is named 2 times. Name a column of its own …"):
        find_columns(["text", "label"], columns, "a.csv")
    if name == "label" and columns.text == name:  # nothing but the texts is read
        assert find_columns(["text", "label"], columns, "a.csv", labelled=False).text == name


# What spreadsheets, surveys and scripts write.

CARE = (
    'A text with a separator, a quote or a line break belongs in quotes ("), and a quote inside is '
    'doubled (""). If quotes are part of the texts, use --no-quotes. JSON lines (.jsonl) need no '
    "such care."
)


@pytest.mark.parametrize(
    ("content", "table"),
    [
        ('text,label\n"a\nb\r\nc",x\n', {"text": ["a\nb\r\nc"], "label": ["x"]}),
        ("text,label\nNA,null\n007,NaN\n", {"text": ["NA", "007"], "label": ["null", "NaN"]}),
        ("text,label\ra,x\rb,y\r", {"text": ["a", "b"], "label": ["x", "y"]}),
        ("text,label,\na,x,\n", {"text": ["a"], "label": ["x"], "": [""]}),
        ("text,label\na\u2028b\x85c\x0cd,x\n", {"text": ["a\u2028b\x85c\x0cd"], "label": ["x"]}),
        ('\ufeff"text"\t"label"\n"a, b"\tx\n', {"text": ["a, b"], "label": ["x"]}),
        (f"text,label\n{'x ' * 2**19},a\n", {"text": ["x " * 2**19], "label": ["a"]}),
        (" a,a\nx,y\n", {" a": ["x"], "a": ["y"]}),
    ],
    ids=lambda value: repr(value)[:24] if isinstance(value, str) else "",
)
def test_odd_cells_keep_their_text(tmp_path, content, table):
    (tmp_path / "a.csv").write_bytes(content.encode())
    assert read_table(tmp_path / "a.csv") == table
    batches = read_batches(tmp_path / "a.csv", 1)
    assert [row for batch in batches for row in batch] == [
        dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,text,label\na,b,c\n", "{} has two columns named 'text'. Rename one."),
        ("text,label\na\n", f"Line 2 of {{}} has 1 cell(s), and the header has 2. {CARE}"),
        (
            "text;label\na;x\nb,y\n",
            "Line 3 of {} has 1 cell(s), and the header has 2. Separate all lines alike: this one "
            f"has ','. {CARE}",
        ),
        ("text,label\na,x,\nb,y,\n", f"Line 2 of {{}} has 3 cell(s), and the header has 2. {CARE}"),
        (
            "My survey\n\ntext,label\na,x\n",
            "Line 3 of {} has 2 cell(s), and the header has 1. Remove what is above the header, if "
            f"anything is. {CARE}",
        ),
        (
            'text,label\n"a" b,x\n',
            f"{{}} could not be read as csv: the quoting in line 2 is broken (…). {CARE}",
        ),
        (
            "text,label\n,x\n,y\n",
            "Found an empty text in column 'text' of {}, at row 1, 2 (counting from 1). Expected "
            "a text in every row. 2 of 2 are wrong. Correct them, or leave out rows without a text "
            "(--skip-empty).",
        ),
        (
            "text,label\na,\nb,\n",
            "2 of 2 labels are missing (column 'label' of {}), at row 1, 2 (counting from 1). Fill "
            "them in or leave those examples out (--skip-unlabelled).",
        ),
    ],
    ids=[
        "two of a name",
        "short row",
        "mixed",
        "long row",
        "title",
        "quotes",
        "no text",
        "no label",
    ],
)
def test_odd_files_are_refused_with_the_line(tmp_path, content, message):
    file = tmp_path / "a.csv"
    file.write_text(content)
    with refused(message.format(file)):
        load_files(file)


def test_columns_are_found_in_capitals_and_beside_empty_ones(tmp_path):
    rows = "".join(f"{i},,a text {i},{'xy'[i % 2]},\n" for i in range(20))
    (tmp_path / "a.csv").write_text(f",note,Text,LABEL,more\n{rows}")
    assert load_files(tmp_path / "a.csv").labels.names == ("x", "y")


def test_lists_in_cells_are_several_labels(tmp_path):
    rows = "".join(f"text {i},\"['late', 'lost']\"\nother {i},[]\n" for i in range(9))
    rows += "".join(f'third {i},"[""late""]"\n' for i in range(9))
    (tmp_path / "a.csv").write_text(f"text,labels\n{rows}")
    data = load_files(tmp_path / "a.csv")
    assert data.labels.names == ("late", "lost")
    assert {tuple(row) for row in data.train["label"]} == {(1, 1), (0, 0), (1, 0)}


def test_shares_in_lists_are_no_names_of_labels(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "label": [0.7, 0.3, 0]}\n')
    with pytest.raises(PtuneError, match=r"Found \[0.7, 0.3, 0\].*row 1 .*--indicator-column"):
        load_files(tmp_path / "a.jsonl")


def test_labels_of_the_evaluation_file_keep_the_space_that_tells_them_apart(tmp_path):
    rows = "".join(f"text {i},{'a' if i % 2 else ' a'}\n" for i in range(20))
    (tmp_path / "a.csv").write_text(f"text,label\n{rows}")
    (tmp_path / "b.csv").write_text("text,label\none, a\ntwo, a \n")
    with pytest.warns(UserWarning, match="white space"):
        data = load_files(tmp_path / "a.csv", tmp_path / "b.csv")
    assert [data.labels.names[i] for i in data.evaluation[""]["label"]] == [" a", "a"]


def test_rows_that_repeat_the_header_are_no_examples(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("text,label\nx,0\ny,1\ntext, label\nz,0\nlabel,1\ntext,label\n")
    with pytest.warns(UserWarning, match=r"2 rows of .*a\.csv repeat its header, at row 3, 6 "):
        assert read_table(file) == {"text": ["x", "y", "z", "label"], "label": ["0", "1", "0", "1"]}
    file.write_text("text,label\nx,0\ntext,label\n")
    with pytest.warns(UserWarning, match=r"1 row of .*a\.csv repeats its header, .* without it\."):
        read_table(file)


MAILS = [("where is it?", "parcel"), ("money back", "refund")] * 3
# A quote before one text, and one after a later text: read as CSV, three rows are one.
QUOTED = [*MAILS, ('"where is it?', "parcel"), MAILS[1], ('my screen is 5"', "parcel")]


def table_of(rows, separator, turned):
    rows = [row[::-1] if turned else row for row in [("text", "label"), *rows]]
    return "\n".join(map(separator.join, rows)) + "\n"


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("ending", "separator"), [("tsv", "\t"), ("csv", ",")])
def test_quotes_that_join_rows_are_named_and_can_be_text(tmp_path, ending, separator, turned):
    file = tmp_path / f"a.{ending}"
    file.write_text(table_of(QUOTED, separator, turned))
    for read in (read_table, lambda f: list(read_batches(f, 8))):
        with pytest.warns(UserWarning, match=r"1 cell, of row 7 .* use --no-quotes"):
            read(file)
    whole = Dialect(quotes=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_table(file, whole)["text"] == [text for text, _ in QUOTED]
        assert sum(map(len, read_batches(file, 8, whole))) == len(QUOTED)


def test_lines_of_a_text_that_are_no_rows_are_not_named(tmp_path):
    file = tmp_path / "a.csv"
    text = "Hello, all\nmy order, refund\n\nthanks, Ann"
    file.write_text(table_of([*MAILS, (f'"{text}"', "refund"), ('"a,\nb"', "x")], ",", False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_table(file)["text"][6:] == [text, "a,\nb"]
        assert len(next(read_batches(file, 100))) == 8
