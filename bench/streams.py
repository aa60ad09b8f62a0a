"""Streams of generated tokens over HTTP: many connections that read server-sent events, and a client that prefills.

Counts events and the time between them; of what is in them it knows no more than how each ends.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any, Self, cast

from bench.errors import BenchError
from bench.figures import Histogram
from bench.http import Link
from bench.options import Address
from bench.processor import cpu_seconds, server_processes

_EVENT, _DONE, _FAULT = b"}\n\n", b"data: [DONE]", b"event: error"
_OK = b"HTTP/1.1 200"


@dataclass
class Streamed:
    """What the streams of a round came to: tokens, the gaps between those of one stream, the seconds from the first
    request to the last event, and the server's CPU seconds meanwhile."""

    tokens: int = 0
    gaps: Histogram = field(default_factory=Histogram)
    seconds: float = 0.0
    cpu_s: float = 0.0


class Stream(asyncio.Protocol):
    """One request for a stream, on a connection of its own; ``over`` when all of it has come."""

    def __init__(self, request: bytes, told: Streamed) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._told = told
        self._last_s: float | None = None
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        cast(asyncio.WriteTransport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count the events that are complete; the first one only starts the clock."""
        now_s, data = time.perf_counter(), self._rest + data
        events = data.count(_EVENT)
        for _ in range(events):
            if self._last_s is not None:
                self._told.gaps.add(now_s - self._last_s)
            self._last_s = now_s
        self._told.tokens += events
        if _FAULT in data or (self._last_s is None and not _OK.startswith(data[: len(_OK)])):
            self._end(BenchError(f"a stream failed: {data.decode(errors='replace')}"))
        elif _DONE in data:
            self._end(None)
        # Whatever may be the beginning of something that is looked for; no event is counted twice.
        self._rest = data[max(data.rfind(_EVENT) + len(_EVENT), len(data) - len(_DONE)) :] if events else data

    def connection_lost(self, error: Exception | None) -> None:
        """Too early, unless all has come."""
        self._end(BenchError("the server closed a stream before its end"))

    def _end(self, error: Exception | None) -> None:
        if self.over.done():
            return
        if error is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(error)


class Client:
    """A client of one server and one language model; a context manager that hangs up at the end."""

    def __init__(self, address: Address, model: str) -> None:
        self._address = address
        self._model = model
        self._link = Link(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    async def session(self) -> str:
        """The path of a new session that has read one symbol."""
        told = await self._post("/v1/sessions", {"model": self._model}, expected=201)
        path = f"/v1/sessions/{told['id']}"
        await self.advance(path, [1])
        return path

    async def advance(self, session: str, tokens: list[int]) -> None:
        """Send tokens to a session, as one request."""
        await self._post(f"{session}/steps", {"inputs": tokens, "top_k": 1}, expected=200)

    async def stream(self, sessions: list[str], steps: int) -> Streamed:
        """All sessions generate so many steps, all at once."""
        told, processes = Streamed(), server_processes(self._address)
        streams = [Stream(self._request(path, seed, steps), told) for seed, path in enumerate(sessions)]
        cpu_s, started_s = cpu_seconds(processes), time.perf_counter()
        connections = [await self._connect(stream) for stream in streams]
        try:
            await asyncio.gather(*(stream.over for stream in streams))
        finally:
            for connection in connections:
                connection.abort()
        told.seconds, told.cpu_s = time.perf_counter() - started_s, cpu_seconds(processes) - cpu_s
        if told.tokens != len(sessions) * steps:
            raise BenchError(f"{told.tokens} events came where {len(sessions) * steps} were asked for")
        return told

    async def stream_beside(self, chunk: list[int], sessions: list[str], steps: int) -> Streamed:
        """The same while another client sends a chunk, again and again, to a session of its own."""
        with Client(self._address, self._model) as other:
            prefilling = asyncio.create_task(other._prefill(chunk))
            try:
                told = await self.stream(sessions, steps)
            finally:
                prefilling.cancel()
                await asyncio.wait([prefilling])
        if not prefilling.cancelled():
            prefilling.result()  # raises what it failed with
        return told

    async def _prefill(self, chunk: list[int]) -> None:
        session = await self.session()
        while True:
            await self.advance(session, chunk)

    async def _connect(self, stream: Stream) -> asyncio.WriteTransport:
        loop, (host, port) = asyncio.get_running_loop(), (self._address.host, self._address.port)
        return (await loop.create_connection(lambda: stream, host, port))[0]

    async def _post(self, path: str, document: object, expected: int) -> dict[str, Any]:
        status, body = await self._link.call(b"POST", path.encode(), json.dumps(document).encode())
        if status != expected:
            raise BenchError(f"{path} answered {status}: {body.decode(errors='replace')}")
        return cast("dict[str, Any]", json.loads(body))

    def _request(self, session: str, seed: int, steps: int) -> bytes:
        body = json.dumps({"max_steps": steps, "seed": seed, "stream": True})
        head = f"POST {session}/generate HTTP/1.1\r\nHost: {self._address.authority}\r\n"
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
