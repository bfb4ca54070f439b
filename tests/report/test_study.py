"""A study's report: numbers for readers and for machines, and what the console shows of it."""

import csv
import io
import json
from typing import NamedTuple

import pytest
from rich.console import Console

from alignlab.errors import DataError
from alignlab.report.cells import cell_text, rows_table
from alignlab.report.console import print_summary
from alignlab.report.study import build_study
from alignlab.report.tables import TextTable, read_markdown, to_latex, to_markdown


class Table(NamedTuple):
    rows: list
    note: str


class Curve(NamedTuple):
    lines: dict
    x: str
    y: str
    log_x: bool = False
    log_y: bool = False
    note: str = ""


ROWS = [
    {"loss": "dpo", "gap": 1.23456789e-07, "cases": 12000, "held": True, "error": "-"},
    {"loss": "a|b_c", "gap": 0.123456789, "cases": 7, "held": False, "error": 1.5},
]
LONG = [{"case": number, "value": number / 7} for number in range(31)]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    build_study(
        folder,
        title="Where losses <aim>",
        tables={
            "optima": Table(ROWS, "gap: in nats."),
            "long_one": Table(LONG, "n."),
            "broken": Table([], "None was."),
        },
        curves={
            "optima": Curve(
                {"dpo": [(1, 1.0), (10, 0.1)], "ipo": [(1, 0.0), (10, 0.5)]}, "n", "r", log_y=True, note="R."
            ),
            "alone": Curve({"x": [(0, 1), (1, 2)]}, "n", "m"),
        },
        notes=["DPO reaches\n the optimum."],
        next_commands=["alignlab experiments=exact/dpo"],
    )
    return folder


def printed(folder, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    print_summary(folder, console=console)
    return console.export_text()


def test_every_file_of_a_study_is_written(study):
    found = {path.relative_to(study / "report").as_posix() for path in study.rglob("*") if path.is_file()}
    tables = {
        f"tables/{name}.{end}" for name in ("optima", "long_one", "broken") for end in ("csv", "json", "md", "tex")
    }
    figures = {f"figures/{name}.{end}" for name in ("optima", "alone") for end in ("png", "csv")}
    assert found == tables | figures | {"report.md", "report.html", "report.json"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345678, "12345678"),
        (0.1, "0.1"),
        (0.123456, "0.1235"),
        (12.3456, "12.35"),
        (9999.4, "9999"),
        (12345.6, "12346"),
        (123456789.0, "1.235e+08"),
        (0.001, "0.001"),
        (0.00012345, "1.234e-04"),
        (-5e-324, "-4.941e-324"),
        (0.0, "0"),
        (True, "yes"),
        (None, "-"),
        (float("nan"), "nan"),
        ("two\n lines", "two lines"),
    ],
)
def test_a_number_has_four_significant_digits_and_an_integer_all(value, text):
    assert cell_text(value) == text


def test_the_markdown_aligns_words_left_and_numbers_right(study):
    lines = (study / "report" / "tables" / "optima.md").read_text().splitlines()
    assert lines[:4] == [
        "| loss   |       gap | cases | held | error |",
        "| ------ | --------: | ----: | ---- | ----: |",
        "| dpo    | 1.235e-07 | 12000 | yes  |     - |",
        "| a\\|b_c |    0.1235 |     7 | no   |   1.5 |",
    ]
    assert lines[-1] == "gap: in nats."


def test_the_csv_has_full_precision(study):
    rows = list(csv.DictReader(io.StringIO((study / "report" / "tables" / "optima.csv").read_text())))
    assert list(rows[0]) == ["loss", "gap", "cases", "held", "error"]
    assert float(rows[0]["gap"]) == 1.23456789e-07 and float(rows[1]["gap"]) == 0.123456789
    assert (rows[0]["cases"], rows[1]["loss"], rows[0]["held"]) == ("12000", "a|b_c", "yes")
    points = (study / "report" / "figures" / "optima.csv").read_text().splitlines()
    assert points[:3] == ["line,x,y", "dpo,1.0,1.0", "dpo,10.0,0.1"]


def test_latex_columns_follow_the_kind_of_each():
    table = rows_table(ROWS, note="n", name="t")
    assert r"\begin{tabular}{lrrlr}" in to_latex(table) and r"a|b\_c" in to_latex(table)


