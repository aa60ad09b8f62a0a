"""What a front end does with requests that are not steps: it hands them to the engine's own HTTP app, over a socket.

A plain reverse proxy for one upstream on this machine. Bodies and answers are streamed, so that generations reach their
readers token by token; a client that goes takes its upstream connection along, which the engine notices.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import httptools

from service.api.asgi import ClientDisconnected, Receive, Scope, Send, watching
from service.api.problems import Headers
from service.api.steps import StepsEndpoint
from service.errors import EngineUnavailable

_HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"expect", b"te", b"trailer"}
_READ_BYTES = 65_536


class Relay:
    """An ASGI app in front of another one that listens on the Unix socket at ``path``."""

    def __init__(self, path: Path, steps: StepsEndpoint) -> None:
        self._path = path
        self.steps = steps  # what the connections of this front end answer themselves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand one request on."""
        if scope["type"] != "http":
            return
        upstream: _Upstream | None = None
        try:
            upstream = _Upstream(*await asyncio.open_unix_connection(str(self._path)))
            await self._relay(upstream, scope, receive, send)
        except ClientDisconnected:
            return
        except OSError:
            if upstream is not None and upstream.asked:
                raise  # what became of it nobody here can know: uvicorn hangs up where an answer had begun
            status, body, headers = self.steps.refusal(EngineUnavailable("the engine's process is being started again"))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        finally:
            if upstream is not None:
                upstream.close()

    async def _relay(self, upstream: "_Upstream", scope: Scope, receive: Receive, send: Send) -> None:
        await upstream.ask(scope, _body(receive))
        with watching(receive):
            status, headers = await upstream.head()
            await send({"type": "http.response.start", "status": status, "headers": headers})
            async for part in upstream.parts():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


class _Upstream:
    """One request to the engine's app, and its answer as it is parsed. The ``on_...`` are httptools' callbacks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._parser = httptools.HttpResponseParser(self)
        self._headers: Headers = []
        self._parts: list[bytes] = []
        self._begun = self._complete = False
        self.asked = False

    async def ask(self, scope: Scope, body: AsyncIterator[bytes]) -> None:
        """Send the request: its body in chunks unless it says how long it is."""
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        headers = [(name, value) for name, value in scope["headers"] if name not in _HOP_BY_HOP]
        whole = any(name == b"content-length" for name, _ in headers)
        chunked = not whole and any(name == b"transfer-encoding" for name, _ in scope["headers"])
        headers.append((b"connection", b"close"))
        if chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        lines = [b"%b %b HTTP/1.1\r\n" % (scope["method"].encode(), target)]
        self.asked = True
        self._writer.write(b"".join((*lines, *(b"%b: %b\r\n" % header for header in headers), b"\r\n")))
        with suppress(ConnectionError):  # an app that refuses answers before it has read the whole body
            async for part in body:
                self._writer.write((b"%x\r\n%b\r\n" % (len(part), part) if part else b"") if chunked else part)
                await self._writer.drain()
            if chunked:
                self._writer.write(b"0\r\n\r\n")

    async def head(self) -> tuple[int, Headers]:
        """The answer's status and headers."""
        while not self._begun:
            await self._more()
        return self._parser.get_status_code(), self._headers

    async def parts(self) -> AsyncIterator[bytes]:
        """The answer's body as it comes."""
        while True:
            parts, self._parts = self._parts, []
            if parts:
                yield b"".join(parts)
            elif self._complete:
                return
            else:
                await self._more()

    async def _more(self) -> None:
        data = await self._reader.read(_READ_BYTES)
        if not data:
            raise ConnectionResetError("the engine's process ended while it answered")
        self._parser.feed_data(data)

    def close(self) -> None:
        """Hang up."""
        self._writer.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header of the answer."""
        if name.lower() not in _HOP_BY_HOP:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """All of them."""
        self._begun = True

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """The end of the answer."""
        self._complete = True
