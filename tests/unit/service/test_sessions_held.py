"""While one request has a session to itself: who waits behind it, who interrupts it, and who reads too slowly."""

import asyncio

import pytest

from service.errors import AlreadyApplied, DeadlineExceeded, SessionEnded
from service.sessions.caller import BACKLOG, Caller
from service.sessions.generation import Generated
from tests.support.brain import Brain, Serve, drawn, primed
from tests.support.fakes import PATIENCE_S, outcome, started, turns


async def test_who_waits_behind_a_stream_is_told_in_time(serve: Serve) -> None:
    """A request behind a long generation is dropped when its time is up, not when the generation ends."""
    brain = serve(queue_timeout_s=0.05)
    id = await primed(brain)
    steps = brain.sessions.generate_stream(id, drawn(10_000), "")
    await anext(steps)
    behind = asyncio.ensure_future(brain.write(id, "a"))
    await turns()
    brain.clock.move(1.0)  # the timer of the event loop is real, and short; what it looks at is this clock
    assert isinstance(await outcome(behind), DeadlineExceeded)
    assert brain.metric("dropped_total") == 1
    await steps.aclose()


async def test_deleting_stops_a_stream(brain: Brain) -> None:
    """A session that generates can be ended: the stream stops and is told why."""
    id = await primed(brain)
    steps = brain.sessions.generate_stream(id, drawn(10_000), "")
    await anext(steps)
    await brain.sessions.delete(id, "")
    with pytest.raises(SessionEnded):
        async for _ in steps:
            pass


async def test_deleting_stops_a_whole_generation(brain: Brain) -> None:
    """Also one that is not streamed; nothing of it is committed."""
    id = await primed(brain)
    brain.engines["language"].gate.shut()
    (generating,) = await started(brain.generate(id, drawn(10_000)))
    await brain.engines["language"].gate.reached()
    (deleting,) = await started(brain.sessions.delete(id, ""))
    brain.engines["language"].gate.open()
    await deleting
    assert isinstance(await outcome(generating), SessionEnded)


async def test_a_stream_waits_for_its_reader(brain: Brain) -> None:
    """A client that does not read holds its generation back, a little ahead of what it has seen."""
    id = await primed(brain)
    start = brain.kept(id).position
    steps = brain.sessions.generate_stream(id, drawn(10_000), "")
    await anext(steps)
    while brain.kept(id).position < start + BACKLOG:  # noqa: ASYNC110 - the ticks run in a thread of their own
        await asyncio.sleep(0)
    for _ in range(100):
        await turns()
    assert brain.kept(id).position <= start + BACKLOG + 1
    for _ in range(3 * BACKLOG):
        await anext(steps)
    assert brain.kept(id).position >= start + 3 * BACKLOG
    await steps.aclose()


@pytest.mark.parametrize("end", ["leaves", "deleted"])
async def test_a_stream_that_waits_for_its_reader_can_be_stopped(brain: Brain, end: str) -> None:
    """A generation that stands still, as nobody reads, gives the session back when its client goes, or at a DELETE."""
    id = await primed(brain)
    start = brain.kept(id).position
    steps = brain.sessions.generate_stream(id, drawn(10_000), "")
    await anext(steps)
    while brain.kept(id).position < start + BACKLOG:  # noqa: ASYNC110 - the ticks run in a thread of their own
        await asyncio.sleep(0)
    await turns()
    if end == "leaves":
        await steps.aclose()
        assert (await brain.write(id, "a")).start <= start + BACKLOG + 1
    else:
        await brain.sessions.delete(id, "")
        with pytest.raises(SessionEnded):
            async for _ in steps:
                pass


async def test_a_step_that_waits_for_its_tick_is_dropped_with_its_stream(brain: Brain) -> None:
    """A client that goes while the next step is in the queue takes it along; the session stands at what was told."""
    id = await primed(brain)
    held = await brain.hold_tick("language")
    steps = brain.sessions.generate_stream(id, drawn(10_000), "")
    assert (await anext(steps)).steps == 0
    await steps.aclose()
    brain.engines["language"].gate.open()
    await held
    assert (await brain.write(id, "a")).start == 9
    assert brain.metric("generated_total", model="language") == 0
    assert brain.metric("dropped_total") == 1


async def test_who_never_reads_is_taken_for_gone() -> None:
    """A reader who stands still for too long no longer holds anything up."""
    caller = Caller(patience_s=0.01)
    ready = [caller.tell(Generated(None, None, step, 1, None)) for step in range(BACKLOG)]
    assert ready == [True] * (BACKLOG - 1) + [False]
    stopped = asyncio.Event()
    caller.when_ready(stopped.set)
    await asyncio.wait_for(stopped.wait(), PATIENCE_S)
    assert caller.gone


async def test_a_long_stream_can_be_picked_up_from_its_tail(serve: Serve) -> None:
    """Of a long stream the session tells the latest steps; its repeat is refused as applied, not told in part."""
    brain = serve(keep_answer_bytes=800)
    id = await primed(brain)
    at = brain.kept(id).position
    told = await brain.stream(id, drawn(100, position=at))
    (last,) = brain.kept(id).answers
    assert last.outputs is not None
    assert (last.start, last.steps) == (at, 100)
    latest = [int(step.outputs["tokens"][0]) for step in told if step.outputs is not None][last.dropped :]
    assert last.outputs["tokens"].tolist() == latest
    assert 0 < len(latest) < 100
    with pytest.raises(AlreadyApplied):
        await brain.stream(id, drawn(100, position=at))
