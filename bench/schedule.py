"""When requests are due in an open loop: Poisson arrivals, and a timer that is fine enough to keep to them."""

import asyncio
import ctypes
import os
import random
import struct
from collections.abc import Callable, Iterator

_MONOTONIC, _NONBLOCKING, _ABSOLUTE = 1, 0o4000, 1  # of timerfd_create(2)


def poisson(rate: float, begin: float, chance: random.Random) -> Iterator[float]:
    """Times at which requests are due from ``begin`` on, ``rate`` per second in the mean, without memory."""
    at = begin
    while True:
        at += chance.expovariate(rate)
        yield at


class Timer:
    """Calls back at a time of ``time.perf_counter``, to some 50 µs: the loops' own timers count in milliseconds.

    Linux's timerfd, which Python offers from 3.13 on only.
    """

    def __init__(self, fire: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.timerfd_create(_MONOTONIC, _NONBLOCKING)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._fire = fire
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._file, self._expired)

    def set(self, at: float) -> None:
        """Call back then, at once if that is past."""
        seconds, nanoseconds = divmod(int(max(at, 1e-9) * 1e9), 10**9)
        self._libc.timerfd_settime(self._file, _ABSOLUTE, struct.pack("4l", 0, 0, seconds, nanoseconds), None)

    def close(self) -> None:
        """Never call back again."""
        self._loop.remove_reader(self._file)
        os.close(self._file)

    def _expired(self) -> None:
        os.read(self._file, 8)
        self._fire()
