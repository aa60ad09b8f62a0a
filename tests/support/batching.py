"""A batcher on a bench: its ticks double numbers, can be held at a gate, and are written down."""

import asyncio
from collections.abc import Callable, Sequence

from service.batching import Batcher
from service.sizes import same_length
from service.work import Call
from tests.support.fakes import Clock, Gate


class Counts:
    """An observer that notes what it is told, and whether a watched future was finished by then."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.failed = self.dropped = self.ended = 0
        self.watched: list[asyncio.Future[object]] = []
        self.told_too_late = False

    def waited(self, seconds: float) -> None:
        """See ``Observer``."""
        self._note()
        self.waits.append(seconds)

    def tick_failed(self, works: int) -> None:
        """See ``Observer``."""
        self._note()
        self.failed += works

    def drop(self) -> None:
        """Told by a ``Call``."""
        self._note()
        self.dropped += 1

    def loop_ended(self) -> None:
        """See ``Observer``."""
        self._note()
        self.ended += 1

    def _note(self) -> None:
        self.told_too_late |= any(future.done() for future in self.watched)


class Asked(Call[object]):
    """A work whose methods a test can replace."""


class Bench:
    """A batcher that doubles numbers, whose ticks can be held at a gate; ``boom`` makes a tick raise."""

    def __init__(self) -> None:
        self.clock, self.gate, self.counts = Clock(), Gate(), Counts()
        self.ticks: list[list[object]] = []
        self.like: Callable[[int], int] = same_length
        self.batcher = self.made()

    def made(self, capacity: int = 100, max_batch: int = 8) -> Batcher[Asked]:
        """This bench's batcher, made anew."""
        self.batcher = Batcher(
            self.run,
            name="test",
            max_batch=max_batch,
            capacity=capacity,
            like=lambda size: self.like(size),
            clock=self.clock,
            observer=self.counts,
        )
        return self.batcher

    def run(self, calls: Sequence[Asked]) -> Sequence[object]:
        """One tick."""
        items = [call.item for call in calls]
        self.ticks.append(items)
        self.gate.pass_through()
        if "boom" in items:
            raise RuntimeError("boom")
        if "short" in items:
            return ["one outcome only"]
        return [item * 2 if isinstance(item, int) else item for item in items]

    def submit(self, item: object, size: int = 1, wait_s: float = 60.0, *, admitted: bool = False) -> Asked:
        """Queue an item."""
        call = Asked(item, size, self.clock, self.clock.monotonic() + wait_s, self.counts.drop)
        self.batcher.submit(call, admitted=admitted)
        return call

    def ask(self, *items: object) -> list["asyncio.Future[object]"]:
        """Queue items; their futures."""
        return [self.submit(item).future for item in items]

    async def hold(self) -> "asyncio.Future[object]":
        """Have a tick with the item 0 stand at the gate; its future."""
        self.gate.shut()
        (held,) = self.ask(0)
        await self.gate.reached()
        return held
