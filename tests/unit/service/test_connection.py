"""Connections: steps go the short way, everything else uvicorn's, and both keep their order."""

import asyncio
import gc
import json
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.errors import Overloaded
from service.work import resolve
from tests.support.connection import Served, answer, post, until
from tests.support.fakes import turns
from tests.support.websocket import handshake

PATH = "/v1/sessions/abc/steps"
STEP = post(PATH, b'{"inputs": [1]}')


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A server."""
    made = Served()
    await made.start()
    yield made
    await made.close()


async def test_a_step_goes_straight_to_the_sessions(served: Served) -> None:
    """Decoded, with its id and position; the answer has the session's outputs, and nothing went through ASGI."""
    client = await served.client()
    for position in range(2):
        client.send(post(PATH, b'{"inputs": [%d], "position": %d}' % (position, position)))
        id, request, reply = await served.sessions.next()
        assert (id, request.position, request.chunk[0].tolist()) == ("abc", position, [[float(position)]])
        reply.set_result((answer(5.0, position + 1), False))
        status, headers, body = await client.answer()
        assert (status, headers["content-type"]) == (200, "application/json")
        assert json.loads(body)["outputs"] == {"y": [5.0]}
    assert served.app.came == []
    assert served.sessions.counted == [200, 200]
    assert served.state.total_requests == 2


async def test_a_repeat_is_marked(served: Served) -> None:
    """The answer to a repeat says so in a header."""
    client = await served.client()
    client.send(STEP)
    (await served.sessions.next())[2].set_result((answer(5.0), True))
    assert (await client.answer())[1]["idempotent-replayed"] == "true"


async def test_a_request_may_come_in_pieces(served: Served) -> None:
    """However the network cuts it."""
    client = await served.client()
    for byte in STEP:
        client.send(bytes([byte]))
        await turns()
    (await served.sessions.next())[2].set_result((answer(5.0), False))
    assert (await client.answer())[0] == 200


@pytest.mark.parametrize("request_", [STEP, post("/v1/models")], ids=["short way", "long way"])
async def test_a_connection_that_is_lost_leaves_nothing_behind(served: Served, request_: bytes) -> None:
    """It goes at once, and does not wait as one of a cycle for the collector, which comes once in many minutes."""
    client = await served.client()
    client.send(request_)
    if request_ == STEP:
        (await served.sessions.next())[2].set_result((answer(5.0), False))
    await client.answer()
    (connection,) = served.connections
    left = weakref.ref(connection)
    gc.disable()
    try:
        served.connections.clear()
        del connection
        client.writer.transport.abort()
        await until(lambda: not served.state.connections)
        await turns()
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("request_", "came"),
    [
        (post("/v1/models"), "/v1/models"),
        (post(PATH, b"{}", version="1.0"), PATH),
        (post(PATH, b"3\r\n{}\n\r\n0\r\n\r\n", "transfer-encoding: chunked"), PATH),
        (post(PATH, b"{}", method="PUT"), PATH),
        (post(PATH + "?x=1", b"{}"), PATH),
        (post("/v1/sessions/a?b=/steps", b"{}"), "/v1/sessions/a"),
        (post("/v1/sessions/a/b/steps", b"{}"), "/v1/sessions/a/b/steps"),
        (post("/v1/sessions/a%62c/steps", b"{}"), PATH),
        (post("http://x" + PATH, b"{}"), PATH),
        (post(PATH, b" " * 70_000), PATH),
    ],
    ids=["other", "1.0", "chunked", "put", "query", "no path", "deeper", "escaped", "absolute", "large"],
)
async def test_whatever_is_not_plain_goes_the_long_way(served: Served, request_: bytes, came: str) -> None:
    """The app sees what the short way is not made for, whole."""
    client = await served.client()
    client.send(request_)
    assert (await client.answer())[0] == 200
    assert served.app.came == [came]
    assert served.sessions.asked.empty()


