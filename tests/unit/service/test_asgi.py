"""The little that the plain endpoints need: bodies within their limit, and noticing who has gone."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from service.api import asgi
from service.api.asgi import App, ClientDisconnected, Message, Receive, Send, read_body, respond, watching
from service.api.edge import Edge
from service.errors import TooLarge
from tests.support.brain import Brain
from tests.support.fakes import turns


def receiving(*messages: Message) -> Receive:
    """A client that sends these messages and then is silent."""
    left = list(messages)

    async def receive() -> Message:
        if left:
            return left.pop(0)
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]  # it never comes

    return receive


def body(*parts: bytes) -> list[Message]:
    """A request's body in parts."""
    last = len(parts) - 1
    return [{"type": "http.request", "body": part, "more_body": n < last} for n, part in enumerate(parts)]


GONE: Message = {"type": "http.disconnect"}


@pytest.mark.parametrize("parts", [[b""], [b"whole"], [b"in ", b"", b"parts"]])
async def test_a_body_is_read_whole(parts: Sequence[bytes]) -> None:
    """In however many parts it comes."""
    assert await read_body(receiving(*body(*parts)), 100) == b"".join(parts)


async def test_a_message_without_a_body_is_an_empty_one() -> None:
    """ASGI lets servers leave out what is empty."""
    assert await read_body(receiving({"type": "http.request"}), 100) == b""


async def test_a_body_beyond_the_limit_is_refused_before_it_is_read() -> None:
    """As soon as it is too large, however much is to come; exactly at the limit it is not."""
    assert await read_body(receiving(*body(b"12", b"34")), 4) == b"1234"
    with pytest.raises(TooLarge) as refused:
        await read_body(receiving({"type": "http.request", "body": b"12345", "more_body": True}), 4)
    assert refused.value.field == "body"


async def test_half_a_body_is_no_request() -> None:
    """A client that goes while it sends is not answered."""
    with pytest.raises(ClientDisconnected):
        await read_body(receiving({"type": "http.request", "body": b"1", "more_body": True}, GONE), 100)


async def test_an_answer_tells_its_length() -> None:
    """So that the connection can be used again."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await respond(send, 201, b"abc", [(b"x", b"y")])
    assert sent == [
        {"type": "http.response.start", "status": 201, "headers": [(b"x", b"y"), (b"content-length", b"3")]},
        {"type": "http.response.body", "body": b"abc"},
    ]


async def test_a_client_that_goes_cancels_what_runs_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work inside is cancelled, and its task may go on to answer nobody."""
    monkeypatch.setattr(asgi, "WATCH_AFTER_S", 0.0)
    work: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with pytest.raises(ClientDisconnected), watching(receiving(*body(b"rest"), GONE)):
        await work
    assert work.cancelled()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_quick_answers_pay_nothing_for_being_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens to the connection unless the answer is late, and not after it either."""
    monkeypatch.setattr(asgi, "WATCH_AFTER_S", 0.0)
    listened = False

    async def receive() -> Message:
        nonlocal listened
        listened = True
        return GONE

    with watching(receive):
        pass
    await turns()
    assert not listened


async def test_a_cancellation_from_elsewhere_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that shuts down is not taken for a client that has gone."""
    monkeypatch.setattr(asgi, "WATCH_AFTER_S", 0.0)

    async def work() -> None:
        with watching(receiving()):
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_faults_inside_come_out_as_they_are() -> None:
    """Watching changes no error, and leaves no listener behind."""
    with pytest.raises(ZeroDivisionError), watching(receiving()):
        raise ZeroDivisionError
    assert len(asyncio.all_tasks()) == 1


class Endpoint:
    """Stands for the hot path's endpoint, which takes nothing here."""

    path = "/v1/sessions/{id}/steps"

    def takes(self, scope: object) -> bool:
        """See ``StepsEndpoint``."""
        return False


async def test_the_edge_refuses_large_bodies_and_counts_every_request(brain: Brain) -> None:
    """What is too large reaches no route; each request is counted by its route's template and its status."""
    seen: list[bytes] = []
    sent: list[Message] = []

    async def app(scope: Any, receive: Receive, send: Any) -> None:  # noqa: ANN401 - ASGI's own
        scope["route"] = type("Route", (), {"path": "/v1/models/{model}"})
        seen.append(await read_body(receive, 100))
        await respond(send, 404, b"", [])

    async def send(message: Message) -> None:
        sent.append(message)

    edge = Edge(app, Endpoint(), Endpoint(), brain.metrics, 4, retire=lambda: None)  # type: ignore[arg-type]  # two members are needed
    await edge({"type": "http"}, receiving(*body(b"12", b"34")), send)
    await edge({"type": "http"}, receiving(*body(b"12", b"345")), send)
    await edge({"type": "http"}, receiving(GONE), send)
    assert seen == [b"1234"]
    assert [message["status"] for message in sent if "status" in message] == [404, 413]
    count = "request_seconds_count"
    assert brain.metric(count, route="/v1/models/{model}", status="404") == 1
    assert brain.metric(count, route="none", status="413") == 1
    assert brain.metric("rejected_total", reason="too-large") == 1
    assert brain.metric(count, route="none", status="0") == 1


