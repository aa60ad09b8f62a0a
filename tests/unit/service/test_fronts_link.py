"""A front end and the engine, over a real socket: the sessions look the same from either end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from service.api.problems import Headers
from service.api.steps import PATH, StepsCounts, StepsEndpoint, StepsReply
from service.errors import EngineUnavailable, PositionConflict, UnknownSession
from service.fronts import link
from service.fronts.hub import Hub
from service.fronts.link import EngineLost, RemoteSessions
from service.sessions.requests import Advance
from service.state import Answer
from tests.support.brain import ALL, Brain, Serve, numbers, sums
from tests.support.connection import until
from tests.support.fakes import PATIENCE_S, outcome, turns
from tests.support.records import plain

BODY = b'{"inputs": [2], "return": "all"}'


class Waited(StepsReply):
    """A reply whose answer a test waits for."""

    __slots__ = ("gone", "lost", "told")

    def __init__(self, steps: StepsEndpoint) -> None:
        super().__init__(steps)
        self.told: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self.gone = self.lost = False

    def done(self) -> bool:
        """See ``Reply``."""
        return self.gone or self.told.done()

    def lose(self) -> None:
        """See ``StepsReply``."""
        self.lost = True

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """See ``StepsReply``."""
        self.told.set_result((status, body))


class Pair:
    """One engine's end, and one front end."""

    def __init__(self, brain: Brain, path: Path) -> None:
        self.brain = brain
        self.engine = StepsEndpoint(brain.sessions, StepsCounts(brain.metrics), 10_000, 1000)
        self.sessions = RemoteSessions(path)
        self.front = StepsEndpoint(self.sessions, self.sessions, 10_000, 1000)
        self.hubs: set[Hub] = set()
        self._path = path

    async def open(self) -> None:
        """The engine listens."""
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: Hub(self.engine, StepsCounts(self.brain.metrics, "/stream"), self.hubs), str(self._path)
        )

    async def lose_engine(self) -> None:
        """The engine's process ends, with all that it had."""
        self._server.close()
        for hub in list(self.hubs):
            assert hub.transport is not None
            hub.transport.abort()
        await until(lambda: not self.hubs)
        self._path.unlink()

    def begin(self, id: str, body: bytes = BODY) -> Waited:
        """A request as it comes to the front end."""
        self.front.begin(id, body, reply := Waited(self.front))
        return reply

    async def step(self, id: str, body: bytes = BODY) -> tuple[int, Any]:
        """A request and its answer."""
        status, told = await asyncio.wait_for(self.begin(id, body).told, PATIENCE_S)
        return status, json.loads(told)

    async def raw(self, id: str, *values: float, position: int | None = None) -> tuple[Answer, bool]:
        """Steps of one who wants the answer itself."""
        await self.sessions.model_of(id, "")
        reply: asyncio.Future[tuple[Answer, bool]] = asyncio.get_running_loop().create_future()
        self.sessions.submit(id, Advance(numbers(*values), ALL, position), "", reply)
        return await asyncio.wait_for(reply, PATIENCE_S)

    async def close(self) -> None:
        """Hang up."""
        self._server.close()
        for hub in list(self.hubs):
            await hub.close()


@pytest.fixture
async def pair(brain: Brain, tmp_path: Path) -> AsyncIterator[Pair]:
    """The two, connected."""
    made = Pair(brain, tmp_path / "link")
    await made.open()
    await made.sessions.connect()
    task = asyncio.create_task(made.sessions.keep_connected())
    yield made
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await made.close()


async def test_steps_are_answered_as_without_a_front_end(pair: Pair) -> None:
    """The same status and the same bytes, for the first request of a session and for later ones."""
    id, other = await pair.brain.create(), await pair.brain.create()
    for position in range(3):
        told = await pair.step(id, b'{"inputs": [2], "position": %d}' % position)
        pair.engine.begin(other, b'{"inputs": [2], "position": %d}' % position, direct := Waited(pair.engine))
        status, body = await direct.told
        assert told == (status, json.loads(body))
    assert pair.brain.kept(id).position == 3


async def test_a_repeat_is_one_also_through_a_front_end(pair: Pair) -> None:
    """Nothing moves, and who asks for the answer itself is told that it is a repeat's."""
    id = await pair.brain.create()
    first, repeated = await pair.raw(id, 1, 2, position=0)
    assert not repeated
    assert sums(first) == [1, 3]
    again, repeated = await pair.raw(id, 1, 2, position=0)
    assert repeated
    assert plain(again) == plain(first)


