"""Where ticks run, and how many works the next one needs and takes: on the event loop while they are short, else in a
thread; or in two parts, so that one tick is computed in a thread while the one before is finished, which is to say
committed and told.

Owns the threads, and how long ticks took lately. Knows no queue, nor what a tick does: that is ``begin`` and
``finish``, which it was given.
"""

import asyncio
import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any, Generic, TypeVar

from service.clock import Clock

_SMOOTHING = 0.1  # of the latest tick in how long ticks take
_APART_S = 0.002  # of computing: handing it to a thread and back costs about a tenth of a millisecond
_LEAST = 16  # works that are worth a tick of their own: the weights are read once for each, however few they are

W = TypeVar("W")


class Overlap(Enum):
    """When one tick is computed while the one before is finished."""

    OFF = auto()
    WHEN_LONG = auto()  # for the event loop: right where computing takes no processor, as on a GPU
    IN_TURNS = (
        auto()
    )  # where computing takes long, half of many works at a time: it takes a processor, the rest another


@dataclass(frozen=True, slots=True)
class Parts(Generic[W]):
    """What a tick does: ``begin``, and of what that came to ``finish`` makes the outcomes, in the order of ticks, while
    the next one may begin.

    On the event loop's thread are told, each once: ``began``, the time at which the first part began, and then
    ``over``, the outcomes, or the exception that the tick ended with.
    """

    begin: Callable[[Sequence[W]], Any]
    finish: Callable[[Any], Sequence[object]]
    began: Callable[[Sequence[W], float], None]
    over: Callable[[Sequence[W], Sequence[object] | Exception], None]


@dataclass(frozen=True, slots=True)
class _Ran:
    """What a part, or both, came to, when that began, and how long it took: ``finish_s`` only with the second one."""

    came_to: Any
    since: float
    begin_s: float
    finish_s: float | None = None


@dataclass(frozen=True, slots=True)
class _UnderWay(Generic[W]):
    """A tick in a thread, with all of it or with its first part only."""

    tick: Sequence[W]
    ran: "asyncio.Future[_Ran]"
    first_only: bool = False


