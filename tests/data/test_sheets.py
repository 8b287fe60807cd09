"""Workbooks as spreadsheet programs write them: cells are texts as people see them."""

import re
import sys
import zipfile
from xml.sax.saxutils import escape

import pytest
from conftest import refused

from ptune import PtuneError
from ptune.data.dataset import load_files
from ptune.data.opening import Dialect
from ptune.data.tables import read_batches, read_table

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
OASIS = "urn:oasis:names:tc:opendocument:xmlns"
# Days since 1899-12-30, as spreadsheets count, and what people see.
DAY, MOMENT = ("date", 45322), ("date", 45322.5)


def xlsx_cell(value):
    if isinstance(value, tuple):
        return f'<c s="{2 if value[1] % 1 else 1}"><v>{value[1]}</v></c>'
    if isinstance(value, bool):
        return f'<c t="b"><v>{int(value)}</v></c>'
    if isinstance(value, int | float):
        return f"<c><v>{value}</v></c>"
    return f'<c t="inlineStr"><is><t xml:space="preserve">{escape(value)}</t></is></c>'


def write_xlsx(file, sheets):
    """An `.xlsx` file: names of sheets → rows of values."""
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml."
    numbers = range(1, len(sheets) + 1)
    with zipfile.ZipFile(file, "w") as out:
        out.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{PACKAGE}/content-types">'
            '<Default Extension="rels" '
            'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            f'<Override PartName="/xl/workbook.xml" ContentType="{kind}sheet.main+xml"/></Types>',
        )
        out.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="r1" '
            f'Type="{OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        )
        listed = "".join(
            f'<sheet name="{name}" sheetId="{i}" r:id="r{i}"/>'
            for i, name in zip(numbers, sheets, strict=True)
        )
        out.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{MAIN}" xmlns:r="{OFFICE}"><sheets>{listed}</sheets></workbook>',
        )
        parts = "".join(
            f'<Relationship Id="r{i}" Type="{OFFICE}/worksheet" Target="worksheets/{i}.xml"/>'
            for i in numbers
        )
        out.writestr(
            "xl/_rels/workbook.xml.rels",
            f'<Relationships xmlns="{PACKAGE}/relationships">{parts}<Relationship Id="s" '
            f'Type="{OFFICE}/styles" Target="styles.xml"/></Relationships>',
        )
        formats = "".join(f'<xf numFmtId="{n}"/>' for n in (0, 14, 22))
        out.writestr(
            "xl/styles.xml", f'<styleSheet xmlns="{MAIN}"><cellXfs>{formats}</cellXfs></styleSheet>'
        )
        for i, rows in zip(numbers, sheets.values(), strict=True):
            content = "".join(f"<row>{''.join(map(xlsx_cell, row))}</row>" for row in rows)
            out.writestr(
                f"xl/worksheets/{i}.xml",
                f'<worksheet xmlns="{MAIN}"><sheetData>{content}</sheetData></worksheet>',
            )


def ods_cell(value):
    cell = '<table:table-cell office:value-type="{}" office:{}="{}"/>'
    if isinstance(value, tuple):
        day = "2024-01-31T12:00:00" if value[1] % 1 else "2024-01-31"
        return cell.format("date", "date-value", day)
    if isinstance(value, bool):
        return cell.format("boolean", "boolean-value", str(value).lower())
    if isinstance(value, int | float):
        return cell.format("float", "value", value)
    lines = "".join(f"<text:p>{escape(line)}</text:p>" for line in value.split("\n"))
    return (
        f'<table:table-cell office:value-type="string">{lines}</table:table-cell>'
        if value
        else ("<table:table-cell/>")
    )