def test_the_report_holds_notes_tables_curves_and_commands(study):
    page = (study / "report" / "report.md").read_text()
    assert page.startswith("# Where losses <aim>\n\n## Findings\n\n- DPO reaches the optimum.\n")
    assert page.index("## optima") < page.index("figures/optima.png") < page.index("## long one")
    assert "Left out: 1 of 4 points" in page  # 0 on a logarithmic axis
    assert "No rows. None was." in page
    html = (study / "report" / "report.html").read_text()
    assert "<h1>Where losses &lt;aim&gt;</h1>" in html and html.count("data:image/png") == 2
    assert json.loads((study / "report" / "report.json").read_text())["tables"] == ["optima", "long_one", "broken"]


def test_the_console_shows_tables_notes_paths_and_commands(study):
    text = printed(study)
    assert text.startswith("Where losses <aim>\n")
    assert "1.235e-07" in text and "a|b_c" in text
    assert "broken: No rows. None was." in text
    assert "- DPO reaches the optimum." in text
    assert str(study / "report" / "report.html") in text
    assert text.rstrip().endswith("alignlab experiments=exact/dpo")


def test_of_a_long_table_the_console_shows_the_head_and_says_where_the_rest_is(study):
    text = printed(study)
    assert "│   29 │" in text and "│   30 │" not in text
    assert f"the first 30 of 31 rows; all are in {study / 'report' / 'tables' / 'long_one.csv'}" in text
    assert text.count("the first 30") == 1


def test_a_wide_table_loses_columns_on_the_console_and_never_digits(tmp_path):
    rows = [{"case": "a sentence that has to wrap somewhere", **{f"figure_{i}": 0.12344 + i for i in range(12)}}]
    tables = {"wide": Table(rows, "")}
    build_study(tmp_path, title="t", tables=tables, curves={}, notes=[], next_commands=[])
    text = printed(tmp_path)
    table = [line for line in text.splitlines() if line.startswith(("│", "┃"))]
    assert max(map(len, table)) <= 80 and all(line.endswith(("│", "┃")) for line in table)
    shown = [name for name in rows[0] if any(name in line for line in table)]
    assert 3 < len(shown) < 13 and "4.123" in text and "Next:" not in text
    assert f"more columns in {tmp_path / 'report' / 'tables' / 'wide.csv'}: figure_{len(shown) - 1}" in text
    assert "figure_11" in "".join(line for line in printed(tmp_path, width=200).splitlines() if line.startswith("┃"))


def test_what_was_written_as_markdown_is_read_back():
    table = TextTable(("a", "b c"), (("x|y", "1"), ("", "-2")), "note", words=(True, False))
    assert read_markdown(to_markdown(table)) == table


def test_names_become_file_names_and_two_may_not_be_one_file(tmp_path):
    settings = {"title": "t", "curves": {}, "notes": [], "next_commands": []}
    build_study(tmp_path, tables={"loss/KL at 0.1": Table(ROWS, "")}, **settings)
    assert (tmp_path / "report" / "tables" / "loss-KL-at-0.1.csv").is_file()
    with pytest.raises(DataError, match=r"'a b' and 'a/b' would both be the file a-b"):
        build_study(tmp_path, tables={"a b": Table(ROWS, ""), "a/b": Table(ROWS, "")}, **settings)


def test_rows_of_different_columns_are_named(tmp_path):
    rows = [{"a": 1, "b": 2}, {"a": 1}]
    with pytest.raises(DataError, match="table t: row 1 has the columns a, row 0 has a, b"):
        build_study(tmp_path, title="", tables={"t": Table(rows, "")}, curves={}, notes=[], next_commands=[])


def test_a_curve_without_points_is_said_and_not_drawn(tmp_path):
    curve = Curve({"dpo": [(1, 0.0)], "ipo": []}, "x", "y", log_y=True, note="Zero.")
    build_study(tmp_path, title="t", tables={}, curves={"none": curve}, notes=[], next_commands=[])
    assert "No points. Zero." in (tmp_path / "report" / "report.md").read_text()
    assert not (tmp_path / "report" / "figures" / "none.png").exists()
