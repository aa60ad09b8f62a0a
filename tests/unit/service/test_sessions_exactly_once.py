"""A step is applied exactly once, however often it is sent."""

import asyncio

import pytest

from service.errors import AlreadyApplied, PositionConflict
from service.stores.base import Store
from tests.support.brain import ALL, LAST, Brain, Serve, sums
from tests.support.fakes import outcome, started
from tests.support.records import plain


async def test_steps_apply_one_after_the_other(brain: Brain) -> None:
    """Without a position a request applies wherever the session stands."""
    id = await brain.create()
    assert await brain.add(id, 1, 2) == [1, 3]
    assert await brain.add(id, 4) == [7]
    assert brain.kept(id).position == 3
    first, second = (record for (record,) in brain.store.commits)
    assert first.revision < second.revision == brain.kept(id).revision


async def test_a_step_applies_at_the_position_that_it_names(brain: Brain) -> None:
    """A position that equals the session's is applied."""
    id = await brain.create()
    await brain.add(id, 1, position=0)
    answer, repeated = await brain.advance(id, 2, position=1)
    assert (answer.start, answer.position, answer.steps, repeated) == (1, 2, 1, False)


async def test_a_repeat_gets_the_stored_answer_and_moves_nothing(brain: Brain) -> None:
    """A request that was applied is answered again, with the same bytes; the session stays."""
    id = await brain.create()
    first, _ = await brain.advance(id, 1, 2, position=0)
    before = brain.kept(id)
    brain.clock.move(5.0)
    again, repeated = await brain.advance(id, 1, 2, position=0)
    assert repeated
    assert plain(again) == plain(first)
    assert plain(brain.kept(id)) == plain(before)
    assert brain.metric("replayed_total") == 1


async def test_a_repeat_is_not_counted_as_dropped(brain: Brain) -> None:
    """Only what nobody was left to hear of counts as dropped."""
    id = await brain.create()
    for _ in range(3):
        await brain.advance(id, 1, position=0)
    assert brain.metric("dropped_total") == 0


@pytest.mark.parametrize("view", [ALL, LAST])
async def test_another_request_at_an_old_position_is_a_conflict(brain: Brain, view: object) -> None:
    """What repeats nothing is refused with the current position, whether its numbers or its view differ."""
    id = await brain.create()
    await brain.advance(id, 1, 2, position=0)
    request = brain.advance(id, 1, 2, position=0, view=LAST) if view is LAST else brain.advance(id, 1, 3, position=0)
    with pytest.raises(PositionConflict) as refused:
        await request
    assert refused.value.facts["position"] == 2
    assert brain.kept(id).position == 2


@pytest.mark.parametrize("position", [1, 99])
async def test_a_position_ahead_of_the_session_is_a_conflict(brain: Brain, position: int) -> None:
    """A session is never moved forward to where a client believes it to be."""
    id = await brain.create()
    with pytest.raises(PositionConflict):
        await brain.add(id, 1, position=position)
    assert brain.kept(id).position == 0


async def test_without_position_a_repeat_is_a_new_step(brain: Brain) -> None:
    """Who does not name a position asks for at-least-once, and gets it."""
    id = await brain.create()
    assert [await brain.add(id, 1), await brain.add(id, 1)] == [[1], [2]]


async def test_only_the_last_answer_is_kept_when_it_was_read_before_the_next_request(brain: Brain) -> None:
    """A request sent after an answer arrived acknowledges that answer."""
    id = await brain.create()
    for position in range(4):
        await brain.add(id, 1, position=position)
    assert len(brain.kept(id).answers) == 1
    with pytest.raises(PositionConflict):
        await brain.add(id, 1, position=2)
    assert await brain.add(id, 1, position=3) == [4]


@pytest.mark.parametrize("segment_steps", [64, 1])
async def test_requests_in_flight_keep_their_answers_until_they_are_acknowledged(
    serve: Serve, segment_steps: int
) -> None:
    """Of several requests under way together each can be repeated, in one tick or many; a later request ends that."""
    brain = serve(segment_steps=segment_steps)
    id = await brain.create()
    held = await brain.hold_tick()
    flight = await started(*[brain.add(id, n + 1, position=n) for n in range(4)])
    brain.engines["adder"].gate.open()
    await held
    assert await asyncio.gather(*flight) == [[1], [3], [6], [10]]
    assert [await brain.add(id, n + 1, position=n) for n in range(4)] == [[1], [3], [6], [10]]
    await brain.add(id, 5, position=4)
    assert [a.start for a in brain.kept(id).answers] == [4]
    with pytest.raises(PositionConflict):
        await brain.add(id, 1, position=0)


