"""Two processes over one store: each session has one writer at a time, and the loser knows."""

import asyncio

import pytest

from service.errors import PositionConflict, SessionEnded, StoreUnavailable, WriteConflict
from tests.support.brain import Brain, Serve, drawn, told
from tests.support.fakes import outcome, started
from tests.support.records import plain


@pytest.fixture
async def here(serve: Serve) -> Brain:
    """The replica that is asked first."""
    return serve(segment_steps=4)


@pytest.fixture
async def there(serve: Serve) -> Brain:
    """Another replica over the same store."""
    return serve(segment_steps=4)


async def test_any_replica_continues_any_session(here: Brain, there: Brain) -> None:
    """Steps may go to one replica and to another in turns; each knows what the other did."""
    id = await here.create()
    brains = [here, there, there, here, there, here, here]
    assert [await brain.add(id, 1) for brain in brains] == [[n + 1] for n in range(7)]


async def test_loads_are_counted(here: Brain, there: Brain) -> None:
    """A session that was not in memory, and one that another replica moved; one that is at hand is not counted."""

    def loads(brain: Brain) -> list[float | None]:
        value = brain.metrics.registry.get_sample_value
        return [value("lstm_serve_session_loads_total", {"why": why}) for why in ("resting", "moved")]

    id = await here.create()
    await here.add(id, 1, 2)
    assert loads(here) == [0, 0]
    await there.add(id, 3)
    assert loads(there) == [1, 0]
    await here.add(id, 4)
    await here.add(id, 5)
    assert loads(here) == [0, 1]


async def test_the_loser_without_a_position_tries_again(here: Brain, there: Brain) -> None:
    """A step that applies to whatever is current applies to what the other replica left."""
    id = await here.create()
    await there.add(id, 10)
    assert await here.add(id, 1, 2) == [11, 13]
    assert here.kept(id).position == 3


async def test_the_loser_with_a_position_is_told_where_the_session_stands(here: Brain, there: Brain) -> None:
    """A step for a position that the other replica has passed is refused; nothing is applied."""
    id = await here.create()
    await there.add(id, 10, 20)
    with pytest.raises(PositionConflict) as refused:
        await here.add(id, 1, position=0)
    assert refused.value.facts["position"] == 2
    assert here.kept(id).position == 2


async def test_the_loser_with_the_same_request_gets_the_stored_answer(here: Brain, there: Brain) -> None:
    """A client that repeats its step at another replica gets what the first one committed."""
    id = await here.create()
    first, _ = await there.advance(id, 10, position=0)
    again, repeated = await here.advance(id, 10, position=0)
    assert repeated
    assert plain(again) == plain(first)
    assert here.kept(id).position == 1


async def test_conflicts_in_a_tick_touch_no_other_session(here: Brain, there: Brain) -> None:
    """Of a batch, the sessions that nobody else moved are committed at once."""
    moved, still = await here.create(), await here.create()
    await there.add(moved, 10)
    held = await here.hold_tick()
    tasks = await started(here.add(moved, 1), here.add(still, 1))
    here.engines["adder"].gate.open()
    assert await asyncio.gather(held, *tasks) == [[1], [11], [1]]
    assert here.engines["adder"].ticks == [[1], [1, 1], [1]]


async def test_folded_requests_are_decided_anew_after_a_conflict(here: Brain, there: Brain) -> None:
    """Each of those who lost together is looked at again, in order."""
    id = await here.create()
    await there.add(id, 10, position=0)
    held = await here.hold_tick()
    tasks = await started(here.add(id, 10, position=0), here.add(id, 1, position=1), here.add(id, 5))
    here.engines["adder"].gate.open()
    await held
    assert await asyncio.gather(*tasks) == [[10], [11], [16]]


async def test_a_long_chunk_that_loses_tries_again(here: Brain, there: Brain) -> None:
    """Work of several ticks applies to what the other replica left, or with a position is told where that is."""
    id = await here.create()
    await there.add(id, 10)
    assert await here.add(id, 1, 1, 1, 1, 1) == [11, 12, 13, 14, 15]
    await there.add(id, 100)
    with pytest.raises(PositionConflict) as refused:
        await here.add(id, 1, 1, 1, 1, 1, position=6)
    assert refused.value.facts["position"] == 7
    assert here.kept(id).position == 7


