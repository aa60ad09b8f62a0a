"""Which works share a tick and in which order, what is refused, and how the batcher closes."""

import asyncio

import pytest

from service.batching import resolve
from service.errors import Overloaded, ShuttingDown
from tests.support.batching import Bench
from tests.support.fakes import PATIENCE_S, outcome, started


async def test_items_that_wait_share_a_tick_up_to_max_batch(bench: Bench) -> None:
    """One tick takes as many waiting items as fit, the oldest first."""
    bench.made(max_batch=3).start()
    await asyncio.gather(*bench.ask(*range(7)))
    assert bench.ticks == [[0, 1, 2], [3, 4, 5], [6]]


async def test_what_comes_during_a_tick_joins_the_next(bench: Bench) -> None:
    """There is no artificial delay: what gathers while a tick runs is the next tick."""
    held = await bench.hold()
    others = bench.ask(2, 3)
    bench.gate.open()
    await asyncio.gather(held, *others)
    assert bench.ticks == [[0], [2, 3]]


async def test_only_like_sizes_share_a_tick_and_the_oldest_goes_first(bench: Bench) -> None:
    """A work of another size class keeps its place and leads the next tick."""
    held = await bench.hold()
    works = [bench.submit(1, size=1), bench.submit(2, size=9), bench.submit(3, size=1), bench.submit(4, size=9)]
    bench.gate.open()
    await asyncio.gather(held, *[work.future for work in works])
    assert bench.ticks == [[0], [1, 3], [2, 4]]


async def test_the_time_in_the_queue_is_measured(bench: Bench) -> None:
    """What a work waited is told when its tick is formed."""
    held = await bench.hold()
    (other,) = bench.ask(1)
    bench.clock.move(3.0)
    bench.gate.open()
    await asyncio.gather(held, other)
    assert bench.counts.waits == [0.0, 3.0]


async def test_a_full_queue_refuses(bench: Bench) -> None:
    """Beyond its capacity a queue says no at once; what was accepted before may still add its next part."""
    bench.made(capacity=2).start()
    held = await bench.hold()
    waiting = bench.ask(1, 2)
    with pytest.raises(Overloaded) as refused:
        bench.submit(3)
    assert refused.value.facts == {"retry_after_s": 1}
    next_part = bench.submit(4, admitted=True)
    assert bench.batcher.waiting == 3
    bench.gate.open()
    await asyncio.gather(held, *waiting, next_part.future)


async def test_close_finishes_what_was_accepted_and_takes_nothing_new(bench: Bench) -> None:
    """At a shutdown the running tick and the waiting works are answered; later ones are refused by name."""
    held = await bench.hold()
    waiting = bench.ask(1, 2)
    (closing,) = await started(bench.batcher.close(PATIENCE_S))
    with pytest.raises(ShuttingDown):
        bench.submit(3)
    next_part = bench.submit(4, admitted=True)
    bench.gate.open()
    await closing
    assert [await f for f in (held, *waiting, next_part.future)] == [0, 2, 4, 8]


async def test_close_fails_by_name_what_is_not_done_within_the_limit(bench: Bench) -> None:
    """Beyond the limit of a shutdown nobody is left waiting either."""
    held = await bench.hold()
    waiting = bench.submit(1)

    def let_go(error: object) -> None:
        bench.gate.open()  # from here on the thread may end
        resolve(waiting.future, error)

    waiting.deliver = let_go  # type: ignore[assignment,method-assign]
    await bench.batcher.close(0.0)
    assert [type(await outcome(f)) for f in (held, waiting.future)] == [ShuttingDown] * 2


async def test_a_tick_looks_at_a_bounded_number_of_others(bench: Bench) -> None:
    """Behind a long queue of another size a work waits its turn: it is not searched for, tick by tick."""
    bench.made(max_batch=2).start()
    held = await bench.hold()
    works = [bench.submit(n, size=size) for n, size in ((1, 1), (2, 9), (3, 9), (4, 9), (5, 1))]
    bench.gate.open()
    await asyncio.gather(held, *[work.future for work in works])
    assert bench.ticks == [[0], [1], [2, 3], [4], [5]]
