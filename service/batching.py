"""When: a bounded queue, the forming of ticks, and delivery.

Owns the order in which work runs and the loop that runs it. Knows no arrays, no HTTP and no stores: what a tick does
is ``begin`` and ``finish``, which it was given, and where they run is up to ``pipeline.py``.

    submit -> queue -> claim -> [begin -> finish] -> deliver
       \\                 \\              \\
        Overloaded        dropped        the exception goes to the works of its own tick; the loop goes on
"""

import asyncio
import heapq
import itertools
import logging
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

from service.clock import Clock
from service.errors import Overloaded, ServiceError, ShuttingDown
from service.pipeline import Overlap, Parts, Pipeline
from service.work import Work

log = logging.getLogger(__name__)

W = TypeVar("W", bound=Work)


def as_it_is(outcomes: Sequence[object]) -> Sequence[object]:
    """The second part of ticks that have only one."""
    return outcomes


class Observer(Protocol):
    """What the batcher reports; every call comes before the works are delivered."""

    def waited(self, seconds: float) -> None:
        """A work had waited so long when its tick began to run."""
        ...

    def tick_failed(self, works: int) -> None:
        """A tick came to nothing."""
        ...

    def loop_ended(self) -> None:
        """The loop ended though it was not told to: nothing will be served from this queue again."""
        ...


class _Tick(list[W]):
    """Works that run together, and since when each had waited."""

    def __init__(self) -> None:
        super().__init__()
        self.since: list[float] = []

    def take(self, work: W) -> None:
        """Have a work start in this tick."""
        self.append(work)
        self.since.append(work.since)
        work.start()


