"""What the user says of a foreign model that the graph does not say, or says wrongly.

Owns the ways of writing it on a command line. Knows no graph: whether the names exist is found out where they are used.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from export.errors import ExportError

NONE = "none"  # instead of an output: the input is no state; instead of an input: there are no lengths
ALL = ""  # instead of a name: every sequence tensor, or with an axis None every tensor

Axes = Mapping[str, int | None]  # the axis by the name of a tensor, or by ALL; None: it has no such axis


@dataclass(frozen=True)
class Wishes:
    """Corrections of what adoption finds by itself; what is not named is found.

    ``states`` are pairs (input, output or ``NONE``). ``constants`` and ``initial`` hold arrays by the name of an
    input: a number is an array without axes, an initial None means zeros. ``shapes`` tells the lengths of axes that the
    graph leaves open (None: varies from call to call).
    """

    states: tuple[tuple[str, str], ...] = ()
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    batch_axes: Axes = field(default_factory=dict)
    time_axes: Axes = field(default_factory=dict)
    lengths: str | None = None
    initial: Mapping[str, np.ndarray | None] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    unbatched: bool = False
    provider: str = "cpu"


def pairs(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """``in:out`` each; names that hold a colon themselves, both as many, are cut in the middle (``h:0:h_next:0``).

    A double colon is part of a name: torch calls inputs such as ``onnx::LSTM_1``.
    """
    found = []
    for text in texts:
        parts = re.split(r"(?<!:):(?!:)", text)
        half = len(parts) // 2
        if len(parts) % 2 or not all(parts):
            raise ExportError(f"--state {text} is not of the form in:out")
        found.append((":".join(parts[:half]), ":".join(parts[half:])))
    for side in zip(*found, strict=True):
        doubles = sorted({name for name in side if side.count(name) > 1 and name != NONE})
        if doubles:
            raise ExportError(f"--state names {doubles[0]!r} twice")
    return tuple(found)


def axes(option: str, texts: Sequence[str]) -> dict[str, int | None]:
    """A number or ``none`` for all sequence tensors, or ``name=`` before it for one tensor."""
    found: dict[str, int | None] = {}
    for text in texts:
        name, _, axis = text.rpartition("=")
        if axis != "none" and not axis.isdecimal():
            raise ExportError(f"{option} {text} is not a number, none, or name= before one of them")
        if (name or ALL) in found:
            raise ExportError(f"{option} is given twice for {repr(name) if name else 'all sequences'}")
        found[name or ALL] = None if axis == "none" else int(axis)
    return found


def constants(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """``name=value`` each: a number, or a file of NumPy's."""
    return {name: _value("--constant", text, value) for text, name, value in _named("--constant", texts)}


def initial(texts: Sequence[str]) -> dict[str, np.ndarray | None]:
    """``name=zeros`` or ``name=FILE.npy`` each."""
    return {
        name: None if value == "zeros" else _loaded("--initial", value) for _, name, value in _named("--initial", texts)
    }


def shapes(texts: Sequence[str]) -> dict[str, tuple[int | None, ...]]:
    """``name=2,?,64`` each: the length of every axis, ? for one that varies."""
    found: dict[str, tuple[int | None, ...]] = {}
    for text, name, value in _named("--shape", texts):
        lengths = value.split(",")
        if not all(n == "?" or (n.isdecimal() and int(n) > 0) for n in lengths):
            raise ExportError(f"--shape {text} is not of the form name=LENGTH,LENGTH,... with ? for one that varies")
        found[name] = tuple(None if n == "?" else int(n) for n in lengths)
    return found


def _named(option: str, texts: Sequence[str]) -> list[tuple[str, str, str]]:
    parts = [(text, *text.partition("=")[::2]) for text in texts]
    for text, name, value in parts:
        if not name or not value:
            raise ExportError(f"{option} {text} is not of the form name=value")
        if [other for _, other, _ in parts].count(name) > 1:
            raise ExportError(f"{option} names {name!r} twice")
    return parts


def _value(option: str, text: str, value: str) -> np.ndarray:
    if value.endswith(".npy"):
        return _loaded(option, value)
    try:
        return np.array(int(value))
    except (ValueError, OverflowError):
        pass
    try:
        return np.array(float(value))
    except ValueError as error:
        raise ExportError(f"{option} {text} is neither a number nor a file that ends in .npy") from error


def _loaded(option: str, name: str) -> np.ndarray:
    """An array from a file that may come from anywhere: nothing in it is run."""
    path = Path(name)
    if path.exists() and not path.is_file():
        raise ExportError(f"{option}: {name} cannot be read: it is no file")  # a pipe would be waited for without end
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise ExportError(f"{option}: {name} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, MemoryError) as error:
        raise ExportError(f"{option}: {name} is not an array of numbers in NumPy's format (.npy)") from error
    if not isinstance(array, np.ndarray):
        raise ExportError(f"{option}: {name} holds several arrays where one was expected (.npy)")
    return array
