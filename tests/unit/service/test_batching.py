"""Which works share a tick and in which order, what is refused, and how the batcher closes."""

import asyncio
from itertools import pairwise

import pytest

from service.batching import Batcher
from service.errors import Overloaded, ShuttingDown
from service.work import resolve
from tests.support.batching import Asked, Bench
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


def bounded(bench: Bench, max_cells: int) -> Batcher[Asked]:
    """The bench's batcher with a bound on cells."""
    bench.batcher = Batcher(
        bench.run,
        name="test",
        max_batch=8,
        max_cells=max_cells,
        capacity=100,
        like=bench.like,
        clock=bench.clock,
        observer=bench.counts,
    )
    return bench.batcher


async def test_a_tick_is_bounded_by_its_cells(bench: Bench) -> None:
    """Works x size class of a tick stay within ``max_cells``, however many works ``max_batch`` would allow."""
    bounded(bench, 20).start()
    held = await bench.hold()
    works = [bench.submit(n, size=9) for n in range(1, 6)] + [bench.submit(n) for n in range(6, 15)]
    bench.gate.open()
    await asyncio.gather(held, *[work.future for work in works])
    assert sorted(map(len, bench.ticks)) == [1, 1, 1, 2, 2, 8]


async def test_a_work_larger_than_the_bound_runs_alone(bench: Bench) -> None:
    """At least one row always runs."""
    bounded(bench, 4).start()
    held = await bench.hold()
    works = [bench.submit(n, size=9) for n in (1, 2)]
    bench.gate.open()
    await asyncio.gather(held, *[work.future for work in works])
    assert bench.ticks == [[0], [1], [2]]


async def test_a_short_work_waits_for_one_long_tick_at_most(bench: Bench) -> None:
    """Behind any number of long works a single step has the next tick, and then the oldest goes on."""
    bounded(bench, 18).start()
    longs = [bench.submit(n, size=9) for n in range(1, 8)]
    bench.gate.shut()
    await bench.gate.reached()
    single = bench.submit(100)
    bench.gate.open()
    await asyncio.gather(single.future, *[work.future for work in longs])
    assert bench.ticks == [[1, 2], [100], [3, 4], [5, 6], [7]]


async def test_segments_that_continue_do_not_starve_single_steps_nor_these_them(bench: Bench) -> None:
    """Where each long work is followed by its next part and each single step by another, their ticks take turns."""
    bounded(bench, 9).start()
    rounds, done = 6, []

    async def stream(item: int, size: int) -> None:
        for _ in range(rounds):
            await bench.submit(item, size=size, admitted=True).future
            done.append(item)

    held = await bench.hold()
    streams = await started(*[stream(n, 9) for n in (1, 2, 3)], stream(100, 1))
    bench.gate.open()
    await asyncio.gather(held, *streams)
    singles = [n for n, tick in enumerate(bench.ticks) if tick == [100]]
    longs = [n for n, tick in enumerate(bench.ticks) if tick in ([1], [2], [3])]
    assert [after - before for before, after in pairwise(singles)] == [2] * (rounds - 1)
    assert [bench.ticks[n] for n in longs[:6]] == [[1], [2], [3]] * 2
    assert longs[0] <= 2


async def test_a_work_that_grows_while_it_waits_runs_with_its_like(bench: Bench) -> None:
    """The size that counts is that at the tick: requests may have been folded since."""
    bench.made(max_batch=2).start()
    held = await bench.hold()
    works = [bench.submit(n, size=size) for n, size in ((1, 9), (2, 9), (3, 9), (4, 20), (5, 20))]
    await bench.gate.next()
    works[2].size = 20
    bench.gate.open()
    await asyncio.gather(held, *[work.future for work in works])
    assert bench.ticks == [[0], [1, 2], [3, 4], [5]]
