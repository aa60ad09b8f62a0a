"""Where ticks run: on the event loop while they are short, else in a thread; or in two, one of which computes the next
tick while the other commits the one before.

Owns the threads, and how long ticks took lately. Knows nothing of queues, nor of what a tick does: that is ``begin``
and ``finish``, which it was given.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from service.clock import Clock

_SMOOTHING = 0.1  # of the latest tick in how long ticks take: a slow one counts at once, and is forgotten slowly

W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class Parts(Generic[W]):
    """What a tick does: ``begin``, and of what that came to ``finish`` makes the outcomes, in the order of ticks, while
    the next one may begin.

    Without ``finish`` those are the outcomes. ``over`` is told on the event loop's thread: the outcomes, or the
    exception that the tick ended with.
    """

    begin: Callable[[Sequence[W]], Any]
    finish: Callable[[Any], Sequence[object]] | None
    over: Callable[[Sequence[W], Sequence[object] | Exception], None]


@dataclass(frozen=True, slots=True)
class _Ending(Generic[W]):
    """A tick whose second part runs, since ``since``, after a first one of ``began_s``."""

    tick: Sequence[W]
    outcomes: "asyncio.Future[Sequence[object]]"
    since: float
    began_s: float


class Pipeline(Generic[W]):
    """Two ticks under way at most: one that begins, and one that is being finished.

    Mutable state, touched on the event loop's thread only: ``_ending``, ``_tick_s``.
    """

    def __init__(self, parts: Parts[W], wake: asyncio.Event, *, name: str, inline_s: float, clock: Clock) -> None:
        """``wake`` is set when a tick has been finished: ``settle`` then tells of it.

        ``inline_s``: while ticks take less than this, they run on the event loop itself: handing one to a thread and
        sharing the interpreter's lock with it costs more than such a tick holds up. 0: always in the threads.
        """
        self._parts = parts
        self._wake = wake
        self._inline_s = inline_s
        self._clock = clock
        self._tick_s = math.inf  # how long ticks took lately
        self._ending: _Ending[W] | None = None
        self._beginning = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._finishing = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-finish")

    @property
    def ending(self) -> Sequence[W]:
        """The works of the tick that is being finished."""
        return () if self._ending is None else self._ending.tick

    def ready(self, waiting: int) -> bool:
        """Whether the next tick is to run. While one is being finished, only if it would be half as large at least:
        sessions that take turns are not split into ever smaller ticks, to run them side by side."""
        return waiting > 0 and 2 * waiting >= len(self.ending)

    async def run(self, tick: Sequence[W]) -> None:
        """Run a tick, at least its first part, where ticks like the latest ones are cheapest.

        One slow tick moves the next ones to the threads.
        """
        started = self._clock.monotonic()
        inline = self._ending is None and self._tick_s < self._inline_s
        came_to: Sequence[object] | Exception
        try:
            begun = self._parts.begin(tick) if inline else await self._begun(tick)
            finish = self._parts.finish
            if finish is not None and not inline:
                await self._end(tick, finish, begun, self._clock.monotonic() - started)
                return
            came_to = begun if finish is None else finish(begun)
        except Exception as error:  # noqa: BLE001 - whatever a tick raises goes to its own works; the loop goes on
            came_to = error
        self._took(self._clock.monotonic() - started)
        self._parts.over(tick, came_to)

    async def _begun(self, tick: Sequence[W]) -> Any:  # noqa: ANN401 - whatever begin answers
        """The first part, in its thread. The tick before is told of as soon as it is finished."""
        begun = asyncio.get_running_loop().run_in_executor(self._beginning, self._parts.begin, tick)
        while self._ending is not None and not begun.done():
            await asyncio.wait([begun, self._ending.outcomes], return_when=asyncio.FIRST_COMPLETED)
            self.settle()
        return await begun

    async def _end(
        self, tick: Sequence[W], finish: Callable[[Any], Sequence[object]], begun: object, began_s: float
    ) -> None:
        """Have the second part run, after that of the tick before."""
        while self._ending is not None:
            await asyncio.wait([self._ending.outcomes])
            self.settle()
        outcomes = asyncio.get_running_loop().run_in_executor(self._finishing, finish, begun)
        outcomes.add_done_callback(lambda _: self._wake.set())
        self._ending = _Ending(tick, outcomes, self._clock.monotonic(), began_s)

    def settle(self) -> None:
        """Tell of the tick that was being finished, if it is."""
        ending = self._ending
        if ending is None or not ending.outcomes.done():
            return
        self._took(ending.began_s + self._clock.monotonic() - ending.since)
        error = ending.outcomes.exception()
        self._parts.over(ending.tick, error if isinstance(error, Exception) else ending.outcomes.result())
        self._ending = None

    def _took(self, seconds: float) -> None:
        slower = seconds > self._tick_s or math.isinf(self._tick_s)
        self._tick_s = seconds if slower else self._tick_s + _SMOOTHING * (seconds - self._tick_s)

    def abandon(self, *, at_once: bool) -> Sequence[W]:
        """Nobody settles any more: the works that have to be told so.

        Unless ``at_once``, a tick that is still being finished is told of when it is: it may well be committed.
        """
        ending = self._ending
        if ending is not None and not at_once and not ending.outcomes.done():
            ending.outcomes.add_done_callback(lambda _: self.settle())
            return ()
        works, self._ending = self.ending, None
        return works

    def close(self) -> None:
        """End the threads, when they are done with what they have."""
        self._beginning.shutdown(wait=True)
        self._finishing.shutdown(wait=True)
