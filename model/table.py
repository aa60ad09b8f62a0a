"""CSV files as training data for the task forecast: reading, and saying exactly what is wrong with a table.

Owns columns, cells and their checks. Faults are told by the line of the file, where an editor finds them. Must not know
networks or training.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from model.errors import DataError

_LARGEST = 3e38  # networks are float32
_SHOWN = 5  # problems named one by one; the rest are counted
_MISSING = ("", "na", "n/a", "nan", "null", "none")  # in any case


@dataclass(frozen=True)
class Table:
    """The chosen columns of a file, in the order of time."""

    features: tuple[str, ...]
    rows: list[list[float]]  # [rows][features]


@dataclass(frozen=True)
class _Row:
    line: int  # of the file, from 1: where the row begins
    cells: list[str]


def read_table(path: Path, target: str, features: Sequence[str], time: str | None) -> Table:
    """Read the target and the feature columns; DataError names the columns, or the lines and columns, at fault."""
    header, rows = _read_rows(path)
    chosen = [target, *features]
    twice = sorted({name for name in chosen if chosen.count(name) > 1})
    if twice:
        raise DataError(f"{_quoted(twice)} is named twice: the target is read as a feature too, and each column once")
    missing = [name for name in [*chosen, *([time] if time else [])] if name not in header]
    if missing:
        known = f"columns are {_quoted(header)}" if len(header) > 1 else f"only column is {_quoted(header)}"
        rule = "" if len(header) > 1 else ": columns are separated by commas"
        raise DataError(f"{path} has no column {_quoted(missing)}; its {known}{rule}")
    if time in chosen:
        raise DataError(f"the time column {time!r} of {path} cannot also be a target or feature")
    _check_widths(path, len(header), rows)
    if time:
        _check_increasing(path, time, header.index(time), rows)
    columns = [(name, header.index(name)) for name in chosen]
    problems: list[str] = []
    values = [_numbers(row, columns, problems) for row in rows]
    if problems:
        raise DataError(f"{path}: {_listed(problems)}")
    return Table(tuple(chosen), values)


def _read_rows(path: Path) -> tuple[list[str], list[_Row]]:
    rows, line = [], 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                rows.append(_Row(line, [cell.strip() for cell in cells]))
                line = reader.line_num + 1  # a quoted cell may reach over several lines
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8: {error}") from error
    while rows and not any(rows[-1].cells):  # editors leave blank lines at the end
        rows.pop()
    if len(rows) < 2:
        raise DataError(f"{path} needs a header and rows below it")
    header = rows[0].cells
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path} has more than one column named {_quoted(twice)}")
    return header, rows[1:]


def _check_widths(path: Path, width: int, rows: Sequence[_Row]) -> None:
    problems = [
        f"line {row.line} has {_cells(len(row.cells))}, the header {width}"
        if row.cells
        else f"line {row.line} is empty"
        for row in rows
        if len(row.cells) != width
    ]
    if problems:
        raise DataError(f"{path}: {_listed(problems)}")


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _numbers(row: _Row, columns: list[tuple[str, int]], problems: list[str]) -> list[float]:
    """The row's values; what is wrong with them is added to `problems`, a clause each."""
    values = []
    for name, index in columns:
        text = row.cells[index]
        value = _number(text)
        if value is None:
            problems.append(_problem(text, f"in line {row.line}, column {name!r}"))
        values.append(value or 0.0)
    return values


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= _LARGEST else None  # false for NaN


def _problem(text: str, place: str) -> str:
    if text.lower() in _MISSING:
        value = f"{text!r}, which counts as missing," if text else "no value"
        return f"it has {value} {place}: fill it or drop the line"
    return f"{text!r} {place}, is {'too large' if _is_large(text) else 'not a number'}"


def _is_large(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return any(letter.isdigit() for letter in text)  # 1e999, not inf


def _check_increasing(path: Path, name: str, index: int, rows: Sequence[_Row]) -> None:
    times = [(row, _moment(row.cells[index])) for row in rows]
    problems = [f"{row.cells[index]!r} in line {row.line}" for row, time in times if time is None]
    if problems:
        raise DataError(f"{path} has, in the time column {name!r}, neither numbers nor ISO dates: {_listed(problems)}")
    known = [(row.line, time) for row, time in times if time is not None]
    back = [f"line {line}" for (_, before), (line, time) in pairwise(known) if time <= before]
    if back:
        raise DataError(
            f"the time column {name!r} of {path} does not increase at {_listed(back)}: "
            "it is checked, not learned from; leave out --time if the rows are in order"
        )


def _moment(text: str) -> float | None:
    number = _number(text)
    if number is not None:
        return number
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _listed(problems: list[str]) -> str:
    shown = "; ".join(problems[:_SHOWN])
    return shown if len(problems) <= _SHOWN else f"{shown}; and so on, {len(problems)} in all"


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
