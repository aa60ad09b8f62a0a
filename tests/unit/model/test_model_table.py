"""CSV files: what is wrong is named by line and column."""

from pathlib import Path

import pytest

from model.errors import DataError
from model.table import read_table


def _file(folder: Path, content: str) -> Path:
    path = folder / "plant.csv"
    path.write_text(content, encoding="utf-8")
    return path


def test_target_comes_first(tmp_path: Path) -> None:
    """The target is the first column whatever its place in the file."""
    path = _file(tmp_path, "a,b,c\n1,2,3\n4,5,6\n\n")
    table = read_table(path, "c", ["a"], None)
    assert table.features == ("c", "a")
    assert table.rows == [[3.0, 1.0], [6.0, 4.0]]


def test_faulty_cells_are_named_and_counted(tmp_path: Path) -> None:
    """Missing and non-numeric cells are told by line and column, the first few of them, with the total."""
    path = _file(tmp_path, "a,b\n1,2\n,x\nn/a,1e39\n5,'1.234'\ninf,NaN\n6,7\n")
    with pytest.raises(DataError) as caught:
        read_table(path, "a", ["b"], None)
    said = str(caught.value)
    assert "it has no value in line 3, column 'a': fill it or drop the line" in said
    assert "'x' in line 3, column 'b', is not a number" in said
    assert "it has 'n/a', which counts as missing, in line 4, column 'a': fill it or drop the line" in said
    assert "'1e39' in line 4, column 'b', is too large" in said
    assert "7 in all" in said
    assert "NaN" not in said


@pytest.mark.parametrize(
    ("cell", "said"), [("inf", "not a number"), ("-1e999", "too large"), ("1.2.3", "not a number")]
)
def test_only_numbers_can_be_too_large(tmp_path: Path, cell: str, said: str) -> None:
    """What is written out in digits but does not fit is too large; anything else is not a number."""
    with pytest.raises(DataError, match=f"in line 2, column 'a', is {said}$"):
        read_table(_file(tmp_path, f"a\n{cell}\n"), "a", [], None)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("1,2\n3\n", "line 3 has 1 cell, the header 2"),
        ("1,2,3\n", "line 2 has 3 cells"),
        ("1,2\n\n3,4\n", "line 3 is empty"),
    ],
)
def test_rows_have_the_width_of_the_header(tmp_path: Path, rows: str, said: str) -> None:
    """A row with another number of cells is told by its line, whichever column was chosen."""
    with pytest.raises(DataError, match=said):
        read_table(_file(tmp_path, "a,b\n" + rows), "a", [], "b")


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    """A quoted cell that reaches over two lines counts as two, as in an editor."""
    with pytest.raises(DataError, match="in line 4, column 'a'"):
        read_table(_file(tmp_path, 'a,b\n1,"x\ny"\nz,\n'), "a", [], None)


def test_a_column_is_named_once(tmp_path: Path) -> None:
    """The target as a further feature, or a feature twice, is refused by name."""
    path = _file(tmp_path, "a,b\n1,2\n")
    for features in (["a"], ["b", "b"]):
        with pytest.raises(DataError, match=f"'{features[0]}' is named twice"):
            read_table(path, "a", features, None)


def test_cells_of_other_columns_do_not_matter(tmp_path: Path) -> None:
    """A column that nobody chose may hold anything."""
    path = _file(tmp_path, "a,remark\n1,ok\n2,\n")
    assert read_table(path, "a", [], None).rows == [[1.0], [2.0]]


def test_unknown_columns_are_named_with_the_known(tmp_path: Path) -> None:
    """An unknown target, feature or time column is told together with the columns there are."""
    path = _file(tmp_path, "a,b\n1,2\n")
    with pytest.raises(DataError, match="no column 'x', 'y', 'z'; its columns are 'a', 'b'"):
        read_table(path, "x", ["y"], "z")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_are_told_of(tmp_path: Path, separator: str) -> None:
    """A header that is one cell, since something else stands between its names, is told what should stand there."""
    path = _file(tmp_path, f"a{separator}b\n1{separator}2\n")
    with pytest.raises(DataError) as caught:
        read_table(path, "a", ["b"], None)
    shown = repr(f"a{separator}b")
    assert f"no column 'a', 'b'; its only column is {shown}: columns are separated by commas" in str(caught.value)


@pytest.mark.parametrize(
    "times",
    [["1", "2", "3.5"], ["2024-01-01", "2024-01-02T10:00", "2024-01-03 10:00:00"], ["2024-01-01T00:00Z", "2e9", "3e9"]],
)
def test_increasing_times_are_accepted(tmp_path: Path, times: list[str]) -> None:
    """Numbers and ISO dates that increase are a time column, which is not a feature."""
    path = _file(tmp_path, "t,a\n" + "".join(f"{time},1\n" for time in times))
    assert read_table(path, "a", [], "t").features == ("a",)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (["1", "2", "2"], "line 4: it is checked, not learned from; leave out --time"),
        (["2024-01-02", "2024-01-01", "2024-01-03"], "line 3"),
        (["1", "soon", "3"], "'soon' in line 3"),
        (["1", "", "3"], "'' in line 3"),
    ],
)
def test_bad_times_are_named_by_line(tmp_path: Path, times: list[str], said: str) -> None:
    """A time that does not increase, or is no time, is told by its line."""
    path = _file(tmp_path, "t,a\n" + "".join(f"{time},1\n" for time in times))
    with pytest.raises(DataError, match=said):
        read_table(path, "a", [], "t")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "header and rows"),
        ("a,b\n", "header and rows"),
        ("a,a\n1,2\n", "more than one column named 'a'"),
        ('a,b\n"1,2\n', "not a CSV file"),
    ],
)
def test_file_that_is_no_table_is_refused(tmp_path: Path, content: str, said: str) -> None:
    """A file without rows, with doubled columns or broken quotes is refused in a sentence."""
    with pytest.raises(DataError, match=said):
        read_table(_file(tmp_path, content), "a", [], None)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(DataError, match=r"none\.csv"):
        read_table(tmp_path / "none.csv", "a", [], None)


def test_time_cannot_be_a_feature(tmp_path: Path) -> None:
    """A column is either time or learned from."""
    with pytest.raises(DataError, match="cannot also be"):
        read_table(_file(tmp_path, "a\n1\n"), "a", [], "a")