async def test_a_client_that_asks_before_it_sends_a_body_is_told_to_go_on(served: Served) -> None:
    """100-continue is the long way's business."""
    client = await served.client()
    client.send(post(PATH, b"{}", "expect: 100-continue"))
    whole = asyncio.create_task(client.rest())
    await turns()
    await until(lambda: served.app.came)
    served.connections[0].shutdown()
    told = await whole
    assert told.startswith(b"HTTP/1.1 100 Continue\r\n\r\n") or b"200 OK" in told


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [(b"{", 400, "malformed-body"), (b'{"inputs": ["x"]}', 422, "invalid-input")],
)
async def test_what_cannot_be_decoded_is_refused(served: Served, body: bytes, status: int, reason: str) -> None:
    """With a problem document; and the connection goes on."""
    client = await served.client()
    client.send(post(PATH, body), post(PATH, body))
    for _ in range(2):
        told, headers, document = await client.answer()
        assert (told, headers["content-type"]) == (status, "application/problem+json")
        assert json.loads(document)["type"].endswith(reason)
    assert served.sessions.refusals == [reason] * 2
    assert served.sessions.counted == [status] * 2


async def test_a_session_that_is_not_at_hand_is_looked_for(served: Served) -> None:
    """Its request is submitted once its model is known; who asks for nobody is told."""
    served.sessions.at_once = False
    client = await served.client()
    client.send(STEP)
    id, _, reply = await served.sessions.next()
    assert id == "abc"
    reply.set_result((answer(5.0), False))
    assert (await client.answer())[0] == 200
    client.send(post("/v1/sessions/nobody/steps", b'{"inputs": [1]}'))
    assert (await client.answer())[0] == 404


async def test_a_head_that_does_not_end_is_refused(served: Served) -> None:
    """It would be kept in memory, however long it gets."""
    client = await served.client()
    client.send(b"GET / HTTP/1.1\r\n", *[b"x: %b\r\n" % (b"a" * 5000)] * 14)
    assert (await client.answer())[0] == 400


async def test_no_stream_begins_before_the_answers_that_are_due() -> None:
    """An upgrade that was sent ahead waits for them: they would else be written between the stream's frames."""
    upgraded: list[bytes] = []

    class WebSocket(asyncio.Protocol):
        def __init__(self, **_: object) -> None: ...

        def data_received(self, data: bytes) -> None:
            upgraded.append(data)

    served = Served(ws=WebSocket)
    await served.start()
    client = await served.client()
    client.send(STEP, post("/v1/models", b"first"), handshake("/v1/sessions/abc/stream"))
    reply = (await served.sessions.next())[2]
    await turns()
    assert upgraded == []
    reply.set_result((answer(5.0), False))
    assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
    await until(lambda: upgraded)
    assert upgraded[0].startswith(b"GET /v1/sessions/abc/stream HTTP/1.1\r\n")
    await served.close()


async def test_an_error_of_the_sessions_is_told(served: Served) -> None:
    """By its name, with what its status demands; one of ours leaves as a neutral 500."""
    client = await served.client()
    client.send(STEP)
    (await served.sessions.next())[2].set_exception(Overloaded("too many"))
    status, headers, _ = await client.answer()
    assert (status, headers["retry-after"]) == (503, "1")
    client.send(STEP)
    unwritable: Any = object()
    (await served.sessions.next())[2].set_result((unwritable, False))
    assert (await client.answer())[0] == 500


async def test_answers_keep_the_order_of_requests(served: Served) -> None:
    """Steps and other routes that a client sent ahead are begun one after the other, each when the last is answered."""
    client = await served.client()
    client.send(STEP, post("/v1/models", b"first"), STEP, post("/v1/models", b"second"))
    reply = (await served.sessions.next())[2]
    await turns()
    assert served.app.came == []
    reply.set_result((answer(5.0), False))
    assert json.loads((await client.answer())[2])["outputs"] == {"y": [5.0]}
    assert [(await client.answer())[2].split(b" ", 1) for _ in range(3)] == [
        [b"/v1/models", b"first"],
        [PATH.encode(), b'{"inputs": [1]}'],
        [b"/v1/models", b"second"],
    ]
    client.send(STEP)  # and back on the short way
    assert (await served.sessions.next())[0] == "abc"


