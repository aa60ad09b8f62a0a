"""What a session is between two steps: its record, the answers kept for repeats, and the layout of its row.

Owns the bytes: how state tensors become one contiguous row and how answers are written down. Knows nothing of who
stores them or which engine runs.
"""

import random
import struct
import sys
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from service.errors import UndecodableState

Tensors = Mapping[str, np.ndarray]
# One row's chunk: an array [steps, *step shape] for each input of the signature, in its order.
Chunk = tuple[np.ndarray, ...]


class Answer(Struct, frozen=True):
    """What a request was answered, kept so that its repeat gets the same bytes.

    ``outputs`` is None where they were too large to keep; of a long stream the first ``dropped`` steps are no longer
    kept. ``start`` is the position the request applied at and ``digest`` tells whether another request is its repeat.
    ``ordinal`` counts the answers of one live session and decides how long this one is kept; it means nothing after a
    restart and is not stored.
    """

    start: int
    steps: int
    digest: bytes
    expires_at: float
    outputs: Tensors | None
    seed: int | None = None
    dropped: int = 0
    ordinal: int = -1

    @property
    def position(self) -> int:
        """Where the session stood after the request."""
        return self.start + self.steps

    def size(self) -> int:
        """Bytes of the outputs."""
        size = 0
        if self.outputs is not None:
            for array in self.outputs.values():
                size += array.nbytes
        return size


class Identity(Struct, frozen=True):
    """What never changes in a session's life."""

    id: str
    owner: str
    model: str
    version: str
    fingerprint: str
    ttl_s: float
    created_at: float
    gates: int = 0  # of so many last steps the gates can be asked for


class Record(Struct, frozen=True):
    """A session as it is committed.

    ``revision`` grows with every commit, also where ``position`` goes back to 0: a store compares it, so that of two
    writers that started from the same record one is refused. It grew by ``leap`` with this one, which is not stored.
    ``row`` holds the packed state tensors, ``output`` the last step's first output as raw bytes (b"" at position 0),
    which generation continues from. ``trace`` is what shows the gates of the last steps (service/trace.py), b"" where
    nobody asked for them.
    """

    identity: Identity
    position: int
    revision: int
    row: bytes
    output: bytes
    answers: tuple[Answer, ...]
    expires_at: float
    trace: bytes = b""
    leap: int = 1


def leap() -> int:
    """By how much the next revision is larger: at random, so that no revision comes twice.

    A store that fell back, as at a failover, goes on with another history. Were revisions counted, a replica that still
    has the old one would soon find its own revision there, and overwrite what is none of its own.
    """
    return 1 + random.getrandbits(32)


class RowLayout:
    """How the state tensors of one session lie in its row: one after the other, little-endian, C order."""

    def __init__(self, fields: Sequence[tuple[str, str, tuple[int, ...], int | None]]) -> None:
        """``fields``: (name, dtype, shape of one row, batch axis of the graph's tensor) of each state tensor.

        A tensor whose batch axis is None holds one row: such a layout gathers and scatters one row at a time.
        """
        self._row = np.dtype([(name, np.dtype(dtype).newbyteorder("<"), shape) for name, dtype, shape, _ in fields])
        self._bytes = np.dtype((np.void, self._row.itemsize))
        # How [rows, *row shape] becomes the graph's tensor, and back.
        batched = [(name, len(shape) + 1, axis) for name, _, shape, axis in fields if axis is not None]
        self._to_graph = {name: axes_moved(rank, (0,), (axis,)) for name, rank, axis in batched}
        self._to_rows = {name: axes_moved(rank, (axis,), (0,)) for name, rank, axis in batched}
        self._single = [name for name, _, _, axis in fields if axis is None]
        # A kernel may not expect numbers that stand where a bool before them has left them: those are copied.
        self._fields: Mapping[str, Any] = self._row.fields or {}
        sizes = [(field[1], field[0].base.itemsize) for field in self._fields.values()]
        aligned = all(start % size == 0 and self._row.itemsize % size == 0 for start, size in sizes)
        self._copy = None if aligned else True
        # Of a single row each tensor is a part of it as it lies, and in the graph's axes one axis of 1 is added.
        self._parts = [
            (name, self._row[name].base, shape if axis is None else (*shape[:axis], 1, *shape[axis:]), start)
            for (name, _, shape, axis), (start, _) in zip(fields, sizes, strict=True)
        ]
        self._first: list[tuple[str, Any]] = [
            (name, (...,) if axis is None else (*[slice(None)] * axis, 0)) for name, _, _, axis in fields
        ]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self._row.itemsize

    def pack_one(self, tensors: Tensors) -> bytes:
        """The row of one session from its tensors (each without a batch axis)."""
        row = np.zeros(1, self._row)
        for name in self._fields:
            row[name][0] = tensors[name]
        return row.tobytes()

    def unpack_one(self, row: bytes) -> dict[str, np.ndarray]:
        """The tensors of one session, each without a batch axis; the inverse of ``pack_one``."""
        packed = np.frombuffer(row, self._row)
        return {name: packed[name][0, ...] for name in self._fields}

    def gather(self, rows: Sequence[bytes]) -> dict[str, np.ndarray]:
        """State tensors of a batch, rows along each tensor's batch axis.

        Raises:
            UndecodableState: a row of another size; it is never padded or replaced.
        """
        for size in set(map(len, rows)) - {self.row_bytes}:
            raise UndecodableState(f"a stored row has {size} bytes where the model's rows have {self.row_bytes}")
        if len(rows) == 1 and self._copy is None:
            return {name: np.ndarray(shape, dtype, rows[0], start) for name, dtype, shape, start in self._parts}
        batch = np.frombuffer(b"".join(rows), self._row)  # [rows]
        tensors = {
            name: np.array(batch[name].transpose(axes), order="C", copy=self._copy)
            for name, axes in self._to_graph.items()
        }
        for name in self._single:
            tensors[name] = np.array(batch[name][0, ...], order="C", copy=self._copy)
        return tensors

    def scatter(self, tensors: Tensors, rows: int) -> list[bytes]:
        """The rows of the first ``rows`` sessions of a batch; the inverse of ``gather``."""
        if rows == 1 and sys.byteorder == "little":
            return [b"".join([tensors[name][first].tobytes() for name, first in self._first])]
        batch = np.empty(rows, self._row)
        for name, axes in self._to_rows.items():
            batch[name] = tensors[name].transpose(axes)[:rows]
        for name in self._single:
            batch[name][0] = tensors[name]
        return cast("list[bytes]", batch.view(self._bytes).tolist())  # in one call


