"""A WebSocket client that does what a test tells it, wrong things too."""

import base64
import contextlib
import os
import socket
import struct
from typing import Self
from urllib.parse import urlsplit

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
REQUEST, ANSWER = struct.Struct("<BBHIq"), struct.Struct("<BBHIqd")
_PATIENCE_S = 30.0


def frame(opcode: int, payload: bytes = b"", *, final: bool = True, key: bytes = b"\1\2\3\4", first: int = 0) -> bytes:
    """A masked frame; ``first``: more bits of its first byte."""
    length = len(payload)
    if length < 126:
        told = bytes([0x80 | length])
    else:
        told = (
            bytes([0xFE]) + length.to_bytes(2, "big") if length < 1 << 16 else bytes([0xFF]) + length.to_bytes(8, "big")
        )
    masked = bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))
    return bytes([(0x80 if final else 0) | opcode | first]) + told + key + masked


def split(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The whole frames of a server, and what is left."""
    found = []
    while len(data) >= 2:
        length, at = data[1], 2
        if length > 125:
            at = 4 if length == 126 else 10
            length = int.from_bytes(data[2:at], "big")
        if len(data) < at + length:
            break
        found.append((data[0] & 0xF, data[at : at + length]))
        data = data[at + length :]
    return found, data


def request(*values: float, position: int = -1, flags: int = 0, top_k: int = 0, code: str = "f") -> bytes:
    """A binary message for a model with one input of one number per step."""
    return REQUEST.pack(flags, 0, top_k, len(values), position) + struct.pack(f"<{len(values)}{code}", *values)


def handshake(path: str, **headers: str) -> bytes:
    """The request that opens a stream; a header that is "" is left out."""
    told = {
        "Host": "test",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items() if value)
    return f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()


class Client:
    """One connection; used as a context manager."""

    def __init__(self, url: str, path: str, **headers: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), _PATIENCE_S)
        self.socket.sendall(handshake(path, **headers))
        self._rest = b""
        while b"\r\n\r\n" not in self._rest:
            self._rest += self._more()
        self.head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        self.status = int(self.head.split()[1])
        self._frames: list[tuple[int, bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def _more(self) -> bytes:
        if not (data := self.socket.recv(65_536)):
            raise ConnectionResetError("the server has closed the connection")
        return data

    def body(self) -> bytes:
        """The rest of an answer that opened no stream."""
        with contextlib.suppress(ConnectionResetError):
            while True:
                self._rest += self._more()
        return self._rest

    def send(self, message: str | bytes) -> None:
        """A whole message."""
        text = isinstance(message, str)
        payload = message.encode() if isinstance(message, str) else message
        self.socket.sendall(frame(TEXT if text else BINARY, payload, key=os.urandom(4)))

    def receive(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame."""
        while not self._frames:
            self._frames, self._rest = split(self._rest)
            if not self._frames:
                self._rest += self._more()
        return self._frames.pop(0)

    def position(self) -> int:
        """Where the session stands by the next answer, a binary one."""
        opcode, payload = self.receive()
        assert opcode == BINARY, payload
        return int(ANSWER.unpack_from(payload)[4])
