"""Short ticks run on the event loop, long ones in the batcher's thread."""

import asyncio
import math
import threading
from collections.abc import Sequence

import pytest

from service.batching import Batcher
from service.sizes import same_length
from service.work import Call
from tests.support.batching import Counts
from tests.support.fakes import Clock


async def where(durations: Sequence[float], inline_s: float) -> list[bool]:
    """For ticks that take so long, one after the other: whether each ran on the event loop's own thread."""
    here, clock, ran = threading.get_ident(), Clock(), list[bool]()

    def run(works: Sequence[Call[float]]) -> list[object]:
        ran.append(threading.get_ident() == here)
        clock.move(works[0].item)
        return [None]

    batcher: Batcher[Call[float]] = Batcher(
        run,
        name="test",
        max_batch=1,
        capacity=9,
        like=same_length,
        clock=clock,
        observer=Counts(),
        inline_s=inline_s,
    )
    batcher.start()
    for seconds in durations:
        work = Call(seconds, 1, clock, math.inf)
        batcher.submit(work)
        await work.future
    await batcher.close(1.0)
    return ran


@pytest.mark.parametrize(
    ("durations", "inline_s", "on_the_loop"),
    [
        ([1, 1, 1], 2, [False, True, True]),  # the first tells how long they are
        ([1, 3, 1, 1], 2, [False, True, False, False]),  # a locked database, say: the next ones wait in the thread
        ([1, 3, *[1] * 30], 2, [False, True, *[False] * 7, *[True] * 23]),  # until it is forgotten
        ([1, 1], 0, [False, False]),  # switched off
    ],
)
async def test_where_ticks_run(durations: list[float], inline_s: float, on_the_loop: list[bool]) -> None:
    """While ticks are short they are not handed to a thread; one long tick moves the next ones there at once."""
    assert await where(durations, inline_s) == on_the_loop


async def test_a_tick_that_raises_on_the_loop_fails_its_own_works_only() -> None:
    """Wherever it ran, what a tick raises goes to its works, and the loop goes on."""

    def run(works: Sequence[Call[bool]]) -> list[object]:
        if works[0].item:
            raise ZeroDivisionError
        return ["done"]

    clock = Clock()
    batcher: Batcher[Call[bool]] = Batcher(
        run, name="test", max_batch=1, capacity=9, like=same_length, clock=clock, observer=Counts(), inline_s=1.0
    )
    batcher.start()
    for fails in (False, True, False):
        work = Call(fails, 1, clock, math.inf)
        batcher.submit(work)
        if fails:
            with pytest.raises(ZeroDivisionError):
                await work.future
        else:
            assert await work.future == "done"
    await batcher.close(1.0)


class Tireless(Call[None]):
    """A work that goes into the next tick again as soon as it is delivered, a thousand times."""

    def __init__(self, batcher: "Batcher[Tireless]") -> None:
        super().__init__(None, 1, Clock(), math.inf)
        self.batcher, self.delivered = batcher, 0

    def deliver(self, outcome: object) -> None:
        """See ``Work``."""
        self.delivered += 1
        if self.delivered < 1000:
            self.batcher.submit(self, admitted=True)


@pytest.mark.parametrize("works", [1, 2, 3])
async def test_works_that_come_back_leave_the_event_loop_its_turns(works: int) -> None:
    """However many come back with each delivery, everybody else has a turn before every tick."""
    batcher: Batcher[Tireless] = Batcher(
        lambda works: [None] * len(works),
        name="test",
        max_batch=2,
        capacity=9,
        like=same_length,
        clock=Clock(),
        observer=Counts(),
        inline_s=1.0,
    )
    batcher.start()
    tireless = [Tireless(batcher) for _ in range(works)]
    for work in tireless:
        batcher.submit(work)
    while not tireless[0].delivered:  # noqa: ASYNC110 - the first tick runs in the thread
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert 1 <= tireless[0].delivered <= 7
    await batcher.close(1.0)
    assert {work.delivered for work in tireless} == {1000}