async def test_a_session_that_rests_is_woken(pair: Pair, serve: Serve) -> None:
    """A front end may know a session that the engine has to load: its requests keep their order."""
    id = await pair.brain.create()
    await pair.step(id)
    pair.engine.sessions = serve().sessions  # as after a restart
    for hub in pair.hubs:
        hub._sessions = pair.engine.sessions
    replies = [pair.begin(id, b'{"inputs": [%d]}' % n) for n in (1, 10, 100)]
    told = [json.loads((await asyncio.wait_for(reply.told, PATIENCE_S))[1])["outputs"]["y"] for reply in replies]
    assert told == [[3.0], [13.0], [113.0]]


async def test_nothing_overtakes_what_waits_for_a_load(pair: Pair, serve: Serve) -> None:
    """Requests of one session keep their order also where the engine loads it while they come."""
    id = await pair.brain.create()
    await pair.step(id)
    brain = serve()
    pair.engine.sessions = brain.sessions  # as after a restart
    (hub,) = pair.hubs
    hub._sessions = brain.sessions
    loading, later = brain.hold_loads()
    one = pair.begin(id, b'{"inputs": [1]}')
    await loading.reached()
    two = pair.begin(id, b'{"inputs": [10]}')
    await until(lambda: len(hub._waiting) == 2)
    loading.open()
    await asyncio.wait_for(one.told, PATIENCE_S)
    three = pair.begin(id, b'{"inputs": [100]}')
    await turns()
    later.open()
    told = [json.loads((await asyncio.wait_for(reply.told, PATIENCE_S))[1])["outputs"]["y"] for reply in (two, three)]
    assert told == [[13.0], [113.0]]


async def test_errors_keep_their_names(pair: Pair) -> None:
    """With detail, field and facts; one that has no name stays inside."""
    id = await pair.brain.create()
    with pytest.raises(UnknownSession):
        await pair.raw("nobody", 1)
    with pytest.raises(PositionConflict) as refused:
        await pair.raw(id, 1, position=5)
    assert (refused.value.field, refused.value.facts) == ("position", {"position": 0})
    assert (await pair.step("nobody"))[0] == 404
    status, told = await pair.step(id, b'{"inputs": [1], "position": 5}')
    assert (status, told["position"]) == (409, 0)
    pair.brain.engines["adder"].broken = RuntimeError("a secret")
    assert (await pair.step(id))[0] == 500
    with pytest.raises(RuntimeError, match="log") as hidden:
        await pair.raw(id, 1)
    assert "secret" not in str(hidden.value)


async def test_what_the_front_end_refuses_is_counted_by_the_engine(pair: Pair) -> None:
    """By its reason and its status."""
    id = await pair.brain.create()
    assert (await pair.step(id, b"{"))[0] == 400
    await pair.step(id)
    assert pair.brain.metric("rejected_total", reason="malformed-body") == 1
    route = {"route": PATH}
    assert pair.brain.metric("request_seconds_count", status="400", **route) == 1
    assert pair.brain.metric("request_seconds_count", status="200", **route) == 1


async def test_streams_are_counted_by_the_engine(pair: Pair) -> None:
    """Each message with its status and its time, and refusals by their reason, under the streams' own route."""
    id, counts = await pair.brain.create(), link.StreamCounts(pair.sessions)
    counts.answered(200, 0.5)
    counts.refused("overloaded", 503)
    counts.answered(503, 0.25)
    await pair.step(id)
    assert pair.brain.metric("request_seconds_sum", route="/stream", status="200") == 0.5
    assert pair.brain.metric("request_seconds_count", route="/stream", status="503") == 1
    assert pair.brain.metric("rejected_total", reason="overloaded") == 1
    assert pair.brain.metric("request_seconds_count", route=PATH, status="503") == 0


@pytest.mark.parametrize("how", ["leave", "hang up"])
async def test_who_leaves_is_not_waited_for(pair: Pair, how: str) -> None:
    """A request that does not run yet is dropped, whether its client leaves or the whole front end."""
    id = await pair.brain.create()
    await pair.step(id)
    tick = await pair.brain.hold_tick()
    reply = pair.begin(id)
    (hub,) = pair.hubs
    await until(lambda: hub._waiting)
    reply.gone = True
    if how == "leave":
        pair.sessions.leave(reply)
        pair.sessions.leave(reply)  # again: nobody waits
    else:
        assert pair.sessions._link is not None
        assert pair.sessions._link.transport is not None
        pair.sessions._link.transport.abort()
    await until(lambda: not hub._waiting)
    pair.brain.engines["adder"].gate.open()
    await outcome(tick)
    assert pair.brain.kept(id).position == 1
    assert pair.brain.metric("request_seconds_count", route=PATH, status="0") == 1


