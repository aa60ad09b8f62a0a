"""A session of the load over a stream: what it sends, what it makes of answers, what it does where none come."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from bench.errors import BenchError
from bench.inputs import chunks
from bench.messages import HEADER, Binary, Json
from bench.options import Address
from bench.stream_session import StreamSession, Way
from bench.websocket import BINARY, CLOSE, PING, PONG, TEXT, NotWebSocket, Reader, frame
from service.api.handshake import accepted, read
from service.api.websocket import Receiver, close_frame
from service.api.websocket import frame as sent

STEPS = 2
HANG_UP = b""


def stepped(position: int) -> bytes:
    """The frame that answers two steps in JSON."""
    return sent(TEXT, b'{"position":%d,"steps":2,"outputs":{}}' % position)


def told(position: int, steps: int = STEPS) -> bytes:
    """The same in binary."""
    return sent(BINARY, struct.pack("<BBHIqd", 0, 0, 0, steps, position, 0.0))


class Scripted:
    """A server that makes sessions over HTTP, and answers the n-th message of a stream with the n-th of its script."""

    def __init__(self) -> None:
        self.script: list[bytes] = []
        self.heard: list[tuple[int, bytes]] = []
        self.opened: list[bytes] = []
        self.opens = True
        self.address = Address("127.0.0.1", 0)
        self.connections: list[asyncio.Task[None] | None] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections.append(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"POST"):
                writer.write(b'HTTP/1.1 201 X\r\ncontent-length: 12\r\n\r\n{"id": "s1"}')
            elif not self.opens:
                told = b'{"type": "urn:x:invalid-input", "detail": "in_flight is a number from 1 to 2"}'
                writer.write(b"HTTP/1.1 422 X\r\ncontent-length: %d\r\n\r\n" % len(told))
                await writer.drain()
                writer.write(told)
            else:
                self.opened.append(head.split(b" ")[1])
                writer.write(accepted(read(head, 64).accept))
                await self._talk(reader, writer)
            while await reader.read(1000):
                pass
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        receiver = Receiver(10_000)
        while data := await reader.read(1000):
            receiver.feed(data)
            while (message := receiver.next()) is not None:
                self.heard.append(message)
                answer = self.script.pop(0) if self.script else b"wait"
                if answer == HANG_UP:
                    raise ConnectionError
                if answer != b"wait":
                    writer.write(answer)


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """It listens."""
    scripted = Scripted()
    listening = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    scripted.address = Address("127.0.0.1", listening.sockets[0].getsockname()[1])
    yield scripted
    listening.close()
    await asyncio.gather(*filter(None, scripted.connections))


@pytest.fixture
async def session(server: Scripted) -> AsyncIterator[StreamSession]:
    """A session at position 0 that has up to three requests in flight, in JSON."""
    made = StreamSession(server.address, "m", [b'"inputs":[1,2]', b'"inputs":[3,4]'], STEPS, 0, Way(3, Json()))
    await made.create()
    yield made
    made.give_up()
    await asyncio.sleep(0)


async def over(session: StreamSession, requests: int) -> list[tuple[float, str | None]]:
    """Send so many at once; when each began, and what became of it."""
    ended: list[tuple[float, str | None]] = []
    all_over = asyncio.Event()

    def done(_: object, problem: str | None) -> None:
        ended.append((session.began, problem))
        if len(ended) == requests:
            all_over.set()

    session.done = done
    for n in range(requests):
        session.send(float(n))
    async with asyncio.timeout(30):
        await all_over.wait()
    return ended


async def test_several_are_in_flight(server: Scripted, session: StreamSession) -> None:
    """Each at the position where the one before it will end."""
    server.script = [b"wait", stepped(2) + stepped(4)[:3], stepped(4)[3:] + stepped(6)]
    assert await over(session, 3) == [(0.0, None), (1.0, None), (2.0, None)]
    assert server.heard == [
        (TEXT, b'{"position":0,"inputs":[1,2]}'),
        (TEXT, b'{"position":2,"inputs":[3,4]}'),
        (TEXT, b'{"position":4,"inputs":[1,2]}'),
    ]
    assert server.opened == [b"/v1/sessions/s1/stream?in_flight=3"]
    assert (session.position, session.busy, session.certain) == (6, False, True)


async def test_binary_messages(server: Scripted) -> None:
    """The position is put into a chunk that is ready."""
    chunk = HEADER.pack(0, 0, 1, STEPS, 0) + b"inputs"
    session = StreamSession(server.address, "m", [chunk], STEPS, 0, Way(1, Binary()))
    await session.create()
    server.script = [told(2), told(4), told(6, steps=1), sent(TEXT, b'{"status":422,"type":"urn:x:invalid-input"}')]
    ended = [await over(session, 1) for _ in range(4)]
    assert [problem for [(_, problem)] in ended] == [None, None, "wrong-answer", "invalid-input"]
    assert server.heard[1] == (BINARY, HEADER.pack(0, 0, 1, STEPS, 2) + b"inputs")
    session.give_up()


async def test_a_problem_is_told_by_its_type(server: Scripted, session: StreamSession) -> None:
    """What was in flight behind it fails too; then it goes on where the session stands."""
    conflict = sent(TEXT, b'{"status":409,"type":"urn:x:position-conflict","position":8}')
    server.script = [conflict, conflict, stepped(10)]
    assert [problem for _, problem in await over(session, 2)] == ["position-conflict"] * 2
    assert await over(session, 1) == [(0.0, None)]
    assert server.heard[2][1].startswith(b'{"position":8,')


async def test_after_a_lost_connection_all_is_sent_again(server: Scripted, session: StreamSession) -> None:
    """With the same positions; a second loss is told of each."""
    server.script = [b"wait", HANG_UP, stepped(2), stepped(4)]
    assert [problem for _, problem in await over(session, 2)] == [None, None]
    assert server.heard[:2] == server.heard[2:]
    server.script = [HANG_UP, HANG_UP]
    assert [problem for _, problem in await over(session, 2)] == ["connection-lost"] * 2
    assert not session.certain


async def test_a_server_that_closes_is_answered(server: Scripted, session: StreamSession) -> None:
    """And asked again, as after a lost connection; a ping is answered, too."""
    server.script = [sent(PING, b"?") + close_frame(1001), b"wait", b"wait", stepped(2)]
    assert await over(session, 1) == [(0.0, None)]
    assert server.heard[1:3] == [(PONG, b"?"), (CLOSE, b"\x03\xe9")]


async def test_a_stream_that_is_not_opened(server: Scripted) -> None:
    """The user is told why, in the server's own sentence, before any load begins; the session can still be ended."""
    server.opens = False
    session = StreamSession(server.address, "m", [b""], STEPS, 0, Way(3, Json()))
    with pytest.raises(BenchError, match="opens no stream: invalid-input, in_flight is a number from 1 to 2"):
        await session.create()


