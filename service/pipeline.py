"""Where ticks run: on the event loop while they are short, else in a thread; or in two parts, so that one tick is
computed in a thread while the one before is finished, which is to say committed and told.

Owns the threads, and how long ticks took lately. Knows nothing of queues, nor of what a tick does: that is ``begin``
and ``finish``, which it was given.
"""

import asyncio
import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Generic, TypeVar

from service.clock import Clock

_SMOOTHING = 0.1  # of the latest tick in how long ticks take: a slow one counts at once, and is forgotten slowly
_LONG_S = 0.002  # of computing: handing it to a thread and back costs about a tenth of a millisecond
_LEAST = 16  # works that are worth a tick of their own: the weights are read once for each, however few they are

W = TypeVar("W")
A = TypeVar("A")
R = TypeVar("R")
_Done = tuple[Sequence[object], float | None, float]  # outcomes, and the seconds of the parts that it ran


class Overlap(Enum):
    """Whether one tick is computed while the one before is finished."""

    OFF = "never"
    DEVICE = "where a tick is too long for the event loop: computing takes no processor"
    PROCESSORS = "where computing takes long, of as many works as are worth it: it takes one, and another does the rest"


@dataclass(frozen=True, slots=True)
class Parts(Generic[W]):
    """What a tick does: ``begin``, and of what that came to ``finish`` makes the outcomes, in the order of ticks, while
    the next one may begin.

    ``over`` is told on the event loop's thread: the outcomes, or the exception that the tick ended with.
    """

    begin: Callable[[Sequence[W]], Any]
    finish: Callable[[Any], Sequence[object]]
    over: Callable[[Sequence[W], Sequence[object] | Exception], None]


@dataclass(frozen=True, slots=True)
class _UnderWay(Generic[W]):
    """A tick in a thread, and what that comes to: of the first part what it began, else outcomes; with the times."""

    tick: Sequence[W]
    done: "asyncio.Future[Any]"
    first: bool = False


