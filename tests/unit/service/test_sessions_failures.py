"""What fails fails alone, is told by name, and moves nothing."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service.errors import (
    DeadlineExceeded,
    NotFinite,
    PositionConflict,
    ServiceError,
    ShuttingDown,
    StoreUnavailable,
    UndecodableState,
)
from tests.support.artifacts import POISON
from tests.support.brain import Brain, Serve, drawn
from tests.support.fakes import outcome, started
from tests.support.records import moved, plain


async def test_a_row_that_is_not_finite_fails_alone(brain: Brain) -> None:
    """Batch-mates of a poisoned row do not notice; its session keeps the state it had."""
    ids = [await brain.create("poison") for _ in range(3)]
    for id in ids:
        await brain.add(id, 5)
    before = plain(brain.kept(ids[1]))
    held = await brain.hold_tick("poison")
    tasks = await started(brain.add(ids[0], 1), brain.add(ids[1], POISON), brain.add(ids[2], 2))
    brain.engines["poison"].gate.open()
    await held
    first, poisoned, last = [await outcome(task) for task in tasks]
    assert brain.engines["poison"].ticks[-1] == [1, 1, 1]
    assert isinstance(poisoned, NotFinite)
    assert (first, last) == ([6], [7])
    assert plain(brain.kept(ids[1])) == before
    assert await brain.add(ids[1], 3) == [8]


async def test_requests_folded_with_a_poisoned_one_go_through(brain: Brain) -> None:
    """Those who waited together fail together at first; then each runs alone, and only the guilty one fails."""
    id = await brain.create("poison")
    held = await brain.hold_tick("poison")
    tasks = await started(brain.add(id, 1), brain.add(id, POISON), brain.add(id, 2))
    brain.engines["poison"].gate.open()
    await held
    first, poisoned, last = [await outcome(task) for task in tasks]
    assert isinstance(poisoned, NotFinite)
    assert (first, last) == ([1], [3])
    assert brain.kept(id).position == 2


async def test_what_followed_a_poisoned_position_is_told_where_the_session_stands(brain: Brain) -> None:
    """A pipelined request whose predecessor failed does not slip into its place."""
    id = await brain.create("poison")
    held = await brain.hold_tick("poison")
    tasks = await started(brain.add(id, POISON, position=0), brain.add(id, 2, position=1))
    brain.engines["poison"].gate.open()
    await held
    assert [type(await outcome(task)) for task in tasks] == [NotFinite, PositionConflict]
    assert brain.kept(id).position == 0


async def test_folding_comes_back_after_a_poisoned_request(brain: Brain) -> None:
    """Once those who failed together are through, waiting requests share a tick again."""
    id = await brain.create("poison")
    held = await brain.hold_tick("poison")
    tasks = await started(brain.add(id, 1), brain.add(id, POISON))
    brain.engines["poison"].gate.open()
    await asyncio.gather(held, *[outcome(task) for task in tasks])
    held = await brain.hold_tick("poison")
    tasks = await started(brain.add(id, 1), brain.add(id, 1))
    brain.engines["poison"].gate.open()
    await asyncio.gather(held, *tasks)
    assert brain.engines["poison"].ticks[-1] == [2]


async def test_an_engine_that_raises_fails_its_tick_only(brain: Brain) -> None:
    """A fault of the engine reaches those of its tick; the sessions stay, the next tick runs."""
    id = await brain.create()
    brain.engines["adder"].broken = RuntimeError("out of luck")
    with pytest.raises(RuntimeError, match="out of luck"):
        await brain.add(id, 1)
    brain.engines["adder"].broken = None
    assert await brain.add(id, 1) == [1]
    assert brain.metric("tick_failures_total", model="adder") == 1
    assert brain.metric("loops_ended_total") == 0


async def test_a_commit_that_fails_acknowledges_and_moves_nothing(brain: Brain) -> None:
    """The store is down: every step of the tick is refused by name; afterwards it applies, once."""
    ids = [await brain.create() for _ in range(2)]
    brain.store.commits_fail = True
    for task in await started(*[brain.add(id, 1, position=0) for id in ids]):
        assert isinstance(await outcome(task), StoreUnavailable)
    assert [(await brain.sessions.get(id, "")).position for id in ids] == [0, 0]
    brain.store.commits_fail = False
    assert [await brain.add(id, 1, position=0) for id in ids] == [[1], [1]]


async def test_a_fault_of_the_store_that_has_no_name_fails_the_tick(brain: Brain) -> None:
    """An error that no store should raise goes to the tick's own requests, and the loop goes on."""
    id = await brain.create()
    brain.store.crash = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await brain.add(id, 1)
    brain.store.crash = None
    assert await brain.add(id, 1) == [1]


async def test_a_commit_that_the_store_refuses_is_tried_again_and_given_up_by_name(brain: Brain) -> None:
    """A session that others keep moving does not hold its requests for ever."""
    id = await brain.create()
    brain.store.before_commit = lambda: _move(brain, id)
    with pytest.raises(ServiceError) as refused:
        await brain.add(id, 1)
    assert type(refused.value).__name__ == "WriteConflict"
    assert len(brain.store.commits) > 1


def _move(brain: Brain, id: str) -> None:
    record = brain.kept(id)
    brain.store.inner.commit([moved(record, record.row)])