class TestLeaving:
    async def test_nobody_waits_any_more(self, served: Served) -> None:
        """The sessions are told, what they answer goes nowhere, and it is counted as answered to nobody."""
        client = await served.client()
        client.send(STEP)
        reply = (await served.sessions.next())[2]
        assert not reply.done()
        client.writer.transport.abort()
        await until(lambda: not served.state.connections)
        assert reply.done()
        assert served.sessions.left == [reply]
        resolve(reply, (answer(5.0), False))
        assert served.sessions.counted == [0]

    async def test_in_the_middle_of_a_body(self, served: Served) -> None:
        """Half a request is none."""
        client = await served.client()
        client.send(STEP[:-3])
        await turns()
        client.writer.transport.abort()
        await until(lambda: not served.state.connections)
        assert served.sessions.asked.empty()

    async def test_with_requests_sent_ahead(self, served: Served) -> None:
        """The one that is being answered learns of it, not only the newest."""
        served.app.may.clear()
        client = await served.client()
        client.send(post("/v1/models"), post("/v1/models"))
        await until(lambda: served.app.came)
        client.writer.transport.abort()
        await until(lambda: not served.state.connections)
        await until(lambda: served.app.gone)
        assert served.app.came == ["/v1/models"]

    async def test_just_before_the_answer(self, served: Served) -> None:
        """An answer for a connection that is closing is dropped, and counted once."""
        client = await served.client()
        client.send(STEP)
        reply = (await served.sessions.next())[2]
        served.connections[0].transport.close()
        resolve(reply, (answer(5.0), False))
        assert await client.rest() == b""
        await until(lambda: not served.state.connections)
        assert served.sessions.counted == [0]


async def test_a_request_that_was_lost_is_hung_up_on(served: Served) -> None:
    """Where nobody knows what became of a request, no answer is given: the connection breaks."""
    client = await served.client()
    client.send(STEP)
    reply: Any = (await served.sessions.next())[2]
    reply.lose()
    assert await client.rest() == b""


