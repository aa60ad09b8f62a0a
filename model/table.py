"""CSV files as training data for the task forecast: reading, and saying exactly what is wrong with a table.

Owns columns, cells and their checks. Rows are counted as a spreadsheet counts them: the header is row 1. Must not know
networks or training.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from model.errors import DataError

_LARGEST = 3e38  # networks are float32
_SHOWN = 5  # problems named one by one; the rest are counted


@dataclass(frozen=True)
class Table:
    """The chosen columns of a file, in the order of time."""

    features: tuple[str, ...]
    rows: list[list[float]]  # [rows][features]


def read_table(path: Path, target: str, features: Sequence[str], time: str | None) -> Table:
    """Read the target and the feature columns; DataError names the columns, or the rows and columns, at fault."""
    header, cells = _read_cells(path)
    chosen = list(dict.fromkeys([target, *features]))  # the target first, nothing twice
    missing = [name for name in [*chosen, *([time] if time else [])] if name not in header]
    if missing:
        raise DataError(f"{path} has no column {_quoted(missing)}; its columns are {_quoted(header)}")
    if time in chosen:
        raise DataError(f"the time column {time!r} of {path} cannot also be a target or feature")
    if time:
        _check_increasing(path, time, [_cell(row, header.index(time)) for row in cells])
    columns = [(name, header.index(name)) for name in chosen]
    problems: list[str] = []
    rows = [_numbers(number, row, columns, problems) for number, row in enumerate(cells, start=2)]
    if problems:
        raise DataError(f"{path} has {_listed(problems)}")
    return Table(tuple(chosen), rows)


def _read_cells(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8: {error}") from error
    while lines and not any(cell.strip() for cell in lines[-1]):  # editors leave blank lines at the end
        lines.pop()
    if len(lines) < 2:
        raise DataError(f"{path} needs a header and rows below it")
    header = [name.strip() for name in lines[0]]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path} has more than one column named {_quoted(twice)}")
    return header, lines[1:]


def _numbers(number: int, row: list[str], columns: list[tuple[str, int]], problems: list[str]) -> list[float]:
    values = []
    for name, index in columns:
        text = _cell(row, index)
        value = _number(text)
        if value is None:
            problems.append(f"{_fault(text)} in row {number}, column {name!r}")
        values.append(value or 0.0)
    return values


def _cell(row: list[str], index: int) -> str:
    return row[index].strip() if index < len(row) else ""


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= _LARGEST else None  # false for NaN


def _fault(text: str) -> str:
    if text.lower() in ("", "na", "n/a", "nan", "null", "none"):
        return "no value"
    return f"{text!r}, which is not a finite number in single precision,"


def _check_increasing(path: Path, name: str, column: list[str]) -> None:
    times = [_moment(text) for text in column]
    problems = [f"{text!r} in row {row}" for row, text in enumerate(column, start=2) if times[row - 2] is None]
    if problems:
        raise DataError(f"{path} has, in the time column {name!r}, neither numbers nor ISO dates: {_listed(problems)}")
    known = [time for time in times if time is not None]
    back = [f"row {row + 2}" for row in range(1, len(known)) if known[row] <= known[row - 1]]
    if back:
        raise DataError(f"the time column {name!r} of {path} does not increase at {_listed(back)}")


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