class Batcher(Generic[W]):
    """Runs waiting works in ticks, works of like size together, the oldest first, and short ones between long ones.

    Mutable state, touched on the event loop's thread only: ``_arrived`` (works not asked for their size yet),
    ``_sorted`` (by size class, the works that wait, each with its ticket: a heap, the oldest first), ``_held`` (how
    many those are), ``_running`` (works of the tick that is formed), ``_last`` (its size class), ``_enough`` (how many
    have to wait for the next tick to begin), ``_closing``.
    """

    def __init__(
        self,
        begin: Callable[[Sequence[W]], Any],
        *,
        finish: Callable[[Any], Sequence[object]] = as_it_is,
        overlap: Overlap = Overlap.OFF,
        name: str,
        max_batch: int,
        capacity: int,
        like: Callable[[int], int],
        clock: Clock,
        observer: Observer,
        max_cells: int = sys.maxsize,
        inline_s: float = 0.0,
        unknown: ServiceError | None = None,
    ) -> None:
        """``like`` maps a size to its class, the largest size in it: only works of one class share a tick.

        ``max_cells`` bounds works x class of a tick of more than one work, and so how long others wait behind it.
        ``finish`` makes the outcomes of what ``begin`` came to, while the next tick may begin: see ``Overlap``;
        ``inline_s``: see ``Pipeline``. ``unknown``: what works are told whose tick could not be waited for at the end.
        """
        self._max_batch = max_batch
        self._max_cells = max_cells
        self._capacity = capacity
        self._like = like
        self._clock = clock
        self._observer = observer
        self._unknown = unknown or ShuttingDown("the service is shutting down")
        self._arrived: deque[W] = deque()
        self._sorted: dict[int, list[tuple[int, W]]] = {}
        self._held = 0
        self._tickets = itertools.count()
        self._last = 0
        self._running: Sequence[W] = ()
        self._enough = 1
        self._closing = False
        self._wake = asyncio.Event()
        parts = Parts(begin, finish, self._began, self._over)
        self._pipeline = Pipeline(
            parts, self._wake, name=name, max_batch=max_batch, inline_s=inline_s, overlap=overlap, clock=clock
        )
        self._loop_task: asyncio.Task[None] | None = None
        self.alive = False
        self.ran = 0  # works so far, this tick's included

    def start(self) -> None:
        """Start the loop, in the running event loop."""
        self._pipeline.open()
        self.alive = True
        self._loop_task = asyncio.create_task(self._serve())
        self._loop_task.add_done_callback(self._ended)

    @property
    def waiting(self) -> int:
        """Works in the queue."""
        return len(self._arrived) + self._held

    def submit(self, work: W, *, admitted: bool = False) -> None:
        """Queue a work; ``admitted`` for the next part of something that was accepted before.

        Raises:
            Overloaded: the queue is full.
            ShuttingDown: the loop is closed or has ended.
        """
        if not self.alive or (self._closing and not admitted):
            raise ShuttingDown("the service is shutting down")
        if len(self._arrived) + self._held >= self._capacity and not admitted:
            raise Overloaded("too many requests are waiting for this model", retry_after_s=1)
        self._arrived.append(work)
        if len(self._arrived) + self._held >= self._enough and not self._wake.is_set():
            self._wake.set()

    async def close(self, within_s: float) -> None:
        """Take no new work, finish what was accepted within the limit, then end the loop; the rest fails by name."""
        self._closing = True
        self._wake.set()
        if self._loop_task is not None:
            await asyncio.wait([self._loop_task], timeout=within_s)
            self._loop_task.cancel()
            await asyncio.wait([self._loop_task])
        self._pipeline.close()

    async def _serve(self) -> None:
        while await self._is_ready():
            tick = self._form(self._pipeline.room(self.waiting))
            if tick:
                self._pipeline.start(tick)
                self._running = ()

    async def _is_ready(self) -> bool:
        """Wait until the next tick is to begin; False: there will be none.

        The event loop has a turn before every tick that runs on it, since works may come back with the last delivery,
        and after every one that was told.
        """
        turned = False
        while True:
            self._enough = self._pipeline.wanted
            ready = self.waiting >= self._enough
            if ready and (turned or self._pipeline.busy):
                return True
            went_on = not ready and self._pipeline.advance()
            if self._closing and not self.waiting and not self._pipeline.busy:
                return False
            turned = True
            if ready or went_on:
                await asyncio.sleep(0)
            else:
                self._wake.clear()
                await self._wake.wait()

    def _form(self, room: int) -> "_Tick[W]":
        """Take the works of the next tick out of the queue, ``room`` of them at most.

        At no moment is a work neither in the tick nor in the queue: see ``_ended``.
        """
        self._running = tick = _Tick[W]()
        if self._sorted or not self._take_steps(tick, room):
            fresh = next(self._tickets)
            self._sort_arrived()
            if tick and 1 in self._sorted:
                self._fill(tick, 1, fresh, room)
            while self._sorted and not tick:
                self._fill(tick, self._leading(), fresh, room)
        self.ran += len(tick)
        return tick

    def _take_steps(self, tick: "_Tick[W]", room: int) -> bool:
        """Take single steps right from the head of what arrived, as long as there is nothing else: as ``_fill`` would,
        since nothing is shorter, but without sorting. False: a longer one stands at the head, which is to be sorted."""
        room = min(room, self._max_batch, self._max_cells)
        while self._arrived and len(tick) < room:
            work = self._arrived[0]
            size = work.claim()
            if size > 1:
                return False
            if size == 1:
                self._last = 1
                tick.take(work)
            self._arrived.popleft()
        return True

    def _sort_arrived(self) -> None:
        """Ask what is new for its size, once, so that a short work is found however much waits before it."""
        while self._arrived:
            size = self._arrived[0].claim()
            like = self._like(size)
            work = self._arrived.popleft()
            if size > 0:
                heapq.heappush(self._sorted.setdefault(like, []), (next(self._tickets), work))
                self._held += 1

    def _leading(self) -> int:
        """The size class of the next tick: the oldest work's, or after a tick of longer ones the shortest.

        So one tick of long works at most stands before a single step; and as only ever shorter works go before the
        oldest, in turn, it comes to it soon: no stream of new works starves another.
        """
        shortest = min(self._sorted)
        if shortest < self._last:
            return shortest
        return min(self._sorted, key=lambda like: self._sorted[like][0][0])

    def _fill(self, tick: "_Tick[W]", size_class: int, fresh: int, room: int) -> None:
        """Move works of one class into the tick, the oldest first; tickets above ``fresh`` were asked just now."""
        waiting = self._sorted[size_class]
        room = min(room, self._max_batch, max(1, self._max_cells // size_class))
        while waiting and len(tick) < room:
            ticket, work = waiting[0]
            size = size_class if ticket > fresh else work.claim()
            like = self._like(size)
            heapq.heappop(waiting)
            self._held -= 1
            if size > 0 and like != size_class:  # it has grown or shrunk while it waited
                heapq.heappush(self._sorted.setdefault(like, []), (ticket, work))
                self._held += 1
            elif size > 0:
                self._last = size_class
                tick.take(work)
        if not waiting:
            del self._sorted[size_class]

    def _began(self, tick: Sequence[W], at: float) -> None:
        for since in cast("_Tick[W]", tick).since:
            self._observer.waited(at - since)

    def _over(self, tick: Sequence[W], came_to: Sequence[object] | Exception) -> None:
        if tick is self._running:
            self._running = ()
        if not isinstance(came_to, Exception) and len(came_to) != len(tick):
            came_to = RuntimeError(f"{len(came_to)} outcomes for {len(tick)} works")
        if not isinstance(came_to, Exception):
            self._deliver(tick, came_to)
            return
        if not isinstance(came_to, ServiceError):
            log.error("a tick failed", exc_info=came_to)
        try:
            self._observer.tick_failed(len(tick))
        finally:
            self._deliver(tick, [came_to] * len(tick))

    def _deliver(self, tick: Sequence[W], outcomes: Sequence[object]) -> None:
        for work, outcome in zip(tick, outcomes, strict=True):
            try:
                work.deliver(outcome)
            except Exception:
                log.exception("a delivery failed")  # it must not take the others' answers with it

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """The loop is over: by ``close``, or by a fault, which turns readiness off and leaves nobody waiting."""
        self.alive = False
        waiting = sorted(itertools.chain(*self._sorted.values()), key=lambda ticketed: ticketed[0])
        faulty = not self._closing and not task.cancelled()  # cancelled: the event loop itself is being torn down
        lost, unknown = self._pipeline.abandon(at_once=not faulty)
        left = [*lost, *self._running, *(work for _, work in waiting), *self._arrived]
        self._running = ()
        self._sorted.clear()
        self._held = 0
        self._arrived.clear()
        if faulty:
            log.critical("the loop of a batcher ended", exc_info=task.exception())
            self._observer.loop_ended()
        self._deliver(unknown, [self._unknown] * len(unknown))
        self._deliver(left, [ShuttingDown("the service is shutting down")] * len(left))
