"""What a front end does with requests that are not steps: it hands them to the engine's own HTTP app, over a socket.

A plain reverse proxy for one upstream on this machine. Bodies and answers are streamed, so that generations reach their
readers token by token; a client that goes takes its upstream connection along, which the engine notices.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httptools

from service.api.asgi import HANG_UP, ClientDisconnected, Receive, Scope, Send, left, respond
from service.api.problems import Headers
from service.api.steps import StepsEndpoint
from service.api.streams import Streams
from service.errors import EngineUnavailable

_HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"expect", b"te", b"trailer"}
_MOST_BYTES = 262_144  # of an answer that are held for a client that reads slowly


class Relay:
    """An ASGI app in front of another one that listens on the Unix socket at ``path``."""

    def __init__(
        self, path: Path, steps: StepsEndpoint, streams: Streams, unavailable: Callable[[], EngineUnavailable]
    ) -> None:
        """``unavailable``: the error of what cannot be handed on, as nobody listens."""
        self._path, self._unavailable = path, unavailable
        self.steps, self.streams = steps, streams  # what the connections of this front end answer themselves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand one request on.

        Where the engine's process ends meanwhile, or the time to shut down has run out, what became of the request
        cannot be known here: the connection is broken.
        """
        if scope["type"] != "http":
            return
        try:
            upstream = await self._connected(scope)
        except OSError:
            await self._refuse(send)
            return
        asking = asyncio.create_task(_ask(upstream, scope, receive, self.steps.max_body_bytes))
        try:
            await _answer(upstream, send)
        except ClientDisconnected:
            return
        except (ConnectionResetError, asyncio.CancelledError):
            asking.cancel()
            scope["extensions"][HANG_UP]["now"]()
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            asking.cancel()
            upstream.transport.abort()

    async def _connected(self, scope: Scope) -> "Upstream":
        upstream = Upstream(bodiless=scope["method"] == "HEAD")
        await asyncio.get_running_loop().create_unix_connection(lambda: upstream, str(self._path))
        return upstream

    async def _refuse(self, send: Send) -> None:
        status, body, headers = self.steps.refusal(self._unavailable())
        with suppress(ClientDisconnected):
            await respond(send, status, body, headers)


async def _ask(upstream: "Upstream", scope: Scope, receive: Receive, most_bytes: int) -> None:
    """Send the request, its body in chunks unless it says how long it is; then watch the client."""
    headers = [(name, value) for name, value in scope["headers"] if name not in _HOP_BY_HOP]
    length = next((int(value) for name, value in headers if name == b"content-length"), None)
    chunked = length is None and any(name == b"transfer-encoding" for name, _ in scope["headers"])
    headers += [(b"connection", b"close"), *([(b"transfer-encoding", b"chunked")] if chunked else [])]
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    lines = [b"%b %b HTTP/1.1\r\n" % (scope["method"].encode(), target)]
    upstream.transport.write(b"".join((*lines, *(b"%b: %b\r\n" % header for header in headers), b"\r\n")))
    if length is not None and length > most_bytes:
        return  # it is refused for what it says: nothing of the body is asked for
    while (message := await receive())["type"] != "http.disconnect":
        body, more = message.get("body", b""), message.get("more_body", False)
        if chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        await upstream.write(body)
    upstream.leave()


async def _answer(upstream: "Upstream", send: Send) -> None:
    """Hand the answer on as it comes."""
    status, headers = await upstream.head()
    await _send(send, {"type": "http.response.start", "status": status, "headers": headers})
    more = True
    while more:
        part, more = await upstream.part()
        await _send(send, {"type": "http.response.body", "body": part, "more_body": more})


async def _send(send: Send, message: dict[str, object]) -> None:
    try:
        await send(message)
    except (RuntimeError, OSError) as error:
        raise left(send, error) from error


class Upstream(asyncio.Protocol):
    """A connection for one request to the engine's app. The ``on_...`` are the callbacks of httptools.

    Mutable state: ``_headers``, ``_parts``, ``_begun``, ``_complete`` (the answer, as far as it has come and nobody has
    taken it), ``_gone``, ``_left``, ``_paused``. ``_changed`` tells of every change, ``_writable`` if there is room.
    """

    transport: asyncio.Transport

    def __init__(self, *, bodiless: bool) -> None:
        """``bodiless``: the answer has no body, whatever length its headers tell."""
        self._parser = httptools.HttpResponseParser(self)
        self._bodiless = bodiless
        self._headers: Headers = []
        self._parts: list[bytes] = []
        self._begun = self._complete = self._gone = self._left = self._paused = False
        self._changed, self._writable = asyncio.Event(), asyncio.Event()
        self._writable.set()

    async def write(self, data: bytes) -> None:
        """Send a part of the request. One that was answered before it was read is not read any more."""
        if not self.transport.is_closing():
            self.transport.write(data)
            await self._writable.wait()

    async def head(self) -> tuple[int, Headers]:
        """The answer's status and headers; errors as ``part``."""
        while not self._begun:
            await self._change()
        return self._parser.get_status_code(), self._headers

    async def part(self) -> tuple[bytes, bool]:
        """The next part of the answer's body, and whether there is more.

        Raises:
            ConnectionResetError: the engine's process ended before.
            ClientDisconnected: the client did not want it.
        """
        while not (self._parts or self._complete):
            await self._change()
        part = b"".join(self._parts)
        self._parts.clear()
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()
        return part, not self._complete

    async def _change(self) -> None:
        if self._left:
            raise ClientDisconnected
        if self._gone:
            raise ConnectionResetError
        self._changed.clear()
        await self._changed.wait()

    def leave(self) -> None:
        """Nobody waits for the answer any more."""
        self._left = True
        self._changed.set()

    # ---- as asyncio's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self.transport = transport  # type: ignore[assignment]  # a stream's transport

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        self._parser.feed_data(data)
        self._changed.set()
        if sum(map(len, self._parts)) > _MOST_BYTES:
            self._paused = True
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._gone = True
        self._changed.set()
        self._writable.set()

    def pause_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        self._writable.set()

    # ---- as the parser's

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header of the answer."""
        if name.lower() not in _HOP_BY_HOP:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """All of them."""
        self._begun = True
        self._complete = self._bodiless

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """The end of the answer."""
        self._complete = True
