"""Work of many ticks, once it has begun, is neither refused nor cut off half-way by limits meant for who waits."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service.errors import DeadlineExceeded, NotFinite
from tests.support.artifacts import POISON
from tests.support.brain import ALL, Brain, Serve, drawn, numbers
from tests.support.fakes import outcome, started

Long = Callable[[Brain, str], Coroutine[Any, Any, object]]
LONG: dict[str, Long] = {
    "chunk": lambda brain, id: brain.write(id, "abcd"),
    "generation": lambda brain, id: brain.generate(id, drawn(4)),
    "stream": lambda brain, id: brain.stream(id, drawn(4)),
}


@pytest.mark.parametrize("long", LONG.values(), ids=LONG.keys())
async def test_what_has_begun_does_not_come_too_late(serve: Serve, long: Long) -> None:
    """``queue_timeout_s`` is for the wait before the first tick; what has begun runs to its end."""
    brain = serve(queue_timeout_s=10, segment_steps=1)
    id = await brain.create("language")
    await brain.write(id, "a")
    gate = brain.engines["language"].gate
    gate.shut()
    (running,) = await started(long(brain, id))
    await gate.reached()
    brain.clock.move(11.0)
    gate.open()
    await running
    assert brain.kept(id).position == 5


@pytest.mark.parametrize("long", LONG.values(), ids=LONG.keys())
async def test_what_has_not_begun_comes_too_late(serve: Serve, long: Long) -> None:
    """Behind others a long request waits no longer than a short one."""
    brain = serve(queue_timeout_s=10, segment_steps=1)
    id = await brain.create("language")
    await brain.write(id, "a")
    held = await brain.hold_tick("language")
    (waiting,) = await started(long(brain, id))
    brain.clock.move(11.0)
    brain.engines["language"].gate.open()
    await held
    assert isinstance(await outcome(waiting), DeadlineExceeded)
    assert brain.kept(id).position == 1


@pytest.mark.parametrize("long", LONG.values(), ids=LONG.keys())
async def test_what_has_begun_is_not_refused_by_a_full_queue(serve: Serve, long: Long) -> None:
    """The next part of something that was accepted finds its place, however many wait."""
    brain = serve(max_queue=1, segment_steps=1)
    id, other = await brain.create("language"), await brain.create("language")
    await brain.write(id, "a")
    gate = brain.engines["language"].gate
    gate.shut()
    (running,) = await started(long(brain, id))
    await gate.reached()
    (waiting,) = await started(brain.write(other, "a"))
    assert brain.metric("waiting", model="language", version="1") == 1
    gate.open()
    await asyncio.gather(running, waiting)
    assert brain.kept(id).position == 5


async def test_a_prediction_that_failed_stops_its_other_sequences(serve: Serve) -> None:
    """Nobody wants the rest of a request that was refused."""
    brain = serve(segment_steps=1)
    with pytest.raises(NotFinite):
        await brain.sessions.predict(brain.model("poison"), [numbers(POISON), numbers(*[1] * 500)], ALL)
    id = await brain.create("poison")
    assert [await brain.add(id, 1) for _ in range(3)] == [[1], [2], [3]]
    assert brain.engines["poison"].ticks[-1] == [1]


async def test_segments_grow_while_nobody_else_is_served(serve: Serve) -> None:
    """A long chunk that has the model to itself is cut less often, up to the time that a segment may take."""
    brain = serve(segment_steps=2, lone_segment_ms=3)
    id, ticks = await brain.create(), brain.engines["adder"].ticks
    assert await brain.add(id, *[1] * 20) == [*range(1, 21)]
    assert ticks == [[2], [4], [8], [6]]
    ticks.clear()
    brain.engines["adder"].before_run = lambda: brain.clock.move(0.001 * ticks[-1][0])  # each step takes 1 ms
    await brain.add(id, *[1] * 6)
    assert ticks == [[2], [2], [2]]


async def test_one_step_at_a_time_stays_one(serve: Serve) -> None:
    """Of a model that takes one step at a time, and one whose chunks may not be cut, segments do not grow."""
    brain = serve(lone_segment_ms=3)
    id = await brain.create("one_step")
    await brain.add(id, *[1] * 5)
    assert brain.engines["one_step"].ticks == [[1]] * 5
    assert brain.model("looks_ahead").lone_segment_s == 0


async def test_segments_are_short_again_once_others_come(serve: Serve) -> None:
    """Whoever else is served waits for one long segment at most."""
    brain = serve(segment_steps=2, lone_segment_ms=3)
    long, short = await brain.create(), await brain.create()
    engine = brain.engines["adder"]
    engine.gate.shut()
    (chunk,) = await started(brain.add(long, *[1] * 20))
    await engine.gate.reached()
    await engine.gate.next()  # the second segment, of 4 steps, stands at the gate
    (other,) = await started(brain.add(short, 5))
    engine.gate.open()
    await asyncio.gather(chunk, other)
    assert engine.ticks == [[2], [4], [1], [2], [2], [4], [6]]
