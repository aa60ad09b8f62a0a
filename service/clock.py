"""Time: wall-clock for what is stored (expiry), monotonic for what is measured (queues, deadlines)."""

import time
from typing import Protocol


class Clock(Protocol):
    """What the service asks of time; tests own one that they move by hand."""

    def now(self) -> float:
        """Seconds since the epoch, for expiry: it means the same after a restart and on another machine."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back, for durations and deadlines."""
        ...


class SystemClock:
    """The machine's own clocks."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
