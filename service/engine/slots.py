"""Which slot of a device's memory holds which row.

Owns the book-keeping only: no tensors, no ONNX Runtime. A row is known by the very object that the engine gave out when
it had computed it, and that its session hands back with the next step. So nothing has to be taken back where a row
comes to nothing: after a commit that failed or was refused, or a step that was not finite, the session comes with
another object, which is not found here.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a row of a tick lies, and where its successor goes. ``fresh``: it has to be put there first."""

    source: int
    target: int
    fresh: bool


class Slots:
    """Slots that are free, hold a row, or wait for one that is being computed.

    Called from two threads, as one tick begins while the one before ends. Mutable state, touched behind the lock only:
    ``_free`` and ``_held`` (by a row's identity: the row, so that no other can have it, and its slot; the least
    recently used first). A slot in neither belongs to a tick that runs.
    """

    def __init__(self, count: int, first: bytes) -> None:
        """Slot 0 holds the row ``first`` for good: new sessions share it."""
        self._first = first
        self._free = list(range(count - 1, 0, -1))
        self._held: OrderedDict[int, tuple[bytes, int]] = OrderedDict()
        self._lock = threading.Lock()

    def seat(self, rows: Sequence[bytes]) -> list[Seat] | None:
        """Seats for the rows of a tick; None where ticks that run leave too few.

        A row's successor takes its slot. A row that is not held, or that comes twice, takes that of a row that is not
        in this tick: what is put there first overwrites nothing that is still to be read.
        """
        with self._lock:
            own = {id(row) for row in rows} & self._held.keys()
            if len(rows) - len(own) > len(self._free) + len(self._held) - len(own):
                return None
            sources = {key: self._held.pop(key)[1] for key in own}
            successors = dict(sources)
            return [self._seat(id(row), sources, successors) for row in rows]

    def _seat(self, key: int, sources: dict[int, int], successors: dict[int, int]) -> Seat:
        target = successors.pop(key, -1)
        if target < 0:
            target = self._free.pop() if self._free else self._held.popitem(last=False)[1][1]
        if key == id(self._first):
            return Seat(0, target, fresh=False)
        return Seat(sources.get(key, target), target, fresh=key not in sources)

    def keep(self, rows: Sequence[bytes], seats: Sequence[Seat], good: Sequence[bool]) -> None:
        """The tick is over: its ``good`` rows are held where they were put, the slots of the others are free."""
        with self._lock:
            for row, seat, holds in zip(rows, seats, good, strict=True):
                if holds:
                    _, before = self._held.pop(id(row), (row, -1))  # equal rows of one byte are one object
                    self._free += [before] if before >= 0 else []
                    self._held[id(row)] = row, seat.target
                else:
                    self._free.append(seat.target)

    def give_up(self, seats: Sequence[Seat]) -> None:
        """The tick came to nothing."""
        with self._lock:
            self._free += [seat.target for seat in seats]