async def test_a_stream_that_is_not_opened_again(server: Scripted, session: StreamSession) -> None:
    """A refusal during the load is counted by its kind."""
    server.opens = False
    server.script = [HANG_UP]
    assert [problem for _, problem in await over(session, 2)] == ["invalid-input"] * 2


async def test_what_is_given_up_was_in_flight(server: Scripted, session: StreamSession) -> None:
    """When each began is told, for who counts."""
    session.send(1.0)
    session.send(2.0)
    assert session.give_up() == [1.0, 2.0]
    assert session.give_up() == []
    assert not session.certain


async def test_nobody_listens() -> None:
    """A session cannot be made there."""
    session = StreamSession(Address("127.0.0.1", 1), "m", [b""], 1, 0, Way(1, Json()))
    with pytest.raises((OSError, BenchError)):
        await session.create()


@pytest.mark.parametrize("length", [0, 125, 126, 65_536])
def test_frames_are_as_the_server_reads_and_writes_them(length: int) -> None:
    """However they are cut."""
    payload = bytes(length)
    receiver = Receiver(100_000)
    receiver.feed(frame(BINARY, payload))
    assert receiver.next() == (BINARY, payload)
    reader, data = Reader(), sent(BINARY, payload) * 2
    assert reader.feed(data[:5]) + reader.feed(data[5:]) == [(BINARY, payload)] * 2


@pytest.mark.parametrize("data", [b"\x02\x00", b"\x82\x80", b"\xc2\x00"])
def test_what_no_server_of_ours_sends_is_an_error(data: bytes) -> None:
    """Fragments, masks, reserved bits."""
    with pytest.raises(NotWebSocket):
        Reader().feed(data)


def test_binary_chunks_hold_the_same_numbers_as_json() -> None:
    """One after the other, little-endian."""
    spec = {"name": "x", "dtype": "int32", "shape": [None, None, 2], "batch_axis": 0, "time_axis": 1}
    model = {"vocabulary": None, "inputs": [spec, spec | {"name": "on", "dtype": "bool"}]}
    text, raw = (chunks(model, 2, seed=3, binary=binary)[0] for binary in (False, True))
    numbers = struct.unpack_from("<4i4?", raw, HEADER.size)
    x, on = [list(numbers[:2]), list(numbers[2:4])], [list(numbers[4:6]), list(numbers[6:])]
    assert eval(b"{" + text + b"}", {"true": True, "false": False}) == {"inputs": {"x": x, "on": on}}  # noqa: S307
    assert HEADER.unpack_from(raw) == (0, 0, 0, 2, 0)
