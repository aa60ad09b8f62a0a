"""The relay hands on whatever is no step: whole, as it comes, and never with an answer that nobody gave."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from service.api.steps import StepsEndpoint
from service.api.streams import Limits, Streams
from service.errors import EngineUnavailable
from service.fronts.relay import Relay
from tests.support.connection import Client, Served, Sessions, post, until
from tests.support.fakes import PATIENCE_S

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\n"


class Upstream:
    """The engine's app as a script: what it does with each connection is the test's business."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard = b""
        self.ended = 0
        self.script: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] = self.answer_whole

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.script(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()
            self.ended += 1

    async def hear(self, reader: asyncio.StreamReader, until_: bytes) -> None:
        """Read up to where a request ends."""
        while not self.heard.endswith(until_):
            self.heard += await reader.read(65_536)

    async def answer_whole(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hear up to an "end" and answer."""
        await self.hear(reader, b"end")
        writer.write(OK)

    def close(self) -> None:
        """Stop listening."""
        self._server.close()


@pytest.fixture
async def upstream(tmp_path: Path) -> AsyncIterator[Upstream]:
    """An upstream that listens."""
    made = Upstream(tmp_path / "http")
    await made.start()
    yield made
    made.close()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A front end before it."""

    def relay(steps: StepsEndpoint) -> Relay:
        return Relay(
            tmp_path / "http",
            steps,
            Streams(Sessions(), Sessions(), Limits(1000, 10, 4)),
            lambda: EngineUnavailable("away"),
        )

    made = Served(relay)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def client(served: Served) -> Client:
    """A client of the front end."""
    return await served.client()


async def test_a_request_is_handed_on_whole(upstream: Upstream, client: Client) -> None:
    """Its target and its headers as they came, but for those that concern the connection alone."""
    client.send(post("/v1/a%20b?x=%20&y", b"the end", "X-Own: 1", "te: trailers", "connection: keep-alive"))
    assert (await client.answer())[0::2] == (200, b"ok")
    head, _, body = upstream.heard.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v1/a%20b?x=%20&y HTTP/1.1"
    assert set(lines[1:]) == {b"host: x", b"x-own: 1", b"content-length: 7", b"connection: close"}
    assert body == b"the end"


async def test_a_body_of_unknown_length_is_handed_on_in_chunks(upstream: Upstream, client: Client) -> None:
    """As it comes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.hear(reader, b"0\r\n\r\n")
        writer.write(OK)

    upstream.script = script
    client.send(post("/", b"5\r\nfirst\r\n", "transfer-encoding: chunked"))
    await until(lambda: b"5\r\nfirst\r\n" in upstream.heard)
    client.send(b"3\r\nend\r\n0\r\n\r\n")
    assert (await client.answer())[0] == 200
    assert b"transfer-encoding: chunked\r\n" in upstream.heard
    assert upstream.heard.endswith(b"3\r\nend\r\n0\r\n\r\n")


async def test_large_bodies_go_through(upstream: Upstream, served: Served, client: Client) -> None:
    """However large they are, and however slowly the engine reads."""
    size = served.app.steps.max_body_bytes
    read: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        while sum(map(len, read)) < size:
            read.append(await reader.read(5000))
        writer.write(OK)

    upstream.script = script
    content = bytes(range(250)) * (size // 250)
    client.send(post("/", content))
    assert (await client.answer())[0] == 200
    assert b"".join(read) == content


async def test_answers_come_as_they_are_given(upstream: Upstream, client: Client) -> None:
    """A stream reaches its reader part by part, and ends where it ends."""
    more = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED + b"5\r\nfirst\r\n")
        await more.wait()
        writer.write(b"6\r\nsecond\r\n0\r\n\r\n")

    upstream.script = script
    client.send(post("/", method="GET"))
    head = await client.until(b"first\r\n")
    assert b"content-type: text/event-stream\r\n" in head
    more.set()
    assert await client.until(b"0\r\n\r\n") == b"6\r\nsecond\r\n0\r\n\r\n"


async def test_an_answer_may_come_before_the_body_is_read(upstream: Upstream, client: Client) -> None:
    """Who refuses a body early is heard, though the rest of it is still on its way."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 X\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno")

    upstream.script = script
    client.send(post("/", b"x" * 100_000 + b"end").replace(b"100003", b"190003"))
    assert (await client.answer())[0::2] == (413, b"no")
    client.send(b"x" * 90_000)
    upstream.script = upstream.answer_whole
    client.send(post("/", b"the end"))
    assert (await client.answer())[0] == 200


async def test_a_body_that_says_it_is_too_large_is_not_asked_for(upstream: Upstream, client: Client) -> None:
    """The engine refuses it for what it says."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream.heard = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 X\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno")

    upstream.script = script
    client.send(post("/", b"", "expect: 100-continue").replace(b"length: 0", b"length: 9999999"))
    assert (await client.answer())[0] == 413
    assert b"content-length: 9999999\r\n" in upstream.heard


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 123\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n"),
    ],
)
async def test_answers_without_a_body(upstream: Upstream, client: Client, method: str, head: bytes) -> None:
    """They end with their headers, whatever those say, and the connection goes on."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)

    upstream.script = script
    for _ in range(2):
        client.send(post("/", method=method))
        assert (await client.until(b"\r\n\r\n")).split(b"\r\n")[0] == head.split(b"\r\n")[0]


@pytest.mark.parametrize(
    "before", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", CHUNKED + b"4\r\nhalf\r\n"]
)
async def test_an_upstream_that_ends_is_an_end(
    upstream: Upstream, client: Client, before: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody knows what became of the request: the connection breaks, without an answer or in the middle of it."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(before)

    upstream.script = script
    client.send(post("/", method="GET"))
    told = await client.rest()
    assert b"500" not in told
    assert not told.endswith(b"0\r\n\r\n")
    assert caplog.records == []


async def test_without_an_upstream_nothing_was_applied(upstream: Upstream, served: Served, client: Client) -> None:
    """503, and when to come again; the connection goes on."""
    upstream.close()
    upstream.path.unlink()
    for _ in range(2):
        client.send(post("/v1/models", b"x"))
        status, headers, body = await client.answer()
        assert (status, headers["retry-after"]) == (503, "1")
        assert b"engine-unavailable" in body
    assert served.sessions.refusals == ["engine-unavailable"] * 2


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_leaves_takes_its_request_along(upstream: Upstream, client: Client, begun: bool) -> None:
    """Before the answer or in the middle of it: the engine notices."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream.heard = await reader.readuntil(b"\r\n\r\n")
        if begun:
            writer.write(CHUNKED + b"4\r\nhalf\r\n")
        assert await reader.read() == b""

    upstream.script = script
    client.send(post("/", method="GET"))
    await (client.until(b"half\r\n") if begun else until(lambda: upstream.heard))
    client.writer.transport.abort()
    await until(lambda: upstream.ended)


async def test_a_slow_reader_holds_up_its_own_stream(upstream: Upstream, client: Client) -> None:
    """What it does not read is not read from the engine either; in the end it has all of it."""
    size, parts = 200_000, 100
    sent: list[int] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (size * parts))
        for n in range(parts):
            writer.write(bytes([n]) * size)
            await writer.drain()
            sent.append(n)

    upstream.script = script
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's
    client.send(post("/", method="GET"))
    await until(lambda: len(sent) > 2)
    stood = -1
    while stood != len(sent):
        stood = len(sent)
        await asyncio.sleep(0.05)
    assert stood < parts
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]  # a socket's
    _, _, body = await client.answer()
    assert body == b"".join(bytes([n]) * size for n in range(parts))


async def test_when_the_time_to_shut_down_is_over_it_hangs_up(
    upstream: Upstream, served: Served, client: Client
) -> None:
    """The server cancels what still runs; nobody is told anything about it that is not known."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream.heard = await reader.readuntil(b"\r\n\r\n")
        assert await reader.read() == b""

    upstream.script = script
    client.send(post("/", method="GET"))
    await until(lambda: upstream.heard)
    for task in served.state.tasks:
        task.cancel()
    assert await asyncio.wait_for(client.rest(), PATIENCE_S) == b""
    await until(lambda: upstream.ended)


async def test_what_is_not_http_is_not_relayed(served: Served) -> None:
    """WebSockets have a protocol of their own, and there is no lifespan to speak of."""

    async def never() -> dict[str, object]:
        raise AssertionError("nothing is received")

    async def nowhere(_: object) -> None:
        raise AssertionError("nothing is sent")

    await served.app({"type": "lifespan"}, never, nowhere)