class TestClosing:
    async def test_as_the_client_asks(self, served: Served) -> None:
        """The last answer says so."""
        client = await served.client()
        client.send(post(PATH, b'{"inputs": [1]}', "connection: close"))
        (await served.sessions.next())[2].set_result((answer(5.0), False))
        told = await client.rest()
        assert told.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"connection: close\r\n" in told

    async def test_at_a_shutdown(self, served: Served) -> None:
        """Who waits for nothing is let go at once, who waits for an answer after it."""
        idle, busy = await served.client(), await served.client()
        busy.send(STEP)
        reply = (await served.sessions.next())[2]
        await until(lambda: len(served.connections) == 2)
        for connection in served.connections:
            connection.shutdown()
        assert await idle.rest() == b""
        reply.set_result((answer(5.0), False))
        assert b"connection: close\r\n" in await busy.rest()

    async def test_after_what_cannot_be_read(self, served: Served) -> None:
        """Nonsense is answered 400; behind a request that waits, only once that is answered."""
        client = await served.client()
        client.send(b"nonsense\r\n\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
        client = await served.client()
        client.send(STEP, b"nonsense\r\n\r\n")
        (await served.sessions.next())[2].set_result((answer(5.0), False))
        told = await client.rest()
        assert told.startswith(b"HTTP/1.1 200 OK\r\n")
        assert told.count(b"HTTP/1.1") == 1

    async def test_in_the_middle_of_nonsense(self, served: Served) -> None:
        """A body that breaks the rules is answered 400, though its request has begun."""
        client = await served.client()
        client.send(post("/v1/models", b"nonsense\r\n", "transfer-encoding: chunked"))
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")


class TestKeepAlive:
    async def test_a_quiet_connection_is_closed(self) -> None:
        """Once its time is over; but never one whose client waits."""
        served = Served(timeout_keep_alive=0)
        await served.start()
        client = await served.client()
        client.send(post(PATH, b"{"), STEP)
        assert (await client.answer())[0] == 400
        reply = (await served.sessions.next())[2]
        for _ in range(3):
            await asyncio.sleep(0.001)  # the timer goes off again and again
        reply.set_result((answer(5.0), False))
        assert (await client.answer())[0] == 200
        assert await client.rest() == b""
        await served.close()

    async def test_a_connection_in_use_is_looked_at_later(self, served: Served) -> None:
        """A timer that goes off too early does nothing but start anew; on a closed connection it does nothing."""
        client = await served.client()
        client.send(post(PATH, b"{"))
        await client.answer()
        served.connections[0].timeout_keep_alive_handler()
        client.send(post(PATH, b"{"))
        assert (await client.answer())[0] == 400
        served.connections[0].transport.close()
        served.connections[0].timeout_keep_alive_handler()
        assert await client.rest() == b""

    @pytest.mark.parametrize(
        "part",
        [b"", STEP[:20], STEP[:-3], post("/v1/models", b"abc")[:-1]],
        ids=["nothing", "head", "body", "long way"],
    )
    @pytest.mark.parametrize("served_before", [False, True])
    async def test_a_request_that_does_not_come_is_not_waited_for(
        self, monkeypatch: pytest.MonkeyPatch, served: Served, part: bytes, served_before: bool
    ) -> None:
        """Whoever opens a connection and does not send a whole request is hung up on when its time is over."""
        client = await served.client()
        if served_before:
            client.send(post(PATH, b"{"))
            await client.answer()
        client.send(part)
        await until(lambda: served.connections)
        connection = served.connections[0]
        await until(lambda: bool(part) != connection._between)
        connection.timeout_keep_alive_handler()  # too early
        assert not connection.transport.is_closing()
        monkeypatch.setattr("service.api.connection._ARRIVAL_S", -1.0)
        connection.timeout_keep_alive = -1
        connection.timeout_keep_alive_handler()
        assert await client.rest() == b""
        assert served.sessions.asked.empty()

    async def test_who_waits_for_us_is_not_hung_up_on(self, monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
        """While an answer is due, also one before a request that has begun to come, time does not run."""
        client = await served.client()
        client.send(STEP, STEP[:30])
        reply = (await served.sessions.next())[2]
        monkeypatch.setattr("service.api.connection._ARRIVAL_S", -1.0)
        connection = served.connections[0]
        connection.timeout_keep_alive = -1
        connection.timeout_keep_alive_handler()
        assert not connection.transport.is_closing()
        reply.set_result((answer(5.0), False))
        assert (await client.answer())[0] == 200
        assert await client.rest() == b""

    async def test_it_ends_with_an_upgrade(self) -> None:
        """A WebSocket is not closed by the timer of the connection that it was."""
        upgraded: list[bytes] = []

        class WebSocket(asyncio.Protocol):
            def __init__(self, **_: object) -> None: ...

            def data_received(self, data: bytes) -> None:
                upgraded.append(data)

        served = Served(ws=WebSocket)
        await served.start()
        client = await served.client()
        client.send(post(PATH, b"{"))
        await client.answer()
        client.send(b"GET /stream HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        await until(lambda: upgraded)
        assert upgraded[0].startswith(b"GET /stream HTTP/1.1\r\n")
        assert served.connections[0].timeout_keep_alive_task is None
        await served.close()


async def test_who_does_not_read_gets_no_more(served: Served) -> None:
    """While answers pile up in front of a client its requests go the way that waits for room."""
    client = await served.client()
    client.send(post(PATH, b"{"))
    await client.answer()
    served.connections[0].pause_writing()
    client.send(STEP)
    await until(lambda: served.app.came)
    served.connections[0].resume_writing()
    assert (await client.answer())[2] == PATH.encode() + b' {"inputs": [1]}'
