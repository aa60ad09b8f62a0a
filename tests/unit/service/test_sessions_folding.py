"""Waiting requests of one session are folded, long chunks are cut; a client can see neither."""

import asyncio
from typing import cast

import numpy as np
import pytest

from service.engine.repository import LoadedModel
from service.engine.runtime import Engine
from service.errors import NotFinite, Overloaded, PositionConflict, ServiceError, StoreUnavailable
from service.sessions.requests import Advance
from service.views import View
from tests.support.artifacts import POISON
from tests.support.brain import ALL, LAST, Brain, Serve, numbers, sums
from tests.support.fakes import WatchedEngine, outcome, started
from tests.support.records import plain


async def test_waiting_requests_of_a_session_are_folded_into_one_chunk(brain: Brain) -> None:
    """Rule 8 of the tick: what waits together runs as one row, in the order in which it came."""
    id = await brain.create()
    held = await brain.hold_tick()
    waiting = await started(brain.add(id, 1), brain.add(id, 2, 3), brain.add(id, 4, position=3))
    brain.engines["adder"].gate.open()
    assert await asyncio.gather(held, *waiting) == [[1], [1], [3, 6], [10]]
    assert brain.engines["adder"].ticks == [[1], [4]]


async def test_each_folded_request_is_shown_what_it_asked_for(brain: Brain) -> None:
    """One sees its last step, another all of its own, as if they had run alone."""
    id = await brain.create()
    held = await brain.hold_tick()
    calls = [brain.advance(id, 1, 2, view=LAST), brain.advance(id, 3, 4, view=ALL)]
    waiting = await started(*calls)
    brain.engines["adder"].gate.open()
    await held
    (first, _), (second, _) = await asyncio.gather(*waiting)
    assert (sums(first), sums(second)) == ([3], [6, 10])
    assert (first.position, second.start, second.position) == (2, 2, 4)


async def test_folded_answers_equal_unfolded_ones_bit_for_bit(brain: Brain) -> None:
    """A network answers the same whether the steps of its session waited together or came one by one."""
    alone, together = await brain.create("language"), await brain.create("language")
    words, view = ["the", " ", "quick", " fox"], View(every=True, top_k=3)
    expected = [await brain.write(alone, word, view) for word in words]
    held = await brain.hold_tick("language")
    waiting = await started(*[brain.write(together, word, view) for word in words])
    brain.engines["language"].gate.open()
    await held
    assert [plain(answer) for answer in await asyncio.gather(*waiting)] == [plain(answer) for answer in expected]
    assert brain.engines["language"].ticks[-1] == [13]
    assert brain.kept(together).row == brain.kept(alone).row


async def test_no_more_is_folded_than_one_tick_takes(serve: Serve) -> None:
    """The sum of folded steps stays within ``segment_steps``; the rest waits for the next tick."""
    brain = serve(segment_steps=4)
    id = await brain.create()
    held = await brain.hold_tick()
    waiting = await started(*[brain.add(id, 1, 1) for _ in range(3)])
    brain.engines["adder"].gate.open()
    await asyncio.gather(held, *waiting)
    assert brain.engines["adder"].ticks == [[1], [4], [2]]


async def test_a_position_that_does_not_follow_is_decided_alone(brain: Brain) -> None:
    """A conflict in the middle of what waits is refused by itself; the others go through in order."""
    id = await brain.create()
    held = await brain.hold_tick()
    waiting = await started(brain.add(id, 1), brain.add(id, 9, position=7), brain.add(id, 2))
    brain.engines["adder"].gate.open()
    await held
    first, wrong, last = [await outcome(task) for task in waiting]
    assert isinstance(wrong, PositionConflict)
    assert (first, last) == ([1], [3])


async def test_two_items_of_a_session_never_share_a_tick(serve: Serve) -> None:
    """Rule 8 of the tick, also where the arena is so small that sessions cannot stay in it while they wait."""
    brain = serve(max_live=1)
    ids = [await brain.create() for _ in range(3)]
    held = await brain.hold_tick()
    waiting = await started(*[brain.add(id, 1) for _ in range(3) for id in ids])
    brain.engines["adder"].gate.open()
    answers = await asyncio.gather(held, *waiting)
    assert answers[1:] == [[1], [1], [1], [2], [2], [2], [3], [3], [3]]
    for commit in brain.store.commits:
        kept = [record.identity.id for record in commit]
        assert len(set(kept)) == len(kept)


async def test_a_long_chunk_is_cut_and_nobody_can_tell(serve: Serve) -> None:
    """Segments of a tick's length give the bits, the answer and the record of the whole chunk."""
    text, view = "the quick brown fox jumps over the lazy dog", View(every=True, top_k=2)
    whole, cut = serve(), serve(segment_steps=5)
    one, other = await whole.create("language"), await cut.create("language")
    assert plain(await cut.write(other, text, view)) == plain(await whole.write(one, text, view))
    assert cut.kept(other).row == whole.kept(one).row
    assert cut.kept(other).output == whole.kept(one).output
    assert cut.engines["language"].ticks == [[5]] * 8 + [[3]]
    assert len(cut.store.commits) == 1


