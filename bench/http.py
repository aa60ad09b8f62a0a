"""HTTP/1.1 as far as the load needs it: requests as bytes, a reader of answers, a kept connection.

Cheap beside what is measured: an answer that arrives in one piece is two searches and two slices. Knows nothing of
what is measured. A transport of another kind offers what ``Link`` does.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from bench.options import Address

MOST_HEAD = 65_536  # bytes before a body: more is no answer of ours
_END = b"\r\n\r\n"


class NotHttp(Exception):
    """What arrived is no answer of HTTP/1.1 with a Content-Length."""


class Reader:
    """Answers from bytes, however they are cut; 204 and 304 have no body."""

    def __init__(self) -> None:
        self._buffer = b""

    @property
    def empty(self) -> bool:
        """Whether nothing of an answer is waiting for its rest."""
        return not self._buffer

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The answers, as (status, body), that are complete with this data; NotHttp for what cannot be read."""
        buffer = self._buffer + data if self._buffer else data
        answers = []
        while (end := buffer.find(_END)) >= 0:
            status, length = _head(buffer[:end])
            body = end + len(_END)
            if len(buffer) < body + length:
                break
            answers.append((status, buffer[body : body + length]))
            buffer = buffer[body + length :]
        if end < 0 and len(buffer) > MOST_HEAD:
            raise NotHttp("no end of the headers")
        self._buffer = buffer
        return answers


def _head(head: bytes) -> tuple[int, int]:
    """Status and length of the body."""
    lower = head.lower()
    try:
        if not lower.startswith(b"http/1.1 "):
            raise ValueError
        status = int(head[9:12])
        if status in (204, 304):
            return status, 0
        at = lower.index(b"\r\ncontent-length:") + 17
        stop = lower.find(b"\r\n", at)
        return status, int(lower[at:] if stop < 0 else lower[at:stop])
    except ValueError:
        raise NotHttp(repr(head[:60])) from None


class Link(asyncio.Protocol):
    """A kept connection with one request in flight: ``answered`` is called with its answer, ``lost`` when it breaks."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._host = address.authority.encode()
        self._transport: asyncio.WriteTransport | None = None
        self._reader = Reader()
        self.answered: Callable[[int, bytes], None] = _ignore
        self.lost: Callable[[], None] = lambda: None

    @property
    def open(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None

    async def connect(self) -> None:
        """Connect; OSError where nobody listens."""
        self._reader = Reader()
        await asyncio.get_running_loop().create_connection(lambda: self, self._address.host, self._address.port)

    def send(self, method: bytes, path: bytes, body: bytes = b"") -> None:
        """Write one request."""
        assert self._transport is not None
        self._transport.write(
            b"%b %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (method, path, self._host, len(body), body)
        )

    async def call(self, method: bytes, path: bytes, body: bytes = b"") -> tuple[int, bytes]:
        """One request and its answer, away from the measured path; OSError when the connection breaks."""
        if not self.open:
            await self.connect()
        answer = asyncio.get_running_loop().create_future()
        before = self.answered, self.lost

        def lost() -> None:
            if not answer.done():
                answer.set_exception(ConnectionResetError("the connection was lost"))

        def answered(status: int, content: bytes) -> None:
            if not answer.done():
                answer.set_result((status, content))

        self.answered, self.lost = answered, lost
        try:
            self.send(method, path, body)
            told: tuple[int, bytes] = await answer
            return told
        finally:
            self.answered, self.lost = before

    def close(self) -> None:
        """Hang up; nobody is told."""
        if self._transport is not None:
            transport, self._transport = self._transport, None
            transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is none of asyncio's classes

    def data_received(self, data: bytes) -> None:
        """Hand on what is complete."""
        try:
            for status, body in self._reader.feed(data):
                self.answered(status, body)
        except NotHttp:
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell, unless it was us."""
        if self._transport is not None:
            self._transport = None
            self.lost()


def _ignore(status: int, body: bytes) -> None:
    """Nobody asked."""
