"""A batcher whose ticks have two parts, on a bench."""

import asyncio
import math
import threading
from collections.abc import Sequence

from service.batching import Batcher
from service.errors import OutcomeUnknown
from service.pipeline import Overlap
from service.sizes import same_length
from tests.support.batching import Asked, Counts
from tests.support.fakes import PATIENCE_S, Clock, Gate


class Bench:
    """A batcher whose ticks double numbers in their second part; each part can be held at a gate of its own."""

    def __init__(self, inline_s: float = 0.0, overlap: Overlap = Overlap.WHEN_LONG, max_batch: int = 8) -> None:
        self.clock, self.counts = Clock(), Counts()
        self.first, self.second = Gate(), Gate()
        self.begun: list[list[object]] = []
        self.finished: list[list[object]] = []
        self.threads: list[tuple[int, int]] = []
        self.batcher: Batcher[Asked] = Batcher(
            self.begin,
            finish=self.finish,
            name="test",
            max_batch=max_batch,
            capacity=100,
            like=same_length,
            clock=self.clock,
            observer=self.counts,
            inline_s=inline_s,
            overlap=overlap,
            unknown=OutcomeUnknown("unknown"),
        )

    def begin(self, calls: Sequence[Asked]) -> tuple[list[object], int]:
        """The first part."""
        items = [call.item for call in calls]
        self.begun.append(items)
        self.first.pass_through()
        if "begin" in items:
            raise RuntimeError("begin")
        return items, threading.get_ident()

    def finish(self, begun: tuple[list[object], int]) -> list[object]:
        """The second part."""
        items, thread = begun
        self.threads.append((thread, threading.get_ident()))
        self.second.pass_through()
        self.finished.append(items)
        if "finish" in items:
            raise RuntimeError("finish")
        if "short" in items:
            return []
        return [item * 2 if isinstance(item, int) else item for item in items]

    def ask(self, *items: object) -> list["asyncio.Future[object]"]:
        """Queue items; their futures."""
        calls = [Asked(item, 1, self.clock, math.inf, self.counts.drop) for item in items]
        for call in calls:
            self.batcher.submit(call)
        return [call.future for call in calls]

    async def answers(self, *items: object) -> list[object]:
        """Queue items, and what they come to; a test that waits for ever fails."""
        return await asyncio.wait_for(asyncio.gather(*self.ask(*items)), PATIENCE_S)

    async def hold(self, *items: object) -> list["asyncio.Future[object]"]:
        """Have a tick of these items stand at the gate of its second part."""
        self.second.shut()
        futures = self.ask(*items)
        await self.second.reached()
        return futures

    async def begins(self, *items: object) -> list["asyncio.Future[object]"]:
        """Queue items whose tick begins now, and is held there."""
        self.first.shut()
        futures = self.ask(*items)
        await self.first.reached()
        return futures
