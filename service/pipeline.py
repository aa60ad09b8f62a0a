"""Where ticks run: on the event loop while they are short, else in a thread; or in two parts, so that one tick is
computed in a thread while the one before is finished, which is to say committed and told.

Owns the threads, and how long ticks took lately. Knows nothing of queues, nor of what a tick does: that is ``begin``
and ``finish``, which it was given.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from service.clock import Clock

_SMOOTHING = 0.1  # of the latest tick in how long ticks take: a slow one counts at once, and is forgotten slowly
_LONG_S = 0.002  # of computing: handing it to a thread and back costs about a tenth of a millisecond
_LEAST = 16  # works that are worth a tick of their own: the weights are read once for each, however few they are

W = TypeVar("W")
A = TypeVar("A")
R = TypeVar("R")


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


@dataclass(slots=True)
class _Ending(Generic[W]):
    """A tick that has been computed. ``outcomes``, and how long they took: it is being finished in a thread."""

    tick: Sequence[W]
    begun: object
    outcomes: "asyncio.Future[tuple[Sequence[object], float]] | None" = None


class Pipeline(Generic[W]):
    """Two ticks under way at most: one that begins, and one that is to be finished.

    Mutable state, touched on the event loop's thread only: ``_ending``, ``_begin_s`` and ``_finish_s`` (how long the
    parts took lately).
    """

    def __init__(
        self, parts: Parts[W], wake: asyncio.Event, *, name: str, inline_s: float, overlap: Overlap, clock: Clock
    ) -> None:
        """``wake`` is set when a tick has been finished in a thread: ``settle`` then tells of it.

        ``inline_s``: what takes less than this runs on the event loop itself: handing it to a thread and sharing the
        interpreter's lock with that costs more than it holds up. 0: all in the threads.
        """
        self._parts = parts
        self._wake = wake
        self._inline_s = inline_s
        self._overlap = overlap
        self._clock = clock
        self._begin_s = self._finish_s = math.inf
        self._ending: _Ending[W] | None = None
        self._beginning = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._finishing = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-finish")

    @property
    def ending(self) -> Sequence[W]:
        """The works of the tick that has been computed and is not over."""
        return () if self._ending is None else self._ending.tick

    def ready(self, waiting: int) -> bool:
        """Whether the next tick is to run. While one is to be finished, only if it would be half as large at least:
        sessions that take turns are not split into ever smaller ticks, to run them side by side."""
        if self._ending is None:
            return waiting > 0
        least = _LEAST if self._overlap is Overlap.PROCESSORS else 1
        return waiting >= max(least, len(self._ending.tick) / 2)

    def room(self, waiting: int) -> int:
        """How many of those that wait the next tick takes at most: half of all, where two groups are to take turns."""
        under_way = waiting + len(self.ending)
        turns = self._overlap is Overlap.PROCESSORS and self._apart(under_way // 2)
        return -(-under_way // 2) if turns else waiting

    async def run(self, tick: Sequence[W]) -> None:
        """Run a tick, at least its first part, where ticks like the latest ones are cheapest.

        One slow tick moves the next ones to the threads.
        """
        came_to: Sequence[object] | Exception
        try:
            if self._ending is not None or self._apart(len(tick)):
                await self._compute(tick)
                return
            if self._is_short():
                done = self._whole(tick)
            else:
                done = await self._in(self._beginning, self._whole, tick)
            came_to, begin_s, finish_s = done
            self._begin_s, self._finish_s = _slower(self._begin_s, begin_s), _slower(self._finish_s, finish_s)
        except Exception as error:  # noqa: BLE001 - whatever a tick raises goes to its own works; the loop goes on
            came_to = error
        self._parts.over(tick, came_to)

    def finish(self) -> None:
        """Have the tick that was computed finished, if that has not begun: here where it is short, or in its thread."""
        ending = self._ending
        if ending is None or ending.outcomes is not None:
            return
        if self._overlap is Overlap.PROCESSORS and self._finish_s < self._inline_s:
            came_to: Sequence[object] | Exception
            try:
                came_to, took = self._timed(self._parts.finish, ending.begun)
                self._finish_s = _slower(self._finish_s, took)
            except Exception as error:  # noqa: BLE001 - as in run
                came_to = error
            self._end(came_to)
        else:
            ending.outcomes = self._in(self._finishing, self._timed, self._parts.finish, ending.begun)
            ending.outcomes.add_done_callback(lambda _: self._wake.set())

    def settle(self) -> None:
        """Tell of the tick that was being finished in its thread, if it is."""
        ending = self._ending
        if ending is None or ending.outcomes is None or not ending.outcomes.done():
            return
        error = ending.outcomes.exception()
        if isinstance(error, Exception):
            self._end(error)
            return
        outcomes, took = ending.outcomes.result()
        self._finish_s = _slower(self._finish_s, took)
        self._end(outcomes)

    def abandon(self, *, at_once: bool) -> Sequence[W]:
        """Nobody settles any more: the works that have to be told so.

        Unless ``at_once``, a tick that is still being finished is told of when it is: it may well be committed.
        """
        ending = self._ending
        if ending is not None and not at_once and ending.outcomes is not None and not ending.outcomes.done():
            ending.outcomes.add_done_callback(lambda _: self.settle())
            return ()
        works, self._ending = self.ending, None
        return works

    def close(self) -> None:
        """End the threads, when they are done with what they have."""
        self._beginning.shutdown(wait=True)
        self._finishing.shutdown(wait=True)

    # ---- inside

    def _apart(self, works: int) -> bool:
        """Whether a tick of so many works, if it is like the latest ones, is finished apart from its computing."""
        if self._overlap is Overlap.PROCESSORS:
            return works >= _LEAST and self._begin_s >= _LONG_S
        return self._overlap is Overlap.DEVICE and not self._is_short()

    def _is_short(self) -> bool:
        return self._begin_s + self._finish_s < self._inline_s

    async def _compute(self, tick: Sequence[W]) -> None:
        """The first part, in its thread, while the tick before is finished; that is told of as soon as it is."""
        computed = self._in(self._beginning, self._timed, self._parts.begin, tick)
        self.finish()
        while (outcomes := self._being_finished()) and not computed.done():
            await asyncio.wait([computed, outcomes], return_when=asyncio.FIRST_COMPLETED)
            self.settle()
        begun, took = await computed
        self._begin_s = _slower(self._begin_s, took)
        while outcomes := self._being_finished():
            await asyncio.wait([outcomes])
            self.settle()
        self._ending = _Ending(tick, begun)

    def _being_finished(self) -> "asyncio.Future[tuple[Sequence[object], float]] | None":
        return None if self._ending is None else self._ending.outcomes

    def _end(self, came_to: Sequence[object] | Exception) -> None:
        tick, self._ending = self.ending, None
        self._parts.over(tick, came_to)

    def _whole(self, tick: Sequence[W]) -> tuple[Sequence[object], float, float]:
        """Both parts, one after the other: the outcomes, and how long each took."""
        begun, begin_s = self._timed(self._parts.begin, tick)
        outcomes, finish_s = self._timed(self._parts.finish, begun)
        return outcomes, begin_s, finish_s

    def _timed(self, part: Callable[[A], R], argument: A) -> tuple[R, float]:
        started = self._clock.monotonic()
        return part(argument), self._clock.monotonic() - started

    @staticmethod
    def _in(thread: ThreadPoolExecutor, call: Callable[..., R], *arguments: object) -> "asyncio.Future[R]":
        return asyncio.get_running_loop().run_in_executor(thread, call, *arguments)


def _slower(lately: float, seconds: float) -> float:
    """How long ticks took lately, with one more."""
    return seconds if seconds > lately or math.isinf(lately) else lately + _SMOOTHING * (seconds - lately)