def write_ods(file, sheets):
    """An `.ods` file: names of sheets → rows of values."""
    tables = "".join(
        f'<table:table table:name="{name}">'
        + "".join(
            f"<table:table-row>{''.join(map(ods_cell, row))}</table:table-row>" for row in rows
        )
        + "</table:table>"
        for name, rows in sheets.items()
    )
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        out.writestr("META-INF/manifest.xml", f'<manifest xmlns="{OASIS}:manifest:1.0"></manifest>')
        out.writestr(
            "content.xml",
            f'<office:document-content xmlns:office="{OASIS}:office:1.0" '
            f'xmlns:table="{OASIS}:table:1.0" xmlns:text="{OASIS}:text:1.0"><office:body>'
            f"<office:spreadsheet>{tables}</office:spreadsheet></office:body>"
            "</office:document-content>",
        )


WRITE = {".xlsx": write_xlsx, ".ods": write_ods}


@pytest.fixture(params=WRITE)
def workbook(request, tmp_path):
    """Writes a workbook and returns its path."""

    def write(**sheets):
        file = tmp_path / f"mail{request.param}"
        WRITE[request.param](file, sheets)
        return file

    return write


HEADER = ["text", "label"]


def test_cells_are_texts_as_people_see_them(workbook):
    values = [7, 7.5, 0.1 + 0.2, "007", "NA", True, DAY, MOMENT, "two\nlines", 'a "b", c', "Größe"]
    rows = [[value, "x"] for value in values]
    assert read_table(workbook(Mail=[HEADER, *rows]))["text"] == [
        "7", "7.5", "0.3", "007", "NA", "TRUE", "2024-01-31", "2024-01-31T12:00:00", "two\nlines",
        'a "b", c', "Größe",
    ]  # fmt: skip


def test_empty_rows_are_left_out_and_empty_cells_are_empty(workbook):
    file = workbook(Mail=[HEADER, ["one", ""], ["", ""], ["two", "b"]])
    assert read_table(file) == {"text": ["one", "two"], "label": ["", "b"]}
    assert list(read_batches(file, 1)) == [
        [{"text": "one", "label": ""}],
        [{"text": "two", "label": "b"}],
    ]


def test_whole_numbers_in_a_label_column_are_classes(workbook):
    rows = [[f"text {i}", i % 2] for i in range(20)]
    assert load_files(workbook(Mail=[HEADER, *rows])).labels.values == [0, 1]


def test_a_sheet_without_a_header_has_the_label_last(workbook):
    file = workbook(Mail=[[f"text {i}", "ab"[i % 2]] for i in range(20)])
    data = load_files(file, dialect=Dialect(header=False))
    assert data.labels.names == ("a", "b")
    assert len(data.train) + len(data.evaluation[""]) == 20


def test_a_sheet_can_be_named_and_the_first_is_the_default(workbook):
    file = workbook(March=[HEADER, ["one", "a"]], April=[HEADER, ["two", "b"]])
    assert read_table(file, Dialect(sheet="April"))["text"] == ["two"]
    note = "has the sheets March, April. The first one is read; name another with --sheet."
    with pytest.warns(UserWarning, match=f"^{re.escape(f'{file} {note}')}$"):
        assert read_table(file)["text"] == ["one"]
    with refused(f"{file} has no sheet 'Aprl'; did you mean 'April'? There are: March, April."):
        read_table(file, Dialect(sheet="Aprl"))


def test_an_empty_sheet_is_refused(workbook):
    file = workbook(Mail=[])
    with refused(f"{file} holds no examples. Add some, or name another file."):
        read_table(file)


def test_a_damaged_workbook_is_refused(workbook):
    file = workbook(Mail=[HEADER, ["one", "a"]])
    file.write_bytes(file.read_bytes()[:200])
    with refused(f"{file} could not be read as {file.suffix[1:]}: …. Is it complete, and is it …"):
        read_table(file)
    file.write_bytes(b"")
    with refused(f"{file} is empty. Write or download it again."):
        read_table(file)


def test_the_message_says_how_to_install_what_reads_workbooks(workbook, monkeypatch):
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    with pytest.raises(PtuneError) as told:
        read_table(workbook(Mail=[HEADER]))
    assert str(told.value) == (
        "python-calamine is not installed. Install it with `pip install 'ptune[spreadsheet]'`."
    )
