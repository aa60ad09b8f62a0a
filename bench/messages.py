"""What a stream carries: requests and answers, as JSON or in the service's binary layout.

A chunk is made beforehand (``inputs``); what a request adds is its position.
"""

import struct
from dataclasses import dataclass
from typing import Protocol

from bench.websocket import BINARY, TEXT

_ANSWER = struct.Struct("<BBHIqd")  # 0, flags, symbols told, steps, position, expires_at
_POSITION = struct.Struct("<q")
_AT = 8  # where it stands in a request's header
HEADER = struct.Struct("<BBHIq")  # flags, 0, top_k, steps, position


class Format(Protocol):
    """How a stream's messages are written and read."""

    @property
    def opcode(self) -> int:
        """Of the messages."""
        ...

    def request(self, chunk: bytes, position: int) -> bytes:
        """The message that sends a chunk."""
        ...

    def answers(self, opcode: int, payload: bytes, reached: int, steps: int) -> bool:
        """Whether this is the answer to ``steps`` steps that end there."""
        ...


@dataclass(frozen=True)
class Json:
    """Text messages."""

    opcode = TEXT

    def request(self, chunk: bytes, position: int) -> bytes:
        """See ``Format``."""
        return b'{"position":%d,%b}' % (position, chunk)

    def answers(self, opcode: int, payload: bytes, reached: int, steps: int) -> bool:
        """See ``Format``."""
        return payload.startswith(b'{"position":%d,"steps":%d,' % (reached, steps))


@dataclass(frozen=True)
class Binary:
    """Binary messages; a problem comes as text all the same."""

    opcode = BINARY

    def request(self, chunk: bytes, position: int) -> bytes:
        """See ``Format``."""
        return chunk[:_AT] + _POSITION.pack(position) + chunk[HEADER.size :]

    def answers(self, opcode: int, payload: bytes, reached: int, steps: int) -> bool:
        """See ``Format``."""
        return (
            opcode == BINARY and len(payload) >= _ANSWER.size and _ANSWER.unpack_from(payload)[3:5] == (steps, reached)
        )
