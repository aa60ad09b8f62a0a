"""WebSocket as far as the load needs it (RFC 6455, a client's side): whole messages, masked, and a kept connection.

Cheap beside what is measured. Knows nothing of what is measured; offers what ``Link`` does for HTTP.
"""

import asyncio
import base64
import hashlib
import os
import random
from collections.abc import Callable
from typing import cast

from bench.options import Address

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_FINAL, _MASKED = 0x80, 0x80
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_END = b"\r\n\r\n"


class Refused(ConnectionRefusedError):
    """The server answered the handshake with something else: its status and body."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"no stream was opened: status {status}")
        self.status, self.body = status, body


class NotWebSocket(Exception):
    """What arrived is no whole message of a server."""


def frame(opcode: int, payload: bytes) -> bytes:
    """A whole message or control frame, masked as a client has to."""
    length = len(payload)
    key = random.getrandbits(32).to_bytes(4, "little")
    mask = int.from_bytes((key * (length // 4 + 1))[:length], "little")
    masked = (int.from_bytes(payload, "little") ^ mask).to_bytes(length, "little")
    if length < 126:
        return b"%c%c%b%b" % (_FINAL | opcode, _MASKED | length, key, masked)
    size, sign = (2, 126) if length < 1 << 16 else (8, 127)
    return b"%c%c%b%b%b" % (_FINAL | opcode, _MASKED | sign, length.to_bytes(size, "big"), key, masked)


class Reader:
    """Messages and control frames from bytes, however they are cut."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Opcode and payload of all that is complete with this data; NotWebSocket for what cannot be read."""
        buffer = self._buffer + data if self._buffer else data
        at, end, found = 0, len(buffer), []
        while end - at >= 2:
            first, length = buffer[at], buffer[at + 1]
            if first & ~0xF != _FINAL or length & _MASKED:
                raise NotWebSocket("a fragment, reserved bits, or a mask")
            start = at + 2
            if length > 125:
                start += 2 if length == 126 else 8
                length = int.from_bytes(buffer[at + 2 : start], "big") if end >= start else end
            if end < start + length:
                break
            at = start + length
            found.append((first & 0xF, buffer[start:at]))
        self._buffer = buffer[at:] if at else buffer
        return found


class StreamLink(asyncio.Protocol):
    """A connection for messages: ``heard`` is called with each, ``lost`` when it breaks or the server closes it."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._transport: asyncio.WriteTransport | None = None
        self._opening: asyncio.Future[None] | None = None
        self._head = b""
        self._reader = Reader()
        self.heard: Callable[[int, bytes], None] = lambda opcode, payload: None
        self.lost: Callable[[], None] = lambda: None

    @property
    def open(self) -> bool:
        """Whether a message can be sent."""
        return self._transport is not None and self._opening is None

    async def connect(self, path: bytes) -> None:
        """Connect and shake hands; OSError where nobody listens, ``Refused`` where the server opens no stream."""
        loop = asyncio.get_running_loop()
        self._head, self._reader, self._opening = b"", Reader(), loop.create_future()
        await loop.create_connection(lambda: self, self._address.host, self._address.port)
        key = base64.b64encode(os.urandom(16))
        self._accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())  # noqa: S324 - the protocol's
        assert self._transport is not None
        self._transport.write(
            b"GET %b HTTP/1.1\r\nHost: %b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n"
            % (path, self._address.authority.encode(), key)
        )
        try:
            await self._opening
        finally:
            self._opening = None

    def send(self, message: bytes) -> None:
        """Write a frame."""
        assert self._transport is not None
        self._transport.write(message)

    def close(self) -> None:
        """Hang up; nobody is told."""
        if self._transport is not None:
            transport, self._transport = self._transport, None
            transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand on what is complete."""
        if self._opening is not None and not self._opening.done():
            data = self._opened(data)
        try:
            for opcode, payload in self._reader.feed(data):
                if opcode in (TEXT, BINARY):
                    self.heard(opcode, payload)
                elif self._transport is not None:
                    self._control(opcode, payload)
        except NotWebSocket:
            if self._transport is not None:
                self._transport.abort()

    def _opened(self, data: bytes) -> bytes:
        """Read the answer to the handshake; what came behind it."""
        self._head += data
        head, end, rest = self._head.partition(_END)
        if not end or self._opening is None:
            return b""
        lines = head.lower().split(b"\r\n")
        accepted = b"sec-websocket-accept: " + self._accept.lower()
        if lines[0].startswith(b"http/1.1 101 ") and accepted in lines:
            self._opening.set_result(None)
            return rest
        if len(rest) >= _length(lines):
            status = lines[0][9:12]
            self._opening.set_exception(Refused(int(status) if status.isdigit() else 0, rest))
            self.close()
        return b""

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self.send(frame(PONG, payload))
        elif opcode == CLOSE and self._transport is not None:
            self.send(frame(CLOSE, payload[:2]))
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell, unless it was us."""
        if self._opening is not None and not self._opening.done():
            self._opening.set_exception(ConnectionResetError("the connection was lost"))
        if self._transport is not None:
            self._transport = None
            if self._opening is None:
                self.lost()


def _length(lines: list[bytes]) -> int:
    """How long the body is, as the head says."""
    name = b"content-length:"
    return next((int(line[len(name) :]) for line in lines if line.startswith(name)), 0)
