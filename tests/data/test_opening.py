"""Files as spreadsheets and colleagues write them."""

import bz2
import gzip
import json
import lzma

import pyarrow
import pytest
from pyarrow import feather, parquet

from ptune import PtuneError
from ptune.data.dataset import load_files
from ptune.data.opening import Dialect, delimiter_of
from ptune.data.tables import read_batches, read_table

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


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("cp1252", "Das Caf\xe9 ist rot."), ("cp1251", "\u043c\u044f\u0447 \u043a\u0440\u0430\u0441")],
)
def test_another_encoding_is_named_and_can_be_given(tmp_path, encoding, text):
    (tmp_path / "a.csv").write_bytes(f"text,label\n{text},a\n".encode(encoding))
    with pytest.raises(
        PtuneError, match=f"not UTF-8: .*probably {encoding}.*--encoding {encoding}"
    ):
        read_table(tmp_path / "a.csv")
    assert read_table(tmp_path / "a.csv", Dialect(encoding=encoding))["text"] == [text]


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
    with pytest.raises(PtuneError, match=r"a\.csv\.\w+ could not be read .*damaged or incomplete"):
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
