"""The rules of the tick that the batcher keeps (the others stand in test_step.py and test_sessions_folding.py)."""

import asyncio
from typing import Any

import pytest

from service.errors import DeadlineExceeded, ShuttingDown
from service.work import resolve
from tests.support.batching import Bench
from tests.support.fakes import PATIENCE_S, outcome


async def test_each_item_gets_its_own_outcome(bench: Bench) -> None:
    """Rule 1: the future is part of the item, so the outcome of each reaches the one who asked."""
    assert await asyncio.gather(*bench.ask(*range(20))) == [2 * i for i in range(20)]


async def test_a_caller_that_goes_during_its_tick_takes_no_answer_with_it(bench: Bench) -> None:
    """Rule 2: delivery skips finished futures; everybody else in the tick is answered."""
    held = await bench.hold()
    first, gone, last = bench.ask(1, 2, 3)
    bench.gate.open()
    await held
    bench.gate.shut()
    await bench.gate.reached()
    gone.cancel()
    bench.gate.open()
    assert [await first, await last] == [2, 6]
    assert bench.ticks[-1] == [1, 2, 3]


async def test_a_result_for_a_finished_future_is_left_alone(bench: Bench) -> None:
    """Rule 2: the one way to a caller does nothing where the caller has its result or has gone."""
    (future,) = bench.ask(4)
    assert await future == 8
    resolve(future, "another")
    resolve(future, RuntimeError("another"))
    assert future.result() == 8


async def test_a_delivery_that_fails_takes_no_other_with_it(bench: Bench) -> None:
    """Rule 2: the works behind one whose delivery raises get their outcomes."""
    held = await bench.hold()
    broken, good = bench.submit(1), bench.submit(2)
    broken.deliver = _fault  # type: ignore[assignment,method-assign]
    bench.gate.open()
    await held
    assert await good.future == 4
    assert bench.batcher.alive


async def test_cancelled_items_are_dropped_before_the_tick(bench: Bench) -> None:
    """Rule 3: who has gone before the tick is formed is in no tick, and is counted."""
    held = await bench.hold()
    gone, stays = bench.ask(1, 2)
    gone.cancel()
    bench.gate.open()
    await asyncio.gather(held, stays)
    assert bench.ticks == [[0], [2]]
    assert bench.counts.dropped == 1


async def test_overdue_items_are_dropped_before_the_tick(bench: Bench) -> None:
    """Rule 3: who has waited beyond its deadline is told so and never runs."""
    held = await bench.hold()
    late, stays = bench.submit(1, wait_s=5.0), bench.submit(2, wait_s=7.0)
    bench.clock.move(6.0)
    bench.gate.open()
    await asyncio.gather(held, stays.future)
    with pytest.raises(DeadlineExceeded):
        await late.future
    assert bench.ticks == [[0], [2]]
    assert bench.counts.dropped == 1


async def test_the_exception_of_a_tick_goes_to_its_own_items(bench: Bench) -> None:
    """Rule 4: a tick that raises answers its own items with it; the next tick runs."""
    held = await bench.hold()
    struck, beside = bench.ask("boom", 1)
    bench.gate.open()
    assert await held == 0
    assert [str(await outcome(f)) for f in (struck, beside)] == ["boom", "boom"]
    assert await bench.ask(5)[0] == 10
    assert bench.batcher.alive
    assert bench.counts.failed == 2


async def test_a_tick_that_answers_for_too_few_has_failed(bench: Bench) -> None:
    """Rule 4: where outcomes are missing nobody knows whose they are: all items of the tick get the error."""
    held = await bench.hold()
    futures = bench.ask("short", 1)
    bench.gate.open()
    await held
    assert [type(await outcome(f)) for f in futures] == [RuntimeError] * 2
    assert await bench.ask(5)[0] == 10


async def test_failures_are_counted_before_they_are_told(bench: Bench) -> None:
    """Rule 5: whoever reads the metrics after an answer finds the answer in them."""
    (failed,) = bench.counts.watched = bench.ask("boom")
    assert isinstance(await outcome(failed), RuntimeError)
    assert (bench.counts.failed, bench.counts.told_too_late) == (1, False)


async def test_drops_are_counted_before_they_are_told(bench: Bench) -> None:
    """Rule 5: whoever is told of a deadline is counted already."""
    late = bench.submit(1, wait_s=1.0).future
    bench.counts.watched = [late]
    bench.clock.move(2.0)
    assert isinstance(await outcome(late), DeadlineExceeded)
    assert (bench.counts.dropped, bench.counts.told_too_late) == (1, False)


def _fault(*_: object) -> Any:  # noqa: ANN401 - it never returns
    raise ZeroDivisionError


@pytest.mark.parametrize("part", ["claim", "start", "like", "observer"])
async def test_a_loop_that_ends_by_a_fault_leaves_nobody_waiting(bench: Bench, part: str) -> None:
    """Rule 5: readiness goes off, the fault is counted, and all works are told, wherever they were just then."""
    held = await bench.hold()
    before, struck, behind = works = [
        bench.submit(1),
        bench.submit(2, size=3 if part == "like" else 1),
        bench.submit(3),
    ]
    if part == "like":
        bench.like = lambda size: _fault() if size == 3 else size
    elif part == "observer":
        bench.counts.waited = _fault  # type: ignore[assignment,method-assign]
    else:
        setattr(struck, part, _fault)
    bench.counts.watched = [work.future for work in works]
    bench.gate.open()
    assert await asyncio.wait_for(held, PATIENCE_S) == 0
    assert [type(await outcome(work.future)) for work in (before, struck, behind)] == [ShuttingDown] * 3
    assert not bench.batcher.alive
    assert bench.counts.ended == 1
    assert not bench.counts.told_too_late
    with pytest.raises(ShuttingDown):
        bench.submit(4)


async def test_an_end_that_was_asked_for_is_no_fault(bench: Bench) -> None:
    """Rule 5: closing turns the batcher off without counting a fault."""
    await bench.batcher.close(PATIENCE_S)
    assert not bench.batcher.alive
    assert bench.counts.ended == 0
