"""WebSocket frames as a server reads and writes them (RFC 6455): bytes to messages and back, no I/O, no extensions."""

from typing import Final

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
NORMAL, GOING_AWAY, PROTOCOL_ERROR, INVALID_TEXT, TOO_BIG, RESTART = 1000, 1001, 1002, 1007, 1009, 1012

_FINAL: Final = 0x80  # bit of the first byte: the last frame of its message
_MASKED: Final = 0x80  # bit of the second byte
# All first bytes that a client may send: no reserved bit, a known opcode, control frames in one piece.
_FIRST = frozenset(
    (0x00, _FINAL, TEXT, _FINAL | TEXT, BINARY, _FINAL | BINARY, *(_FINAL | c for c in (CLOSE, PING, PONG)))
)
_SHORT: Final = 125  # longest payload whose length is in the second byte, and of a control frame
_LONGER = {126: (2, _SHORT + 1), 127: (8, 1 << 16)}  # bytes of the length that follows, and the least that needs them
_KEY: Final = 4
_CLOSE_CODES = (range(1000, 1004), range(1007, 1015), range(3000, 5000))  # what may be sent as such


class Fault(Exception):
    """What came breaks the protocol: the connection is closed with this code and reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Receiver:
    """Whole messages and control frames out of bytes, however they are cut.

    Mutable state: ``_data`` (what has come), ``_at`` (up to where it was read), ``_kind`` and ``_parts`` (the opcode of
    a message in fragments, 0 where there is none, and what has come of it).
    """

    __slots__ = ("_at", "_data", "_kind", "_limit", "_parts")

    def __init__(self, limit: int) -> None:
        """``limit``: bytes of a message at most."""
        self._limit = limit
        self._data: bytes | bytearray = b""
        self._at = 0
        self._kind = 0
        self._parts = bytearray()

    def feed(self, data: bytes) -> None:
        """Bytes have come."""
        if self._at == len(self._data):
            self._data = data
        else:
            if not isinstance(self._data, bytearray):
                self._data = bytearray(self._data)
            del self._data[: self._at]
            self._data += data
        self._at = 0

    @property
    def waiting(self) -> bool:
        """Whether something has come that was not read."""
        return self._at < len(self._data)

    def next(self) -> tuple[int, bytes] | None:
        """Opcode and payload of the next message or control frame; None where more bytes have to come.

        Raises:
            Fault: what came breaks the protocol. Nothing can be read after it.
        """
        while (frame := self._frame()) is not None:
            first, payload = frame
            opcode = first & ~_FINAL
            if opcode >= CLOSE:
                return opcode, payload
            if (opcode == 0) != (self._kind != 0):
                raise Fault(PROTOCOL_ERROR, "a message began inside another" if opcode else "nothing to continue")
            if opcode and first & _FINAL:
                return opcode, payload
            self._kind = self._kind or opcode
            self._parts += payload
            if first & _FINAL:
                opcode, whole = self._kind, bytes(self._parts)
                self._kind, self._parts = 0, bytearray()
                return opcode, whole
        return None

    def _frame(self) -> tuple[int, bytes] | None:
        """First byte and payload of the next frame, as soon as it is complete; faults are found before that."""
        data, at = self._data, self._at
        have = len(data) - at
        if have < 2:
            return None
        first, length = data[at], data[at + 1] - _MASKED
        if first not in _FIRST:
            raise Fault(PROTOCOL_ERROR, "reserved bits, an unknown opcode, or a control frame in fragments")
        if length < 0:
            raise Fault(PROTOCOL_ERROR, "a frame that is not masked")
        at += 2
        if length > _SHORT:
            if first & CLOSE:
                raise Fault(PROTOCOL_ERROR, "a control frame is too long")
            size, least = _LONGER[length]
            if have < 2 + size:
                return None
            length = int.from_bytes(data[at : at + size], "big")
            if length < least:
                raise Fault(PROTOCOL_ERROR, "a length in more bytes than it needs")
            at += size
        if length + len(self._parts) > self._limit and not first & CLOSE:
            raise Fault(TOO_BIG, f"a message is larger than {self._limit} bytes")
        end = at + _KEY + length
        if end > len(data):
            return None
        self._at = end
        # The mask is taken off as from one large number: of all that Python offers, the fastest for a few bytes.
        mask = int.from_bytes((data[at : at + _KEY] * (length // _KEY + 1))[:length], "little")
        payload = int.from_bytes(data[at + _KEY : end], "little")
        return first, (payload ^ mask).to_bytes(length, "little")


def frame(opcode: int, payload: bytes) -> bytes:
    """A whole message or control frame, as a server sends it."""
    length = len(payload)
    if length <= _SHORT:
        return b"%c%c%b" % (_FINAL | opcode, length, payload)
    size = 2 if length < _LONGER[127][1] else 8
    return b"%c%c%b%b" % (_FINAL | opcode, 126 if size == 2 else 127, length.to_bytes(size, "big"), payload)


def close_frame(code: int, reason: str = "") -> bytes:
    """A close frame."""
    told = reason.encode()[: _SHORT - 2].decode(errors="ignore")  # cut between two characters
    return frame(CLOSE, code.to_bytes(2, "big") + told.encode())


def closed_with(payload: bytes) -> int:
    """The code of a close frame that came; ``NORMAL`` where it has none. Fault for one that must not be sent."""
    if not payload:
        return NORMAL
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not any(code in allowed for allowed in _CLOSE_CODES):
        raise Fault(PROTOCOL_ERROR, "a close code that must not be sent")
    text(payload[2:])
    return code


def text(payload: bytes) -> str:
    """A text's characters; Fault where it is not UTF-8."""
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise Fault(INVALID_TEXT, "a text that is not UTF-8") from None
