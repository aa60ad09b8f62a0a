"""A session of the load against a server that misbehaves as it is told to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from bench.errors import BenchError
from bench.options import Address
from bench.session import Session

HANG_UP = b""
STEPS = 2


def answer(status: int, body: str) -> bytes:
    """An answer of HTTP/1.1."""
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


def stepped(position: int, steps: int = STEPS) -> bytes:
    """The answer to steps."""
    return answer(200, f'{{"position":{position},"steps":{steps},"outputs":{{}}}}')


class Scripted:
    """A server that answers the n-th request with the n-th line of its script."""

    def __init__(self) -> None:
        self.script = [answer(201, '{"id": "s1"}')]
        self.heard: list[bytes] = []
        self.address = Address("127.0.0.1", 0)
        self.connections: list[asyncio.Task[None] | None] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections.append(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
                self.heard.append(head.split(b" HTTP")[0] + b" " + await reader.readexactly(length))
                told = self.script.pop(0)
                if told == HANG_UP:
                    break
                writer.write(told)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


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
async def session(server: Scripted) -> AsyncIterator[Session]:
    """A session at position 0."""
    made = Session(server.address, "m", [b'"inputs":[1,2]', b'"inputs":[3,4]'], STEPS, 0)
    await made.create()
    yield made
    made.give_up()
    await asyncio.sleep(0)


async def step(session: Session, *script: bytes, server: Scripted) -> str | None:
    """What comes of one request."""
    server.script += script
    over: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    session.done = lambda _, problem: over.set_result(problem)
    session.send(1.5)
    async with asyncio.timeout(30):
        return await over


async def test_steps_carry_their_position(server: Scripted, session: Session) -> None:
    """And the chunk that belongs there."""
    assert await step(session, stepped(2), server=server) is None
    assert await step(session, stepped(4), server=server) is None
    assert (session.position, session.began) == (4, 1.5)
    assert server.heard[1:] == [
        b'POST /v1/sessions/s1/steps {"position":0,"inputs":[1,2]}',
        b'POST /v1/sessions/s1/steps {"position":2,"inputs":[3,4]}',
    ]


async def test_the_order_of_an_answers_members_is_free(server: Scripted, session: Session) -> None:
    """Only what they say counts."""
    assert await step(session, answer(200, '{"steps": 2, "position": 2}'), server=server) is None


@pytest.mark.parametrize("wrong", [stepped(4), stepped(2, steps=1), answer(200, "[]"), answer(200, "{")])
async def test_a_wrong_answer_is_noticed(server: Scripted, session: Session, wrong: bytes) -> None:
    """A step that was lost or applied twice, and what is no answer."""
    assert await step(session, wrong, server=server) == "wrong-answer"


async def test_a_refusal_is_told_by_its_type(server: Scripted, session: Session) -> None:
    """The same request follows; where the session stands elsewhere, it goes on there."""
    told = answer(503, '{"type": "urn:lstm-serve:problem:overloaded"}')
    assert await step(session, told, server=server) == "overloaded"
    assert await step(session, answer(502, "Bad Gateway"), server=server) == "status-502"
    told = answer(409, '{"type": "urn:lstm-serve:problem:position-conflict", "position": 6}')
    assert await step(session, told, server=server) == "position-conflict"
    assert server.heard[1] == server.heard[2] == server.heard[3]
    assert await step(session, stepped(8), server=server) is None


async def test_a_lost_connection_is_tried_once_more(server: Scripted, session: Session) -> None:
    """With the same position, which is applied once; a second loss is told."""
    assert await step(session, HANG_UP, stepped(2), server=server) is None
    assert server.heard[1] == server.heard[2]
    assert await step(session, HANG_UP, HANG_UP, server=server) == "connection-lost"
    assert not session.certain


async def test_what_is_not_http_is_a_lost_connection(server: Scripted, session: Session) -> None:
    """It is not waited for."""
    assert await step(session, b"SSH\r\n\r\n", b"SSH\r\n\r\n", server=server) == "connection-lost"


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ([answer(200, '{"position": 0}'), answer(204, "")], None),
        ([answer(200, '{"position": 2}'), answer(204, "")], "wrong-position"),
        ([HANG_UP, answer(200, '{"position": 0}'), HANG_UP, answer(204, "")], None),
        ([answer(404, '{"type": "urn:x:unknown-session"}')], "unknown-session"),
        ([answer(200, '{"position": 0}'), answer(500, "")], "status-500"),
        ([answer(200, "{")], "not-deleted"),
        ([HANG_UP, HANG_UP], "not-deleted"),
    ],
)
async def test_the_end_shows_whether_all_was_applied(
    server: Scripted, session: Session, script: list[bytes], problem: str | None
) -> None:
    """Where it stands at the service is where its answers said."""
    server.script += script
    assert await session.delete() == problem


async def test_a_session_that_is_not_made(server: Scripted) -> None:
    """One sentence says why."""
    server.script = [answer(404, '{"type": "urn:x:unknown-model", "detail": "no model m"}')]
    with pytest.raises(BenchError, match="unknown-model, no model m"):
        await Session(server.address, "m", [b""], 1, 0).create()


async def test_nobody_listens_any_more(server: Scripted, session: Session) -> None:
    """It is told as such."""
    session._link.close()
    session._link._address = Address("127.0.0.1", 1)  # a reserved port
    assert await step(session, server=server) == "connection-refused"


async def test_a_session_that_exists_is_taken_up_where_it_stands(server: Scripted) -> None:
    """Its next step names the position that the service told; one that is not known is an error."""
    server.script = [answer(200, '{"id": "s9", "position": 7}'), stepped(9), answer(404, '{"detail": "no such"}')]
    session = Session(server.address, "m", [b'"inputs":[1,2]'], STEPS, 0)
    await session.attach("s9")
    assert await step(session, server=server) is None
    assert server.heard[-1].startswith(b'POST /v1/sessions/s9/steps {"position":7,')
    with pytest.raises(BenchError, match="no session s0"):
        await session.attach("s0")
    session.hang_up()