async def test_a_long_chunk_does_not_hold_up_other_sessions(serve: Serve) -> None:
    """Between two segments the single steps of others run."""
    brain = serve(segment_steps=2)
    long, short = await brain.create(), await brain.create()
    engine = brain.engines["adder"]
    engine.gate.shut()
    (waiting,) = await started(brain.add(long, *[1] * 8))
    await engine.gate.reached()
    (other,) = await started(brain.add(short, 5))
    engine.gate.open()
    assert await other == [5]
    assert not waiting.done()
    assert await waiting == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_a_repeat_of_a_long_chunk_gets_the_stored_answer(serve: Serve) -> None:
    """Exactly-once holds for what was cut."""
    brain = serve(segment_steps=2)
    id = await brain.create()
    first = await brain.add(id, 1, 2, 3, 4, 5, position=0)
    assert first == [1, 3, 6, 10, 15]
    ticks = len(brain.engines["adder"].ticks)
    assert await brain.add(id, 1, 2, 3, 4, 5, position=0) == first
    assert len(brain.engines["adder"].ticks) == ticks
    assert brain.metric("replayed_total") == 1
    await brain.add(id, 6)
    assert len(brain.kept(id).answers) == 1


async def test_a_long_chunk_in_flight_acknowledges_no_other(serve: Serve) -> None:
    """A step under way together with a long chunk can still be repeated after it."""
    brain = serve(segment_steps=2)
    id = await brain.create()
    held = await brain.hold_tick()
    flight = await started(brain.add(id, 1, position=0), brain.add(id, 1, 1, 1, position=1))
    brain.engines["adder"].gate.open()
    await asyncio.gather(held, *flight)
    assert await brain.add(id, 1, position=0) == [1]
    assert await brain.add(id, 1, 1, 1, position=1) == [2, 3, 4]


@pytest.mark.parametrize("failure", ["store", "poison", "gone"])
async def test_a_long_chunk_is_atomic(serve: Serve, failure: str) -> None:
    """Whatever stops a cut chunk half-way or at its end, the session stands where it stood."""
    brain = serve(segment_steps=2)
    id = await brain.create("poison")
    await brain.add(id, 5)
    before = plain(brain.kept(id))
    engine = brain.engines["poison"]
    values = [1, 1, 1, POISON if failure == "poison" else 1, 1]
    brain.store.commits_fail = failure == "store"
    engine.gate.shut()
    (task,) = await started(brain.add(id, *values))
    await engine.gate.reached()
    if failure == "gone":
        task.cancel()
    engine.gate.open()
    expected = {"store": StoreUnavailable, "poison": NotFinite, "gone": asyncio.CancelledError}
    assert isinstance(await outcome(task), expected[failure])
    brain.store.commits_fail = False
    assert plain(brain.kept(id)) == before
    assert await brain.add(id, 1, position=1) == [6]
    assert len(engine.ticks) < 6 or failure == "store"


@pytest.mark.parametrize(("allowed", "ticks"), [(False, [[1], [5], [1], [1]]), (True, [[1], [2], [2], [1], [2]])])
async def test_a_model_that_is_not_exact_is_neither_cut_nor_folded(
    serve: Serve, models: dict[str, LoadedModel], allowed: bool, ticks: list[list[int]]
) -> None:
    """Where the probe finds no exactness both are off, unless ``allow_inexact`` wants them all the same."""
    engine = WatchedEngine(models["adder"].engine)
    engine.bit_exact = False
    brain = serve([LoadedModel("adder", "1", cast(Engine, engine))], segment_steps=2, allow_inexact=allowed)
    id = await brain.create()
    held = await brain.hold_tick()
    waiting = await started(brain.add(id, 1, 2, 3, 4, 5), brain.add(id, 4), brain.add(id, 5))
    brain.engines["adder"].gate.open()
    assert await asyncio.gather(held, *waiting) == [[1], [1, 3, 6, 10, 15], [19], [24]]
    assert brain.engines["adder"].ticks == ticks


async def test_without_lengths_only_equal_chunks_share_a_tick(brain: Brain) -> None:
    """An artifact that cannot run ragged rows gets batches of one length."""
    ids = [await brain.create("equal") for _ in range(3)]
    held = await brain.hold_tick("equal")
    waiting = await started(brain.add(ids[0], 1), brain.add(ids[1], 1, 2), brain.add(ids[2], 3))
    brain.engines["equal"].gate.open()
    assert await asyncio.gather(held, *waiting) == [[1], [1], [1, 3], [3]]
    assert brain.engines["equal"].ticks == [[1], [1, 1], [2]]