async def test_creating_without_a_store_creates_nothing(brain: Brain) -> None:
    """A session that could not be committed does not exist."""
    brain.store.commits_fail = True
    with pytest.raises(StoreUnavailable):
        await brain.create()
    assert brain.store.count() == 0
    assert brain.metric("sessions", where="live") == 0
    assert brain.metric("sessions_created_total", model="adder") == 0


async def test_a_load_that_fails_is_told_and_tried_again_by_the_next_request(serve: Serve) -> None:
    """A resting session whose store is down answers by name; nothing of it is lost."""
    id = await (first := serve()).create()
    await first.add(id, 1)
    brain = serve()
    brain.store.loads_fail = True
    with pytest.raises(StoreUnavailable):
        await brain.add(id, 1)
    brain.store.loads_fail = False
    assert await brain.add(id, 1) == [2]


async def test_a_row_of_another_size_is_named_and_left_as_it_is(serve: Serve) -> None:
    """Rule 7 of the tick: a row that cannot be the model's is an error, never zeros, and stays in the store."""
    id = await (first := serve()).create()
    first.store.inner.commit([moved(first.kept(id), b"not four")])
    brain = serve()
    with pytest.raises(UndecodableState):
        await brain.add(id, 1)
    assert brain.kept(id).row == b"not four"


async def test_readiness_follows_the_store_and_the_loops(brain: Brain) -> None:
    """Ready means that a step could be committed now."""
    await brain.sessions.check()
    brain.store.commits_fail = True
    with pytest.raises(StoreUnavailable):
        await brain.sessions.check()
    brain.store.commits_fail = False
    await brain.model("adder").batcher.close(1.0)
    with pytest.raises(ServiceError, match="restart it"):
        await brain.sessions.check()


async def test_a_request_that_waits_too_long_is_dropped_before_it_runs(serve: Serve) -> None:
    """Beyond ``queue_timeout_s`` a request is told so, and its steps are not applied."""
    brain = serve(queue_timeout_s=10)
    id = await brain.create()
    held = await brain.hold_tick()
    (late,) = await started(brain.add(id, 5))
    brain.clock.move(6.0)
    (in_time,) = await started(brain.add(id, 1))
    brain.clock.move(6.0)
    brain.engines["adder"].gate.open()
    await held
    assert isinstance(await outcome(late), DeadlineExceeded)
    assert await in_time == [1]
    assert brain.metric("dropped_total") == 1


async def test_a_shutdown_finishes_what_was_accepted(brain: Brain) -> None:
    """Requests that wait, in a session's own queue too, are answered before the service closes; none come after."""
    ids = [await brain.create() for _ in range(2)]
    held = await brain.hold_tick()
    (running,) = await started(brain.add(ids[0], 1))
    tasks = await started(brain.add(ids[0], *[1] * 64), brain.add(ids[0], *[1] * 70), brain.add(ids[1], 2))
    (closing,) = await started(brain.sessions.close())
    brain.engines["adder"].gate.open()
    await closing
    answers = await asyncio.gather(held, running, *tasks)
    assert [answer[-1] for answer in answers] == [1, 1, 65, 135, 2]
    assert brain.kept(ids[0]).position == 135
    assert brain.store.closed
    with pytest.raises(ShuttingDown):
        await brain.add(ids[0], 1)


def generate_long(brain: Brain, id: str) -> Coroutine[Any, Any, object]:
    """A generation of many ticks."""
    return brain.generate(id, drawn(10_000))


def write_long(brain: Brain, id: str) -> Coroutine[Any, Any, object]:
    """A chunk of many ticks."""
    return brain.write(id, "b" * 10_000)


@pytest.mark.parametrize("long", [generate_long, write_long], ids=["generate", "chunk"])
async def test_a_shutdown_gives_up_by_name_what_takes_too_long(
    serve: Serve, long: Callable[[Brain, str], Coroutine[Any, Any, object]]
) -> None:
    """Beyond ``drain_s`` work of many ticks stops with nothing committed; it and what waits behind it learn why."""
    brain = serve(drain_s=0, segment_steps=1)
    id = await brain.create("language")
    await brain.write(id, "a")
    before = plain(brain.kept(id))
    tasks = await started(long(brain, id), brain.sessions.reset(id, ""))
    await brain.sessions.close()
    for task in tasks:
        assert isinstance(await outcome(task), ShuttingDown)
    assert plain(brain.kept(id)) == before


async def test_a_loop_that_ends_by_a_fault_turns_readiness_off(brain: Brain) -> None:
    """Rule 5 of the tick, seen from outside: requests are refused by name, the fault is counted, readiness is off."""
    id = await brain.create()
    brain.model("adder").batcher._form = lambda: 1 // 0
    for _ in range(2):
        with pytest.raises(ShuttingDown):
            await brain.add(id, 1)
    assert brain.metric("loops_ended_total") == 1
    with pytest.raises(ServiceError, match="restart it"):
        await brain.sessions.check()
    assert await brain.add(await brain.create("poison"), 1) == [1]


async def test_the_sweeper_outlives_a_store_that_fails(serve: Serve) -> None:
    """Whatever goes wrong in one search for expired sessions, the next one comes."""
    brain = serve(sweep_interval_s=0.001)
    swept = asyncio.Event()
    loop = asyncio.get_running_loop()
    faults = iter([StoreUnavailable("for a moment"), ZeroDivisionError()])

    def expire(now: float, limit: int) -> list[str]:
        for fault in faults:
            raise fault
        loop.call_soon_threadsafe(swept.set)
        return []

    brain.store.expire = expire  # type: ignore[method-assign]
    await asyncio.wait_for(swept.wait(), 5)