class Pipeline(Generic[W]):
    """The ticks that are under way.

    Mutable state, touched on the event loop's thread only: ``_begun`` (ticks in the first thread, the second of which
    waits there for its turn), ``_ending`` (the tick in the second one), ``_begin_s`` and ``_finish_s`` (how long the
    parts took lately: a slow one counts at once, and is forgotten slowly), ``_work_s`` (of computing, for each work of
    larger ticks, on average).
    """

    def __init__(
        self,
        parts: Parts[W],
        wake: asyncio.Event,
        *,
        name: str,
        max_batch: int,
        inline_s: float,
        overlap: Overlap,
        clock: Clock,
    ) -> None:
        """``wake`` is set when something is done in a thread: ``advance`` then goes on with it.

        ``inline_s``: what takes less than this runs on the event loop itself: handing it to a thread and sharing the
        interpreter's lock with that costs more than it holds up. 0: all in the threads.
        """
        self._parts = parts
        self._wake = wake
        self._max_batch = max_batch
        self._inline_s = inline_s
        self._overlap = overlap
        self._clock = clock
        self._begin_s = self._finish_s = math.inf
        self._work_s = 0.0
        self._begun: deque[_UnderWay[W]] = deque()
        self._ending: _UnderWay[W] | None = None
        self._beginning = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._finishing = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-finish")

    def open(self) -> None:
        """Start the threads: now it would be noticed if the system had none left."""
        self._beginning.submit(int)
        if self._overlap is not Overlap.OFF:
            self._finishing.submit(int)

    @property
    def busy(self) -> bool:
        """Whether a tick is under way."""
        return bool(self._begun) or self._ending is not None

    @property
    def wanted(self) -> int:
        """So many works have to wait for the next tick to be started.

        While one is to be finished, half as many as that one has at least: sessions that take turns are not split into
        ever smaller ticks, to run them side by side. While one is being computed, as many as are under way: then
        nothing is gained by waiting for more, and the thread goes on without waiting for the event loop.
        """
        if not self.busy:
            return 1
        under_way = self._under_way()
        if not self._begun:
            return max(_LEAST if self._overlap is Overlap.IN_TURNS else 1, -(-under_way // 2))
        last = self._begun[-1]
        if self._overlap is not Overlap.IN_TURNS or len(self._begun) > 1 or not last.first_only:
            return sys.maxsize
        if last.ran.done():
            return max(_LEAST, -(-len(last.tick) // 2))
        return max(_LEAST, min(under_way, self._max_batch))

    def room(self, waiting: int) -> int:
        """How many of those that wait the next tick takes at most: half of all, where two groups are to take turns."""
        all_of_them = waiting + self._under_way()
        turns = self._overlap is Overlap.IN_TURNS and self._is_heavy(all_of_them // 2)
        return -(-all_of_them // 2) if turns else waiting

    def start(self, tick: Sequence[W]) -> None:
        """Run a tick, at least its first part, where ticks like the latest ones are cheapest.

        One slow tick moves the next ones to the threads.
        """
        if self.busy or self._is_apart(len(tick)):
            self._begun.append(_UnderWay(tick, self._in(self._beginning, self._first, tick), first_only=True))
        elif self._is_short():
            self._is_over(tick, self._whole(tick))
        else:
            self._begun.append(_UnderWay(tick, self._in(self._beginning, self._whole, tick)))

    def advance(self) -> bool:
        """Go on with what is done: tell of a tick that is over, or have one that was computed finished, here where that
        is short, else in its thread. Whether there was any."""
        ending = self._ending
        if ending is not None:
            if not ending.ran.done():
                return False
            ran, self._ending = ending.ran.result(), None
            self._is_over(ending.tick, ran)
            return True
        if not self._begun or not self._begun[0].ran.done():
            return False
        begun = self._begun[0]
        ran = begun.ran.result()
        if begun.first_only and not isinstance(ran.came_to, Exception):
            if self._overlap is not Overlap.IN_TURNS or self._finish_s >= self._inline_s:
                self._ending = _UnderWay(begun.tick, self._in(self._finishing, self._second, ran))
                self._begun.popleft()
                return True
            ran = self._second(ran)
        self._begun.popleft()
        self._is_over(begun.tick, ran)
        return True

    def abandon(self, *, at_once: bool) -> tuple[list[W], list[W]]:
        """Nobody advances any more: the works that have to be told so, first those of which nothing was committed, then
        those that may have been.

        Unless ``at_once`` the latter are told what becomes of them, when it is known.
        """
        lost, unknown = list[W](), list[W]()
        for under_way in [*([] if self._ending is None else [self._ending]), *self._begun]:
            ran = under_way.ran
            if under_way.first_only:
                lost += under_way.tick
            elif at_once or (ran.done() and ran.exception() is not None):
                unknown += under_way.tick
            else:
                ran.add_done_callback(partial(self._is_over_late, under_way.tick))
        self._begun.clear()
        self._ending = None
        return lost, unknown

    def close(self) -> None:
        """End the threads, when they are done with what they are at."""
        self._beginning.shutdown(wait=True, cancel_futures=True)
        self._finishing.shutdown(wait=True)

    # ---- inside

    def _under_way(self) -> int:
        """Works of all ticks that are under way."""
        begun = sum([len(under_way.tick) for under_way in self._begun])
        return begun if self._ending is None else begun + len(self._ending.tick)

    def _is_apart(self, works: int) -> bool:
        """Whether a tick of so many works is to be finished apart from its computing."""
        if self._overlap is Overlap.OFF:
            return False
        return self._is_heavy(works) or (self._overlap is Overlap.WHEN_LONG and not self._is_short())

    def _is_heavy(self, works: int) -> bool:
        """Whether computing so many works is worth a thread, beside which something else is done."""
        return works >= _LEAST and works * self._work_s >= _APART_S

    def _is_short(self) -> bool:
        """Whether ticks like the latest ones may stand on the event loop."""
        return self._begin_s + self._finish_s < self._inline_s

    def _is_over(self, tick: Sequence[W], ran: _Ran) -> None:
        """Tell of a tick, and take note of how long it took."""
        self._begin_s = _slower(self._begin_s, ran.begin_s)
        if ran.finish_s is not None:
            self._finish_s = _slower(self._finish_s, ran.finish_s)
        if len(tick) >= _LEAST:
            each = ran.begin_s / len(tick)
            self._work_s += (_SMOOTHING if self._work_s else 1.0) * (each - self._work_s)
        try:
            self._parts.began(tick, ran.since)
        finally:  # whatever becomes of us, the works are told
            self._parts.over(tick, ran.came_to)

    def _is_over_late(self, tick: Sequence[W], ran: "asyncio.Future[_Ran]") -> None:
        self._is_over(tick, ran.result())

    def _first(self, tick: Sequence[W]) -> _Ran:
        began = self._clock.monotonic()
        begun = _tried(self._parts.begin, tick)
        return _Ran(begun, began, self._clock.monotonic() - began)

    def _second(self, ran: _Ran) -> _Ran:
        began = self._clock.monotonic()
        outcomes = _tried(self._parts.finish, ran.came_to)
        return _Ran(outcomes, ran.since, ran.begin_s, self._clock.monotonic() - began)

    def _whole(self, tick: Sequence[W]) -> _Ran:
        """Both parts, one after the other."""
        ran = self._first(tick)
        return ran if isinstance(ran.came_to, Exception) else self._second(ran)

    def _in(self, thread: ThreadPoolExecutor, part: Callable[..., _Ran], of: object) -> "asyncio.Future[_Ran]":
        ran = asyncio.get_running_loop().run_in_executor(thread, part, of)
        ran.add_done_callback(lambda _: self._wake.set())
        return ran


def _tried(part: Callable[..., Any], of: object) -> Any:  # noqa: ANN401 - whatever a part answers
    """What a part comes to, or what it raises: that goes to its own works, and the loop goes on."""
    try:
        return part(of)
    except Exception as error:  # noqa: BLE001 - see above
        return error


def _slower(lately: float, seconds: float) -> float:
    """How long ticks took lately, with one more: a slow one counts at once, and is forgotten slowly."""
    return seconds if seconds > lately or math.isinf(lately) else lately + _SMOOTHING * (seconds - lately)
