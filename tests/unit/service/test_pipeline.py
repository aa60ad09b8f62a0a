"""Two ticks under way: one is computed while the one before is committed, and each keeps all rules of the tick."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator
from functools import partial

import pytest

from service.errors import OutcomeUnknown, ShuttingDown
from tests.support.batching import Asked
from tests.support.brain import Serve
from tests.support.fakes import PATIENCE_S, outcome, started, turns
from tests.support.pipeline import Bench


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """A bench; its batcher is closed at the end."""
    made = Bench()
    made.batcher.start()
    yield made
    made.first.open()
    made.second.open()
    await made.batcher.close(PATIENCE_S)


async def test_a_tick_begins_while_the_one_before_is_being_finished(bench: Bench) -> None:
    """Nobody of the first has been told by then; each part has its thread, and neither is the event loop's."""
    first = await bench.hold(1, 2)
    second = await bench.begins(3, 4)
    assert (bench.begun, bench.finished) == ([[1, 2], [3, 4]], [])
    assert not any(future.done() for future in first)
    bench.first.open()
    bench.second.open()
    assert await asyncio.gather(*first, *second) == [2, 4, 6, 8]
    assert len({*bench.threads}) == 1
    assert len({*bench.threads[0], threading.get_ident()}) == 3


async def test_two_ticks_at_most_are_under_way_and_end_in_their_order(bench: Bench) -> None:
    """A third waits in the queue, however long the first takes, and takes along what comes meanwhile."""
    first = await bench.hold(1)
    second = await bench.begins(2)
    bench.first.open()
    third = bench.ask(3)
    await turns()
    assert bench.begun == [[1], [2]]
    more = bench.ask(4)
    bench.second.open()
    assert await asyncio.gather(*first, *second, *third, *more) == [2, 4, 6, 8]
    assert (bench.begun, bench.finished) == ([[1], [2], [3, 4]],) * 2


async def test_a_tick_is_not_made_smaller_to_run_beside_another(bench: Bench) -> None:
    """While a tick is being finished, the next one waits until half as many have come: halves stay halves."""
    first = await bench.hold(1, 2, 3, 4)
    others = bench.ask(5)
    await turns()
    assert bench.begun == [[1, 2, 3, 4]]
    bench.first.shut()
    others += bench.ask(6)
    await bench.first.reached()
    assert bench.begun[1:] == [[5, 6]]
    bench.first.open()
    bench.second.open()
    assert await asyncio.gather(*first, *others) == [2, 4, 6, 8, 10, 12]


async def test_who_is_too_few_runs_when_the_tick_before_is_finished(bench: Bench) -> None:
    """Nobody waits for others that may never come."""
    first = await bench.hold(1, 2, 3, 4)
    (other,) = bench.ask(5)
    await turns()
    bench.second.open()
    assert await asyncio.gather(*first, other) == [2, 4, 6, 8, 10]
    assert bench.begun == [[1, 2, 3, 4], [5]]


async def test_a_finished_tick_is_delivered_while_the_next_one_is_computed(bench: Bench) -> None:
    """Its callers do not wait for others."""
    first = await bench.hold(1)
    second = await bench.begins(2)
    bench.second.open()
    assert await asyncio.gather(*first) == [2]
    assert not second[0].done()


@pytest.mark.parametrize("fault", ["begin", "finish", "short"])
async def test_what_either_part_raises_goes_to_its_own_tick(bench: Bench, fault: str) -> None:
    """The other tick that is under way ends well, and the loop goes on."""
    first = await bench.hold(1)
    struck = bench.ask(fault, 2)
    await turns()
    bench.second.open()
    assert await asyncio.gather(*first) == [2]
    assert [type(await outcome(future)) for future in struck] == [RuntimeError] * 2
    assert await asyncio.gather(*bench.ask(3)) == [6]
    assert (bench.counts.failed, bench.batcher.alive) == (2, True)


async def test_close_finishes_both_ticks_that_are_under_way(bench: Bench) -> None:
    """And what waits behind them."""
    first = await bench.hold(1)
    second = await bench.begins(2)
    third = bench.ask(3)
    (closing,) = await started(bench.batcher.close(PATIENCE_S))
    bench.first.open()
    bench.second.open()
    await closing
    assert [future.result() for future in (*first, *second, *third)] == [2, 4, 6]


async def test_close_waits_for_the_last_tick_to_be_finished(bench: Bench) -> None:
    """Nothing waits any more, and the loop is still not over."""
    first = await bench.hold(1)
    (closing,) = await started(bench.batcher.close(PATIENCE_S))
    assert not closing.done()
    bench.second.open()
    await closing
    assert first[0].result() == 2