class Pipeline(Generic[W]):
    """Ticks under way: what is in the threads, and when there is to be more.

    Mutable state, touched on the event loop's thread only: ``_begun`` (ticks in the first thread, the second of which
    waits there for its turn), ``_ending`` (the tick in the second one), ``_begin_s`` and ``_finish_s`` (how long the
    parts took lately).
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
        self._begun: deque[_UnderWay[W]] = deque()
        self._ending: _UnderWay[W] | None = None
        self._beginning = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._finishing = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-finish")

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
        under_way = self._under_way()
        if not self._begun:
            return max(self._least(), -(-under_way // 2)) if under_way else 1
        last = self._begun[-1]
        if self._overlap is not Overlap.PROCESSORS or len(self._begun) > 1 or not last.first:
            return sys.maxsize
        if last.done.done():
            return max(_LEAST, -(-len(last.tick) // 2))
        return max(_LEAST, min(under_way, self._max_batch))

    def room(self, waiting: int) -> int:
        """How many of those that wait the next tick takes at most: half of all, where two groups are to take turns."""
        all_of_them = waiting + self._under_way()
        turns = self._overlap is Overlap.PROCESSORS and self._apart(all_of_them // 2)
        return -(-all_of_them // 2) if turns else waiting

    def start(self, tick: Sequence[W]) -> None:
        """Run a tick, at least its first part, where ticks like the latest ones are cheapest.

        One slow tick moves the next ones to the threads.
        """
        if self.busy or self._apart(len(tick)):
            self._begun.append(_UnderWay(tick, self._in(self._beginning, self._timed, self._parts.begin, tick), True))
        elif self._is_short():
            self._over(tick, partial(self._whole, tick))
        else:
            self._begun.append(_UnderWay(tick, self._in(self._beginning, self._whole, tick)))

    def advance(self) -> None:
        """Tell of what is over, and have finished what has been computed: here where that is short, or in a thread."""
        if self._ending is not None and self._ending.done.done():
            over, self._ending = self._ending, None
            self._over(over.tick, over.done.result)
        while self._begun and self._begun[0].done.done() and self._ending is None:
            computed = self._begun.popleft()
            if not computed.first or computed.done.exception() is not None:
                self._over(computed.tick, computed.done.result)
            else:
                begun, begin_s = computed.done.result()
                self._begin_s = _slower(self._begin_s, begin_s)
                self._finish(computed.tick, begun)

    def abandon(self, *, at_once: bool) -> Sequence[W]:
        """Nobody advances any more: the works that have to be told so.

        Unless ``at_once``, a tick that is still being finished is told of when it is: it may well be committed.
        """
        works: list[W] = []
        for under_way in [*self._begun, *([] if self._ending is None else [self._ending])]:
            if at_once or under_way.first:
                works += under_way.tick
            else:
                under_way.done.add_done_callback(partial(self._told_late, under_way.tick))
        self._begun.clear()
        self._ending = None
        return works

    def close(self) -> None:
        """End the threads, when they are done with what they have."""
        self._beginning.shutdown(wait=True)
        self._finishing.shutdown(wait=True)

    # ---- inside

    def _under_way(self) -> int:
        """Works of all ticks that are under way."""
        begun = sum([len(under_way.tick) for under_way in self._begun])
        return begun if self._ending is None else begun + len(self._ending.tick)

    def _least(self) -> int:
        return _LEAST if self._overlap is Overlap.PROCESSORS else 1

    def _apart(self, works: int) -> bool:
        """Whether a tick of so many works, if it is like the latest ones, is finished apart from its computing."""
        if self._overlap is Overlap.PROCESSORS:
            return works >= _LEAST and self._begin_s >= _LONG_S
        return self._overlap is Overlap.DEVICE and not self._is_short()

    def _is_short(self) -> bool:
        return self._begin_s + self._finish_s < self._inline_s

    def _finish(self, tick: Sequence[W], begun: object) -> None:
        if self._overlap is Overlap.PROCESSORS and self._finish_s < self._inline_s:
            self._over(tick, partial(self._rest, begun))
        else:
            self._ending = _UnderWay(tick, self._in(self._finishing, self._rest, begun))

    def _over(self, tick: Sequence[W], came_to: Callable[[], _Done]) -> None:
        """Tell of a tick, and take note of how long it took; whatever it raised goes to its own works."""
        told: Sequence[object] | Exception
        try:
            told, begin_s, finish_s = came_to()
            if begin_s is not None:
                self._begin_s = _slower(self._begin_s, begin_s)
            self._finish_s = _slower(self._finish_s, finish_s)
        except Exception as error:  # noqa: BLE001 - the loop goes on
            told = error
        self._parts.over(tick, told)

    def _told_late(self, tick: Sequence[W], done: "asyncio.Future[_Done]") -> None:
        self._over(tick, done.result)

    def _whole(self, tick: Sequence[W]) -> _Done:
        """Both parts, one after the other."""
        begun, begin_s = self._timed(self._parts.begin, tick)
        outcomes, finish_s = self._timed(self._parts.finish, begun)
        return outcomes, begin_s, finish_s

    def _rest(self, begun: object) -> _Done:
        """The second part."""
        outcomes, finish_s = self._timed(self._parts.finish, begun)
        return outcomes, None, finish_s

    def _timed(self, part: Callable[[A], R], argument: A) -> tuple[R, float]:
        started = self._clock.monotonic()
        return part(argument), self._clock.monotonic() - started

    def _in(self, thread: ThreadPoolExecutor, call: Callable[..., R], *arguments: object) -> "asyncio.Future[R]":
        done = asyncio.get_running_loop().run_in_executor(thread, call, *arguments)
        done.add_done_callback(lambda _: self._wake.set())
        return done


def _slower(lately: float, seconds: float) -> float:
    """How long ticks took lately, with one more."""
    return seconds if seconds > lately or math.isinf(lately) else lately + _SMOOTHING * (seconds - lately)