async def test_a_model_without_a_time_axis_runs_step_by_step(brain: Brain) -> None:
    """Chunks are cut into single steps, sessions share ticks, and a client sees a chunk like any other."""
    one, other = await brain.create("one_step"), await brain.create("one_step")
    held = await brain.hold_tick("one_step")
    waiting = await started(brain.add(one, 1, 2, 3), brain.add(other, 5), brain.add(other, 6))
    brain.engines["one_step"].gate.open()
    assert await asyncio.gather(held, *waiting) == [[1], [1, 3, 6], [5], [11]]
    assert all(set(tick) == {1} for tick in brain.engines["one_step"].ticks)
    assert max(len(tick) for tick in brain.engines["one_step"].ticks) == 2


async def test_the_queue_of_one_session_is_bounded(serve: Serve) -> None:
    """Beyond ``max_session_queue`` waiting requests a session says no; those before are answered."""
    brain = serve(max_session_queue=2)
    id = await brain.create()
    held = await brain.hold_tick()
    waiting = await started(brain.add(id, 1), brain.add(id, 1))
    with pytest.raises(Overloaded):
        await brain.add(id, 1)
    brain.engines["adder"].gate.open()
    assert await asyncio.gather(held, *waiting) == [[1], [1], [2]]


async def test_the_queue_of_a_model_is_bounded(serve: Serve) -> None:
    """Beyond ``max_queue`` waiting sessions a model says no; a session that waits keeps its place."""
    brain = serve(max_queue=1, segment_steps=1)
    one, other = await brain.create(), await brain.create()
    held = await brain.hold_tick()
    waiting = await started(brain.add(one, 1), brain.add(one, 1))
    with pytest.raises(Overloaded):
        await brain.add(other, 1)
    assert brain.metric("waiting", model="adder", version="1") == 1
    brain.engines["adder"].gate.open()
    assert await asyncio.gather(held, *waiting) == [[1], [1], [2]]


async def test_a_chunk_beyond_the_limit_is_refused(serve: Serve) -> None:
    """More than ``max_steps`` in one request names the field."""
    brain = serve(max_steps=4)
    id = await brain.create()
    with pytest.raises(ServiceError) as refused:
        await brain.add(id, *[1] * 5)
    assert refused.value.field == "inputs"
    assert type(refused.value).__name__ == "TooLarge"


async def test_a_prediction_beyond_the_limit_is_refused(serve: Serve) -> None:
    """``max_steps`` bounds all sequences of a request together."""
    brain = serve(max_steps=4)
    model = brain.model("adder")
    assert len(await brain.sessions.predict(model, [numbers(1, 2), numbers(3, 4)], LAST)) == 2
    with pytest.raises(ServiceError, match="at most 4 steps") as refused:
        await brain.sessions.predict(model, [numbers(1, 2), numbers(3, 4, 5)], LAST)
    assert refused.value.field == "inputs"


async def test_predictions_are_cut_and_batched_and_leave_nothing(serve: Serve) -> None:
    """Whole sequences without a session run from the initial state, whatever their lengths."""
    brain = serve(segment_steps=3)
    shown = await brain.sessions.predict(brain.model("adder"), [numbers(*range(1, n + 1)) for n in (1, 4, 2)], ALL)
    assert [s["y"].ravel().tolist() for s in shown] == [[1], [1, 3, 6, 10], [1, 3]]
    assert brain.store.commits == []
    assert brain.store.count() == 0


async def test_a_prediction_that_is_not_finite_fails_by_name(brain: Brain) -> None:
    """One sequence that comes to infinity is told as such, not as a fault of the service."""
    with pytest.raises(NotFinite):
        await brain.sessions.predict(brain.model("poison"), [numbers(1), numbers(POISON)], ALL)


async def test_too_many_sequences_are_refused(serve: Serve) -> None:
    """More than ``max_sequences`` in one prediction names the field."""
    brain = serve(max_sequences=1)
    with pytest.raises(ServiceError, match="at most 1 sequences") as refused:
        await brain.sessions.predict(brain.model("adder"), [numbers(1), numbers(1)], ALL)
    assert refused.value.field == "inputs"


async def test_the_digest_tells_requests_apart() -> None:
    """Numbers, lengths and what is to be shown all make another request."""
    requests = [
        Advance(numbers(1), LAST),
        Advance(numbers(2), LAST),
        Advance(numbers(1, 1), LAST),
        Advance(numbers(1), ALL),
        Advance((np.array([1]),), View(top_k=1)),
        Advance((np.array([1]),), View(top_k=2)),
    ]
    assert len({request.digest for request in requests}) == len(requests)
    assert Advance(numbers(1), LAST, position=4).digest == requests[0].digest