def axes_moved(rank: int, source: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation for ``transpose`` that moves axes as ``numpy.moveaxis`` does, found out once."""
    axes = [axis for axis in range(rank) if axis not in source]
    for at, axis in sorted(zip(target, source, strict=True)):
        axes.insert(at, axis)
    return tuple(axes)


def encode_answers(answers: Sequence[Answer]) -> bytes:
    """Answers as MessagePack, for a store."""
    return _pack([[a.start, a.steps, a.digest, a.expires_at, _listed(a.outputs), a.seed, a.dropped] for a in answers])


def decode_answers(blob: bytes) -> tuple[Answer, ...]:
    """The inverse of ``encode_answers``; UndecodableState when the bytes are not what it wrote."""
    try:
        return tuple(
            Answer(start, steps, digest, expires_at, _arrays(outputs), seed, dropped)
            for start, steps, digest, expires_at, outputs, seed, dropped in msgspec.msgpack.decode(blob)
        )
    except (msgspec.MsgspecError, ValueError, TypeError, AttributeError, SyntaxError) as error:  # NumPy's among them
        raise UndecodableState("the stored answers of the session cannot be decoded") from error


def checksum(r: Record, answers: bytes) -> int:
    """A CRC-32 of all that is stored of a session, so that flipped bits are found instead of served, and so is a record
    that is found under the id of another; with a mark above its 32 bits, which those of earlier versions have not."""
    i = r.identity
    whose = "\0".join((i.id, i.owner, i.model, i.version, i.fingerprint)).encode()
    numbers = _numbers(r.position, r.revision, r.expires_at, i.ttl_s, i.created_at, i.gates)
    # One call: each costs more than copying a row.
    return _WHOLE | zlib.crc32(b"".join((whose, numbers, r.row, r.output, answers, r.trace)))


def intact(r: Record, answers: bytes, check: int) -> bool:
    """Whether a stored session's checksum fits what was read."""
    if check >= _WHOLE:
        return check == checksum(r, answers)
    return check == zlib.crc32(b"".join((_counters(r.position, r.revision), r.row, r.output, answers, r.trace)))


def whole(r: Record, answers: bytes, check: int) -> Record:
    """A stored session from what was read, ``r`` without its answers; UndecodableState where that is damaged."""
    if not intact(r, answers, check):
        raise UndecodableState("the stored state of the session is damaged: its checksum does not fit")
    return replace(r, answers=decode_answers(answers))


_WHOLE = 1 << 32
_numbers = struct.Struct("<qqdddq").pack
_counters = struct.Struct("<qq").pack  # what checksums of earlier versions held of the numbers, and nobody's name
_pack = msgspec.msgpack.Encoder().encode


def _listed(outputs: Tensors | None) -> dict[str, Any] | None:
    if outputs is None:
        return None
    return {name: [_name_of(a.dtype), a.shape, a.tobytes()] for name, a in outputs.items()}


@cache
def _name_of(dtype: "np.dtype[Any]") -> str:
    """NumPy makes the name anew each time it is asked."""
    return dtype.str


def _arrays(outputs: dict[str, Any] | None) -> Tensors | None:
    if outputs is None:
        return None
    return {name: np.ndarray(shape, dtype, raw) for name, (dtype, shape, raw) in outputs.items()}
