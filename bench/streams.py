"""Streams of generated tokens over HTTP: many connections that read server-sent events, and one that prefills.

Counts events and the time between them; knows nothing of what is in them but that each ends with an empty line.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from bench.figures import Histogram
from bench.http import Link
from bench.options import Address
from bench.processor import cpu_seconds, server_processes

_EVENT, _DONE, _FAULT = b"}\n\n", b"data: [DONE]", b"event: error"


class StreamError(Exception):
    """The server answered something else than the whole stream that it was asked for."""


@dataclass
class Streamed:
    """What all streams of a round came to: events, the gaps between those of one stream, seconds from the first request
    to the last event, seconds of the server's CPU, and how many prefills were answered meanwhile."""

    tokens: int = 0
    gaps: Histogram = field(default_factory=Histogram)
    seconds: float = 0.0
    cpu_s: float = 0.0
    prefills: int = 0


class _Stream(asyncio.Protocol):
    """One request for a stream on a connection of its own."""

    def __init__(self, request: bytes, told: Streamed) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._told = told
        self._last = 0.0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        cast(asyncio.WriteTransport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count what has come; the first event only begins the time."""
        now, data = time.perf_counter(), self._tail + data
        events = data.count(_EVENT)
        for _ in range(events):
            if self._last:
                self._told.gaps.add(now - self._last)
            self._last = now
        self._told.tokens += events
        if _DONE in data:
            self._end(None)
        elif _FAULT in data or (not self._last and not data.startswith(b"HTTP/1.1 200")):
            self._end(StreamError(data.decode(errors="replace")))
        self._tail = data[1 - len(_EVENT) :] if self._last else data

    def connection_lost(self, error: Exception | None) -> None:
        """Too early."""
        self._end(StreamError("the connection was lost"))

    def _end(self, error: Exception | None) -> None:
        if self.over.done():
            return
        if error is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(error)


class Client:
    """A client of one server, with sessions of one language model that have each read one symbol."""

    def __init__(self, address: Address, model: str) -> None:
        self._address = address
        self._model = model
        self._link = Link(address)

    async def session(self) -> str:
        """A new session's path."""
        told = await self._post("/v1/sessions", {"model": self._model}, expected=201)
        path = f"/v1/sessions/{told['id']}"
        await self.advance(path, [1])
        return path

    async def advance(self, session: str, tokens: list[int]) -> None:
        """Send tokens to a session as one request."""
        await self._post(f"{session}/steps", {"inputs": tokens, "top_k": 1}, expected=200)

    async def _post(self, path: str, document: object, expected: int) -> dict[str, object]:
        status, body = await self._link.call(b"POST", path.encode(), json.dumps(document).encode())
        if status != expected:
            raise StreamError(f"{path}: {status} {body.decode(errors='replace')}")
        return cast("dict[str, object]", json.loads(body))

    async def stream(self, sessions: list[str], steps: int, meanwhile: Callable[[], object] = lambda: None) -> Streamed:
        """All sessions generate so many steps at once, each on a connection of its own."""
        told, processes = Streamed(), server_processes(self._address)
        before, started = cpu_seconds(processes), time.perf_counter()
        streams = [_Stream(self._request(path, seed, steps), told) for seed, path in enumerate(sessions)]
        loop = asyncio.get_running_loop()
        connections = [await loop.create_connection(partial(_same, stream), self._address.host, self._address.port) for stream in streams]
        try:
            await asyncio.gather(*(stream.over for stream in streams))
        finally:
            for transport, _ in connections:
                transport.abort()
        told.seconds, told.cpu_s = time.perf_counter() - started, cpu_seconds(processes) - before
        if told.tokens != len(sessions) * steps:
            raise StreamError(f"{told.tokens} events where {len(sessions) * steps} were asked for")
        return told

    def _request(self, session: str, seed: int, steps: int) -> bytes:
        body = json.dumps({"max_steps": steps, "seed": seed, "stream": True}).encode()
        head = f"POST {session}/generate HTTP/1.1\r\nHost: {self._address.authority}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body
