"""What front ends and the process of the engine say to each other: lists of messages in MessagePack, framed by length.

All that one turn of the event loop brings goes into one frame: a system call costs more than a message.
"""

import asyncio
import struct
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

_LENGTH = struct.Struct("<I")
Fact = str | int | float | None


class Find(Struct, frozen=True, array_like=True, tag=0):
    """Front: of which model is this session?"""

    ref: int
    id: str
    owner: str


class Step(Struct, frozen=True, array_like=True, tag=1):
    """Front: advance a session by a chunk, whose arrays come as their bytes. ``raw``: answer as ``Told``, else JSON."""

    ref: int
    id: str
    owner: str
    position: int | None
    every: bool
    top_k: int
    steps: int
    inputs: list[bytes]
    raw: bool
    keep: int


class Left(Struct, frozen=True, array_like=True, tag=2):
    """Front: nobody waits for the answer to this request any more."""

    ref: int


class Refused(Struct, frozen=True, array_like=True, tag=3):
    """Front: a request was refused there already; for the metrics, which are the engine's. Of a ``stream`` each
    message is ``Counted`` as well."""

    reason: str
    status: int
    stream: bool = False


class Counted(Struct, frozen=True, array_like=True, tag=8):
    """Front: a message of a stream was answered after so long; for the metrics, too."""

    status: int
    seconds: float


class Found(Struct, frozen=True, array_like=True, tag=4):
    """Engine: the session's model, with its signature the first time that this front hears of it."""

    ref: int
    fingerprint: str
    signature: str | None


class Answered(Struct, frozen=True, array_like=True, tag=5):
    """Engine: an HTTP answer; without ``headers`` they are those of JSON."""

    ref: int
    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]] | None


class Told(Struct, frozen=True, array_like=True, tag=6):
    """Engine: a session's answer, as a store keeps it."""

    ref: int
    answers: bytes
    repeated: bool


class Failed(Struct, frozen=True, array_like=True, tag=7):
    """Engine: the error that a request ended with, by the name of its class; "" for one that is not told by name."""

    ref: int
    name: str
    detail: str
    field: str | None
    facts: dict[str, Fact]


FromFront = Find | Step | Left | Refused | Counted
FromEngine = Found | Answered | Told | Failed
M = TypeVar("M")


class Wire(asyncio.Protocol, Generic[M]):
    """One end of the socket between the two: frames in, frames out. What a message means is ``heard``'s business."""

    def __init__(self, decoder: "msgspec.msgpack.Decoder[list[M]]") -> None:
        self._decode = decoder.decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._received = bytearray()
        self._unsent: list[object] = []
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self.transport = transport  # type: ignore[assignment]  # a stream's transport

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self.lost.set()

    async def close(self) -> None:
        """Send what has gathered, and hang up."""
        self.flush()
        if self.transport is not None:
            self.transport.close()
            await self.lost.wait()

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        self._received += data
        for frame in self._frames():
            for message in self._decode(frame):
                self.heard(message)

    def _frames(self) -> Iterator[bytes]:
        start, received = 0, self._received
        while len(received) - start >= _LENGTH.size:
            end = start + _LENGTH.size + _LENGTH.unpack_from(received, start)[0]
            if len(received) < end:
                break
            yield bytes(received[start + _LENGTH.size : end])
            start = end
        del received[:start]

    def heard(self, message: M) -> None:
        """A message has come."""
        raise AssertionError("each end says what it hears")

    def say(self, message: object) -> None:
        """Send a message, together with what else this turn of the event loop brings."""
        if not self._unsent:
            self._loop.call_soon(self.flush)
        self._unsent.append(message)

    def flush(self) -> None:
        """Send what has gathered."""
        messages, self._unsent = self._unsent, []
        if messages and self.transport is not None and not self.transport.is_closing():
            frame = self._encode(messages)
            self.transport.write(_LENGTH.pack(len(frame)) + frame)
