"""The store is lost before it answers: nobody is told that a step was applied, and nobody is served a stale state."""

from typing import Literal

import pytest

from service.errors import OutcomeUnknown, SessionEnded, StoreUnavailable
from tests.support.brain import Brain, Serve, drawn, primed, sums
from tests.support.fakes import outcome, started, turns

LOST: tuple[Literal["before", "after"], ...] = ("before", "after")


@pytest.mark.parametrize("lost", LOST)
async def test_a_repeat_with_its_position_is_applied_once(brain: Brain, lost: Literal["before", "after"]) -> None:
    """Whether the commit came through or not, the repeat's answer is the same and the session moves once."""
    id = await brain.create()
    await brain.add(id, 10)
    brain.store.lost = lost
    with pytest.raises(OutcomeUnknown):
        await brain.add(id, 5, position=1)
    brain.store.lost = None
    answer, repeated = await brain.advance(id, 5, position=1)
    assert (sums(answer), repeated) == ([15], lost == "after")
    assert brain.kept(id).position == 2


async def test_the_next_step_continues_from_what_was_committed(brain: Brain) -> None:
    """A step that comes after the lost one finds its state, and not the one before it."""
    id = await brain.create()
    brain.store.lost = "after"
    with pytest.raises(OutcomeUnknown):
        await brain.add(id, 10)
    brain.store.lost = None
    assert await brain.add(id, 1) == [11]


async def test_requests_that_waited_behind_it_are_decided_anew(brain: Brain) -> None:
    """What was queued while the answer was lost waits for the session to be loaded, then applies to what it is."""
    id = await brain.create()
    brain.store.lost = "after"
    brain.store.gate.shut()
    first, *_ = await started(brain.add(id, 10, position=0))
    await brain.store.gate.reached()
    again, second = await started(brain.advance(id, 10, position=0), brain.add(id, 1, position=1))
    brain.store.gate.open()
    assert isinstance(await outcome(first), OutcomeUnknown)
    brain.store.lost = None
    answer, repeated = await outcome(again)
    assert (sums(answer), repeated) == ([10], True)
    assert await outcome(second) == [11]


async def test_all_that_were_folded_together_are_told(brain: Brain) -> None:
    """They shared a commit, so of none of them is known whether it was applied; each can be repeated."""
    id = await brain.create()
    held = await brain.hold_tick()
    brain.store.lost = "after"
    tasks = await started(brain.add(id, 1, position=0), brain.add(id, 2, position=1), brain.add(id, 3, position=2))
    brain.engines["adder"].gate.open()
    assert [type(await outcome(task)) for task in (held, *tasks)] == [OutcomeUnknown] * 4
    brain.store.lost = None
    answer, repeated = await brain.advance(id, 3, position=2)
    assert (sums(answer), repeated) == ([6], True)
    assert brain.kept(id).position == 3


async def test_a_session_that_cannot_be_loaded_anew_is_not_served_stale(brain: Brain) -> None:
    """While the store is down every request is refused; when it is back, the session is what the store says."""
    id = await brain.create()
    brain.store.lost, brain.store.loads_fail = "after", True
    with pytest.raises(OutcomeUnknown):
        await brain.add(id, 10)
    brain.store.lost = None
    await turns()
    with pytest.raises(StoreUnavailable):
        await brain.add(id, 1)
    brain.store.loads_fail = False
    assert await brain.add(id, 1) == [11]


@pytest.mark.parametrize("lost", LOST)
async def test_long_chunks_are_applied_once(serve: Serve, lost: Literal["before", "after"]) -> None:
    """A chunk of several ticks is committed whole, and repeated like any other."""
    brain = serve(segment_steps=2)
    id = await brain.create()
    brain.store.lost = lost
    with pytest.raises(OutcomeUnknown):
        await brain.add(id, *range(9), position=0)
    brain.store.lost = None
    answer, repeated = await brain.advance(id, *range(9), position=0)
    assert (sums(answer)[-1], repeated) == (36, lost == "after")
    assert brain.kept(id).position == 9


@pytest.mark.parametrize("lost", LOST)
async def test_a_generation_is_repeated_from_the_store(brain: Brain, lost: Literal["before", "after"]) -> None:
    """A generation whose commit was lost draws the same text when it is repeated, and the text is kept once."""
    id = await primed(brain)
    start = brain.kept(id).position
    request = drawn(5, advance=True, position=start)
    brain.store.lost = lost
    with pytest.raises(OutcomeUnknown):
        await brain.generate(id, request)
    brain.store.lost = None
    again = await brain.generate(id, request)
    assert again.repeated == (lost == "after")
    assert brain.kept(id).position == start + 5


async def test_a_stream_that_lost_its_commit_can_be_picked_up(brain: Brain) -> None:
    """A streamed generation ends by name; what its session then is was loaded, and goes on from there."""
    id = await primed(brain)
    start = brain.kept(id).position
    brain.store.lost = "after"
    with pytest.raises(OutcomeUnknown):
        await brain.stream(id, drawn(5, advance=True))
    brain.store.lost = None
    await brain.write(id, "a")
    assert brain.kept(id).position == start + 2


async def test_a_reset_can_be_repeated(brain: Brain) -> None:
    """After a reset whose answer was lost the session is at 0, as often as it is asked."""
    id = await brain.create()
    await brain.add(id, 10)
    brain.store.lost = "after"
    with pytest.raises(OutcomeUnknown):
        await brain.sessions.reset(id, "")
    brain.store.lost = None
    await brain.sessions.reset(id, "")
    assert await brain.add(id, 1, position=0) == [1]


async def test_a_packed_session_is_loaded_too(serve: Serve) -> None:
    """A session that lay packed in memory while another replica lost a commit of it is found out by the store."""
    here, there = serve(max_live=1), serve()
    id = await here.create()
    await here.create()
    there.store.lost = "after"
    with pytest.raises(OutcomeUnknown):
        await there.add(id, 10, position=0)
    answer, repeated = await here.advance(id, 10, position=0)
    assert (sums(answer), repeated) == ([10], True)


async def test_a_deletion_that_was_lost_is_told_when_it_is_repeated(brain: Brain) -> None:
    """DELETE again says that the session has ended."""
    id = await brain.create()
    end = brain.store.inner.end

    def lost(*arguments: object) -> bool:
        end(*arguments)  # type: ignore[arg-type]
        raise OutcomeUnknown("the answer is lost on demand")

    brain.store.end = lost  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknown):
        await brain.sessions.delete(id, "")
    with pytest.raises(SessionEnded):
        await brain.sessions.delete(id, "")


async def test_a_part_of_the_store_that_is_lost_fails_its_own_sessions(brain: Brain) -> None:
    """Where a store has parts, the sessions of the others in the same tick are answered."""
    ids = [await brain.create() for _ in range(3)]
    commit = brain.store.inner.commit
    gone = OutcomeUnknown("a part is lost on demand")

    def partly(records):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        kept = commit(records)
        return [gone if r.identity.id == ids[1] else ok for r, ok in zip(records, kept, strict=True)]

    brain.store.commit = partly  # type: ignore[method-assign]
    held = await brain.hold_tick()
    tasks = await started(*(brain.add(id, 1) for id in ids))
    brain.engines["adder"].gate.open()
    await held
    assert [await outcome(task) for task in tasks] == [[1], gone, [1]]
    assert await brain.add(ids[0], 1) == [2]