async def test_a_repeat_that_overtakes_its_request_waits_for_it(brain: Brain) -> None:
    """A request sent twice before the first is answered runs once; both get the same answer."""
    id = await brain.create()
    held = await brain.hold_tick()
    twice = await started(brain.advance(id, 5, position=0), brain.advance(id, 5, position=0))
    brain.engines["adder"].gate.open()
    await held
    (first, was_repeat), (second, is_repeat) = await asyncio.gather(*twice)
    assert (was_repeat, is_repeat) == (False, True)
    assert plain(first) == plain(second)
    assert brain.kept(id).position == 1


async def test_an_answer_too_large_to_keep_is_told_to_be_applied(serve: Serve) -> None:
    """The first answer is whole; its repeat learns that the request was applied, and nothing moves."""
    brain = serve(keep_answer_bytes=8)
    id = await brain.create()
    assert await brain.add(id, 1, 2, 3, position=0) == [1, 3, 6]
    with pytest.raises(AlreadyApplied) as refused:
        await brain.add(id, 1, 2, 3, position=0)
    assert refused.value.facts["position"] == 3
    assert await brain.add(id, 1, 1, position=3) == [7, 8]  # eight bytes: just small enough
    assert await brain.add(id, 1, 1, position=3) == [7, 8]


async def test_of_answers_in_flight_the_latest_are_kept(serve: Serve) -> None:
    """Where they do not all fit, the outputs of the earliest are given up, not the knowledge that they were applied."""
    brain = serve(keep_answer_bytes=8)
    id = await brain.create()
    held = await brain.hold_tick()
    flight = await started(*[brain.add(id, 1, position=n) for n in range(3)])
    brain.engines["adder"].gate.open()
    await asyncio.gather(held, *flight)
    with pytest.raises(AlreadyApplied):
        await brain.add(id, 1, position=0)
    assert [await brain.add(id, 1, position=n) for n in (1, 2)] == [[2], [3]]


async def test_a_restart_forgets_no_answer(serve: Serve, store: Store) -> None:
    """The last answer is part of what is committed: another process gives it again, byte for byte."""
    before = serve()
    id = await before.create()
    first, _ = await before.advance(id, 1, 2, position=0)
    after = serve()
    again, repeated = await after.advance(id, 1, 2, position=0)
    assert repeated
    assert plain(again) == plain(first)
    assert await after.add(id, 3, position=2) == [6]


async def test_kept_answers_do_not_pile_up_over_restarts(serve: Serve) -> None:
    """Answers that an earlier process kept are given up like its own, however often sessions come and go."""
    id = await serve().create()
    for life in range(3):
        brain = serve()
        for n in range(4):
            await brain.add(id, 1, position=4 * life + n)
        assert len(brain.kept(id).answers) == 1


async def test_a_client_that_goes_does_not_undo_a_commit(brain: Brain) -> None:
    """Rule 6 of the tick: gone in the midst of the commit, the step counts, and its repeat gets the answer."""
    id = await brain.create()
    brain.store.gate.shut()
    (gone,) = await started(brain.add(id, 5, position=0))
    await brain.store.gate.reached()
    gone.cancel()
    assert isinstance(await outcome(gone), asyncio.CancelledError)
    brain.store.gate.open()
    answer, repeated = await brain.advance(id, 5, position=0)
    assert (sums(answer), repeated) == ([5], True)


async def test_a_client_that_goes_before_the_tick_leaves_the_session_where_it_was(brain: Brain) -> None:
    """Rule 3 of the tick: what was not begun is not applied."""
    id = await brain.create()
    held = await brain.hold_tick()
    gone, stays = await started(brain.add(id, 5), brain.add(id, 1))
    gone.cancel()
    brain.engines["adder"].gate.open()
    await held
    assert await stays == [1]
    assert brain.metric("dropped_total") == 1


async def test_nothing_is_answered_before_it_is_committed(brain: Brain) -> None:
    """Rule 6 of the tick: while the commit is under way the answer is not out, and not in the record."""
    id = await brain.create()
    brain.store.gate.shut()
    (waiting,) = await started(brain.add(id, 5))
    await brain.store.gate.reached()
    assert not waiting.done()
    assert (await brain.sessions.get(id, "")).position == 0
    brain.store.gate.open()
    assert await waiting == [5]