@pytest.mark.parametrize("steps", [1, 5])
async def test_a_replica_that_was_passed_by_looks_anew(here: Brain, there: Brain, steps: int) -> None:
    """A request for where the session really is applies, also where this replica has not heard of the latest steps."""
    id = await here.create()
    await here.add(id, 1)
    await there.add(id, 10)
    assert (await here.add(id, *[1] * steps, position=2))[-1] == 11 + steps


async def test_a_wrong_position_is_told_the_true_one(here: Brain, there: Brain) -> None:
    """The position in a conflict is that of the session, not that of an old record."""
    id = await here.create()
    await here.add(id, 1)
    await there.add(id, 10, 20)
    with pytest.raises(PositionConflict) as refused:
        await here.add(id, 1, position=9)
    assert refused.value.facts["position"] == 3


async def test_reads_and_what_ifs_see_what_others_did(here: Brain, there: Brain) -> None:
    """A session is shown, and forecast from, as it is committed, whichever replica committed it."""
    id = await here.create("language")
    await here.write(id, "a")
    await there.write(id, "b")
    assert (await here.sessions.get(id, "")).position == 2
    what_if = [await brain.generate(id, drawn(5, advance=False)) for brain in (here, there)]
    assert told(what_if[0]) == told(what_if[1])


async def test_a_stream_that_loses_ends_by_name(here: Brain, there: Brain) -> None:
    """A generation whose session another replica moves stops; what it told was committed."""
    id = await here.create("language")
    await here.write(id, "a")
    steps = here.sessions.generate_stream(id, drawn(5), "")
    told = [await anext(steps), await anext(steps)]
    here.engines["language"].gate.shut()
    (rest,) = await started(_all(steps))
    await here.engines["language"].gate.reached()
    await there.write(id, "b")
    here.engines["language"].gate.open()
    assert isinstance(await outcome(rest), WriteConflict)
    assert [step.position for step in told] == [1, 2]
    assert (await here.write(id, "c")).position == there.kept(id).position


async def _all(steps: object) -> list[object]:
    return [step async for step in steps]  # type: ignore[attr-defined]


async def test_a_session_ended_elsewhere_has_ended_here(here: Brain, there: Brain) -> None:
    """A replica that still holds a deleted session learns of it when it commits."""
    id = await here.create()
    await there.sessions.delete(id, "")
    with pytest.raises(SessionEnded) as refused:
        await here.add(id, 1)
    assert refused.value.facts["reason"] == "deleted"
    with pytest.raises(SessionEnded):
        await here.add(id, 1)


async def test_deleting_what_was_deleted_elsewhere_says_so(here: Brain, there: Brain) -> None:
    """A session that is over is never told to be unknown, also by a replica that still holds it."""
    id = await here.create()
    await there.sessions.delete(id, "")
    with pytest.raises(SessionEnded) as refused:
        await here.sessions.delete(id, "")
    assert refused.value.facts["reason"] == "deleted"
    assert here.metric("sessions_ended_total", reason="deleted") == 0


async def test_a_loser_that_cannot_look_anew_is_told_so(here: Brain, there: Brain) -> None:
    """Where the store fails just then, whoever waits is answered by name, and the next request finds its way."""
    id = await here.create()
    await there.add(id, 10)
    here.store.loads_fail = True
    with pytest.raises(StoreUnavailable):
        await here.add(id, 1)
    here.store.loads_fail = False
    assert await here.add(id, 1) == [11]


async def test_a_reset_that_loses_tries_again(here: Brain, there: Brain) -> None:
    """Going back to the start goes back from wherever the other replica went."""
    id = await here.create()
    await there.add(id, 10)
    assert (await here.sessions.reset(id, "")).position == 0
    assert await here.add(id, 1) == [1]