async def test_close_fails_by_name_what_is_not_done_within_the_limit(bench: Bench) -> None:
    """Both ticks that are under way, the first of which may have been committed, and what waits."""
    first = await bench.hold(1)
    second = await bench.begins(2)
    third = bench.ask(3)
    third[0].add_done_callback(lambda _: (bench.first.open(), bench.second.open()))  # from here on threads may end
    await bench.batcher.close(0.0)
    assert [type(await outcome(future)) for future in (*first, *second, *third)] == [
        OutcomeUnknown,
        ShuttingDown,
        ShuttingDown,
    ]


async def test_a_fault_of_the_loop_leaves_a_tick_that_is_being_finished_its_outcomes(bench: Bench) -> None:
    """It may be committed: nobody is told that it was not."""
    first = await bench.hold(1)

    def fault() -> int:
        raise ZeroDivisionError

    struck = Asked(2, 1, bench.clock, math.inf)
    struck.claim = fault  # type: ignore[method-assign]
    bench.batcher.submit(struck)
    assert isinstance(await outcome(struck.future), ShuttingDown)
    assert (bench.batcher.alive, bench.counts.ended, first[0].done()) == (False, 1, False)
    bench.second.open()
    assert await asyncio.gather(*first) == [2]


async def test_short_ticks_run_on_the_event_loop_in_both_parts() -> None:
    """There is nothing to gain by running them side by side: they share the interpreter."""
    bench = Bench(inline_s=1.0)
    bench.batcher.start()
    for item in range(3):
        await asyncio.gather(*bench.ask(item))
    here = threading.get_ident()
    assert [threads == (here, here) for threads in bench.threads] == [False, True, True]
    await bench.batcher.close(PATIENCE_S)


@pytest.mark.parametrize("part", ["first", "second"])
async def test_ticks_that_are_long_in_either_part_run_in_the_threads(part: str) -> None:
    """One long one moves the next ones there."""
    bench = Bench(inline_s=1.0)
    bench.batcher.start()
    for seconds in (0.1, 2.0, 0.1):
        gate = bench.first if part == "first" else bench.second
        gate.pass_through = partial(bench.clock.move, seconds)  # type: ignore[method-assign]
        await asyncio.gather(*bench.ask(1))
    here = threading.get_ident()
    assert [threads == (here, here) for threads in bench.threads] == [False, True, False]
    await bench.batcher.close(PATIENCE_S)


async def test_no_tick_runs_on_the_event_loop_while_another_is_being_finished() -> None:
    """However short it is, its commit comes after that one's."""
    bench = Bench(inline_s=1.0)
    bench.batcher.start()
    first = await bench.hold(1)  # nobody knows yet how long ticks are
    second = await bench.begins(2)
    bench.first.open()
    await bench.second.next()  # the first one is over, and was short; the second stands at the gate
    assert await asyncio.gather(*first) == [2]
    third = bench.ask(3)
    await turns()
    bench.second.open()
    assert await asyncio.gather(*second, *third) == [4, 6]
    assert bench.finished == [[1], [2], [3]]
    assert all(threading.get_ident() not in threads for threads in bench.threads)
    await bench.batcher.close(PATIENCE_S)


async def test_other_sessions_are_computed_while_a_commit_runs(serve: Serve) -> None:
    """Neither is acknowledged before it is committed, and the commits keep the order of the ticks."""
    brain = serve(overlap="on")
    one, other = await brain.create(), await brain.create()
    brain.store.gate.shut()
    (first,) = await started(brain.add(one, 1))
    await brain.store.gate.reached()
    engine = brain.engines["adder"]
    engine.gate.shut()
    (second,) = await started(brain.add(other, 2))
    await engine.gate.reached()
    assert not first.done()
    engine.gate.open()
    await turns()
    assert not second.done()
    brain.store.gate.open()
    assert (await first, await second) == ([1], [2])
    assert [[record.identity.id for record in commit] for commit in brain.store.commits] == [[one], [other]]


async def test_ticks_of_few_sessions_do_not_overlap_unless_told(serve: Serve) -> None:
    """Where processors compute, too, it is of many only that half is worth a tick of its own."""
    brain = serve()
    one, other = await brain.create(), await brain.create()
    brain.store.gate.shut()
    (first,) = await started(brain.add(one, 1))
    await brain.store.gate.reached()
    (second,) = await started(brain.add(other, 2))
    await turns()
    assert len(brain.engines["adder"].ticks) == 1
    brain.store.gate.open()
    assert (await first, await second) == ([1], [2])