class Cycle:
    """Stands for uvicorn's request: takes messages until its transport is closed."""

    def __init__(self, *, closed: bool = False) -> None:
        self.closed = closed
        self.disconnected = False
        self.sent: list[Message] = []

    async def send(self, message: Message) -> None:
        """ASGI's send."""
        if self.closed:
            raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")
        self.sent.append(message)

    @property
    def statuses(self) -> list[int]:
        """What was answered."""
        return [message["status"] for message in self.sent if "status" in message]


def edge_over(app: App, brain: Brain) -> Edge:
    """The edge in front of an app, with a limit of 100 bytes."""
    return Edge(app, Endpoint(), Endpoint(), brain.metrics, 100, retire=lambda: None)  # type: ignore[arg-type]  # two members are needed


async def test_a_closed_connection_is_a_client_that_went() -> None:
    """Whoever hung up is not answered, and uvicorn is told so; other faults of sending stay what they are."""
    cycle = Cycle(closed=True)
    with pytest.raises(ClientDisconnected):
        await respond(cycle.send, 200, b"", [])
    assert cycle.disconnected

    async def wrong(_: Message) -> None:
        raise RuntimeError("Response content longer than Content-Length")

    with pytest.raises(RuntimeError, match="longer"):
        await respond(wrong, 200, b"", [])


async def test_a_fault_that_was_answered_goes_no_further(brain: Brain) -> None:
    """Starlette raises again what it has answered: it is counted once with its status, and not logged twice."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:  # noqa: ANN401 - ASGI's own
        await respond(send, 500, b"{}", [])
        raise ZeroDivisionError

    cycle = Cycle()
    await edge_over(app, brain)({"type": "http"}, receiving(*body(b"")), cycle.send)
    assert cycle.statuses == [500]
    assert brain.metric("request_seconds_count", route="none", status="500") == 1


async def test_a_fault_before_the_answer_is_a_neutral_500(brain: Brain) -> None:
    """Nobody waits in vain, even where the app cannot answer its own fault."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:  # noqa: ANN401 - ASGI's own
        raise ZeroDivisionError

    cycle = Cycle()
    await edge_over(app, brain)({"type": "http"}, receiving(*body(b"")), cycle.send)
    assert cycle.statuses == [500]
    assert brain.metric("rejected_total", reason="internal-error") == 1


async def test_half_an_answer_is_a_fault_for_the_server(brain: Brain) -> None:
    """What broke after the first byte cannot be told: the server has to cut the connection, and it is counted."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:  # noqa: ANN401 - ASGI's own
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await edge_over(app, brain)({"type": "http"}, receiving(*body(b"")), Cycle().send)
    assert brain.metric("request_seconds_count", route="none", status="200") == 1


async def test_whoever_hung_up_leaves_quietly(brain: Brain) -> None:
    """An answer into a closed connection raises nothing, whatever the app makes of it, and counts as status 0."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:  # noqa: ANN401 - ASGI's own
        try:
            await respond(send, 200, b"", [])
        except Exception as error:
            raise RuntimeError("response already started") from error

    cycle = Cycle(closed=True)
    await edge_over(app, brain)({"type": "http"}, receiving(*body(b"")), cycle.send)
    assert cycle.disconnected
    assert brain.metric("request_seconds_count", route="none", status="0") == 1


async def test_a_server_that_cancels_tells_the_client(brain: Brain) -> None:
    """When the time to shut down has run out, what is still at work is answered with 503."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:  # noqa: ANN401 - ASGI's own
        await asyncio.get_running_loop().create_future()

    cycle = Cycle()
    task = asyncio.create_task(edge_over(app, brain)({"type": "http"}, receiving(*body(b"")), cycle.send))
    await turns()
    task.cancel()
    await task
    assert cycle.statuses == [503]
    assert b"shutting-down" in cycle.sent[-1]["body"]
    assert brain.metric("rejected_total", reason="shutting-down") == 1


async def test_a_body_that_says_it_is_too_large_is_not_read(brain: Brain) -> None:
    """The refusal comes before anything is received, so before the 100-continue that would ask for it."""

    async def never() -> Message:
        raise AssertionError("received")

    async def app(scope: Any, receive: Receive, send: Send) -> None:  # noqa: ANN401 - ASGI's own
        raise AssertionError("called")

    cycle = Cycle()
    await edge_over(app, brain)({"type": "http", "headers": [(b"content-length", b"101")]}, never, cycle.send)
    assert cycle.statuses == [413]