async def test_an_answer_that_comes_too_late_is_dropped(pair: Pair) -> None:
    """The client has gone meanwhile; the step is applied, as it was begun."""
    id = await pair.brain.create()
    await pair.step(id)
    reply = pair.begin(id)
    reply.gone = True
    assert (await pair.step(id))[1]["position"] == 3
    assert not reply.told.done()


class TestLosingTheEngine:
    async def test_what_it_had_is_lost(self, pair: Pair) -> None:
        """Nobody is told that nothing was applied; who left before is not told anything."""
        id = await pair.brain.create()
        await pair.step(id)
        tick = await pair.brain.hold_tick()
        sent, left = pair.begin(id), pair.begin(id)
        raw: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        pair.sessions.submit(id, Advance(numbers(1), ALL), "", raw)
        await until(lambda: sum(len(hub._waiting) for hub in pair.hubs) == 3)
        left.gone = True
        await pair.lose_engine()
        await until(lambda: sent.lost)
        assert isinstance(await outcome(raw), EngineLost)
        assert not left.lost
        assert not sent.told.done()
        pair.brain.engines["adder"].gate.open()
        await outcome(tick)
        await pair.open()

    async def test_who_comes_before_it_is_noticed_is_told(self, pair: Pair) -> None:
        """Between the loss and the turn of the event loop in which it is noticed nothing is sent into the void."""
        id = await pair.brain.create()
        await pair.step(id)
        assert pair.sessions._link is not None
        pair.sessions._link.connection_lost(None)
        status, told = await pair.step(id)
        assert (status, told["type"]) == (503, "urn:lstm-serve:problem:engine-unavailable")

    async def test_what_was_not_sent_may_come_again(self, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also what only asked for a model; and once there is an engine again, everything goes on."""
        monkeypatch.setattr(link, "_AGAIN_S", 0.001)
        id = await pair.brain.create()
        await pair.step(id)
        asking = asyncio.create_task(pair.sessions.model_of("other", ""))
        await asyncio.sleep(0)
        await pair.lose_engine()
        assert isinstance(await outcome(asking), EngineUnavailable | UnknownSession)
        status, told = await pair.step(id)
        assert (status, told["type"]) == (503, "urn:lstm-serve:problem:engine-unavailable")
        pair.sessions.leave(pair.begin(id))
        with pytest.raises(EngineUnavailable):
            await pair.sessions.model_of("other", "")
        await pair.open()
        await until(lambda: pair.sessions._link is not None)
        assert (await pair.step(id))[1]["position"] == 2


async def test_a_model_is_told_once(pair: Pair) -> None:
    """Even if who asked for it has gone when it comes: later ones find it."""
    ids = [await pair.brain.create() for _ in range(2)]
    asking = asyncio.create_task(pair.sessions.model_of(ids[0], ""))
    await asyncio.sleep(0)
    asking.cancel()
    model = await asyncio.wait_for(pair.sessions.model_of(ids[1], ""), PATIENCE_S)
    assert model.signature == pair.brain.model("adder").signature
    assert await pair.sessions.model_of(ids[0], "") == model


async def test_a_session_is_at_hand_for_its_owner(pair: Pair) -> None:
    """To others it is one that has to be looked for, and is not found."""
    id = await pair.brain.create(owner="me")
    await pair.sessions.model_of(id, "me")
    assert pair.sessions.at_hand(id, "me") is not None
    assert pair.sessions.at_hand(id, "you") is None
    with pytest.raises(UnknownSession):
        await pair.sessions.model_of(id, "you")


async def test_not_everybody_is_remembered(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many sessions the front end keeps those that it found last."""
    monkeypatch.setattr(link, "_KNOWN", 2)
    ids = [await pair.brain.create() for _ in range(3)]
    for id in ids:
        await pair.step(id)
    assert [pair.sessions.at_hand(id, "") is not None for id in ids] == [False, True, True]
    assert (await pair.step(ids[0]))[1]["position"] == 2


async def test_the_engine_refuses_what_it_refuses_at_once(pair: Pair) -> None:
    """A session that has ended meanwhile, and steps that are too many: the front end is told like anybody."""
    id = await pair.brain.create()
    await pair.step(id)
    too_many = json.dumps({"inputs": [1] * 1000}).encode()
    sessions = pair.brain.sessions
    sessions._settings = sessions._settings.model_copy(update={"max_steps": 10})
    assert (await pair.step(id, too_many))[0] == 413
    await pair.brain.sessions.delete(id, "")
    assert (await pair.step(id))[0] == 410
