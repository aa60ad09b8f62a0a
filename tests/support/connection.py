"""Connections of our own kind against sessions and an app that a test holds in its hand."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import uvicorn
from uvicorn.server import ServerState

from service.api.asgi import Receive, Scope, Send, read_body, respond
from service.api.connection import Connection
from service.api.steps import StepsEndpoint
from service.errors import UnknownSession
from service.sessions.requests import Advance
from service.state import Answer
from service.work import Reply
from tests.support.fakes import PATIENCE_S
from tests.support.signatures import document, parse

_NUMBER = {"dtype": "float32", "shape": [None, None, 1]}
SUM = parse(document(inputs=[_NUMBER | {"name": "x"}], outputs=[_NUMBER | {"name": "y"}]))


async def until(holds: Callable[[], object]) -> None:
    """Wait for what has to come about."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - it comes about inside what is tested, which sets no event
            await asyncio.sleep(0)


class Sessions:
    """What the endpoint needs of sessions and metrics; requests wait until the test answers them."""

    def __init__(self) -> None:
        self.at_once = True  # whether sessions are at hand
        self.asked: asyncio.Queue[tuple[str, Advance, Reply]] = asyncio.Queue()
        self.left: list[Reply] = []
        self.refusals: list[str] = []
        self.counted: list[int] = []

    def at_hand(self, id: str, owner: str) -> Any:  # noqa: ANN401 - as the protocol says
        """See ``Stepping``."""
        return SimpleNamespace(id=id, model=SimpleNamespace(signature=SUM)) if self.at_once else None

    async def model_of(self, id: str, owner: str) -> Any:  # noqa: ANN401 - as the protocol says
        """See ``Stepping``."""
        if id == "nobody":
            raise UnknownSession("there is no session", field="id")
        return SimpleNamespace(signature=SUM)

    def advance_live(self, live: Any, request: Advance, reply: Reply) -> None:  # noqa: ANN401 - as the protocol says
        """See ``Stepping``."""
        self.asked.put_nowait((live.id, request, reply))

    def submit(self, id: str, request: Advance, owner: str, reply: Reply) -> None:
        """See ``Stepping``."""
        self.asked.put_nowait((id, request, reply))

    def leave(self, reply: Reply) -> None:
        """See ``Stepping``."""
        self.left.append(reply)

    def refused(self, reason: str, status: int) -> None:
        """See ``Counts``."""
        self.refusals.append(reason)

    def answered(self, status: int, seconds: float) -> None:
        """See ``Counts``."""
        self.counted.append(status)

    async def next(self) -> tuple[str, Advance, Reply]:
        """The next request that comes here."""
        return await asyncio.wait_for(self.asked.get(), PATIENCE_S)


def answer(y: float, position: int = 1) -> Answer:
    """A session's answer to one step."""
    return Answer(position - 1, 1, b"", 0.0, {"y": np.array([y], np.float32)})


class App:
    """Answers whatever does not go the short way with its path and its body, once it may."""

    def __init__(self, steps: StepsEndpoint) -> None:
        self.steps = steps
        self.may = asyncio.Event()
        self.may.set()
        self.came: list[str] = []
        self.gone = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        self.came.append(scope["path"])
        body = await read_body(receive, 10_000_000)
        waiting = asyncio.create_task(self.may.wait())
        leaving = asyncio.ensure_future(receive())
        await asyncio.wait([waiting, leaving], return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            self.gone += 1
            waiting.cancel()
            return
        leaving.cancel()
        await respond(send, 200, scope["path"].encode() + b" " + body, [])


class Client:
    """The other end, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    def send(self, *parts: bytes) -> None:
        """Send all of this at once."""
        self.writer.write(b"".join(parts))

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers, body."""
        async with asyncio.timeout(PATIENCE_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            return int(head[0].split()[1]), headers, await self._reader.readexactly(int(headers["content-length"]))

    async def until(self, end: bytes) -> bytes:
        """What comes up to these bytes."""
        return await asyncio.wait_for(self._reader.readuntil(end), PATIENCE_S)

    async def rest(self) -> bytes:
        """Everything up to the end of the connection; ConnectionError where it was broken."""
        return await asyncio.wait_for(self._reader.read(), PATIENCE_S)


class Served:
    """A server of such connections, and its clients."""

    def __init__(self, app: Callable[[StepsEndpoint], Any] = App, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own
        self.sessions = Sessions()
        self.app = app(StepsEndpoint(self.sessions, self.sessions, 1_000_000, 1000))
        self.state = ServerState()
        self.connections: list[Connection] = []
        fixed: dict[str, Any] = {"http": Connection, "proxy_headers": False, "log_config": None, "lifespan": "off"}
        self._config = uvicorn.Config(self.app, **(fixed | options))
        self._clients: list[Client] = []

    async def start(self) -> None:
        """Listen on a port of the loopback."""
        self._server = await asyncio.get_running_loop().create_server(self._connection, "127.0.0.1", 0)

    def _connection(self) -> Connection:
        self.connections.append(connection := Connection(self._config, self.state, {}))
        return connection

    async def client(self) -> Client:
        """A new client."""
        client = Client(*await asyncio.open_connection(*self._server.sockets[0].getsockname()))
        self._clients.append(client)
        return client

    async def close(self) -> None:
        """Hang up on everybody."""
        for client in self._clients:
            client.writer.transport.abort()
        self._server.close()
        await until(lambda: not (self.state.connections or self.state.tasks))


def post(path: str, body: bytes = b"", *headers: str, version: str = "1.1", method: str = "POST") -> bytes:
    """A request."""
    lines = [f"{method} {path} HTTP/{version}", "host: x", *headers]
    if not any(line.startswith("transfer-encoding") for line in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
