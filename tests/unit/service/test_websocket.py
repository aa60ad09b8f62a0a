"""Frames of RFC 6455: whatever a client may send is read, however it is cut, and nothing else."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.websocket import (
    BINARY,
    CLOSE,
    INVALID_TEXT,
    NORMAL,
    PING,
    PROTOCOL_ERROR,
    TEXT,
    TOO_BIG,
    Fault,
    Receiver,
    close_frame,
    closed_with,
    text,
)
from service.api.websocket import frame as sent
from tests.support.websocket import frame, split

LIMIT = 100_000


def received(*parts: bytes, limit: int = LIMIT) -> list[tuple[int, bytes]]:
    """What comes of bytes that arrive in these parts."""
    receiver, found = Receiver(limit), list[tuple[int, bytes]]()
    for part in parts:
        receiver.feed(part)
        while (message := receiver.next()) is not None:
            found.append(message)
    return found


@pytest.mark.parametrize("length", [0, 1, 3, 4, 125, 126, 65_535, 65_536])
def test_every_length_is_read_and_written(length: int) -> None:
    """In each of the three ways in which a length is told."""
    payload = bytes(i % 251 for i in range(length))
    assert received(frame(BINARY, payload)) == [(BINARY, payload)]
    assert split(sent(TEXT, payload)) == ([(TEXT, payload)], b"")


@given(
    st.lists(st.binary(max_size=300), max_size=5),
    st.lists(st.integers(0, 2000), max_size=6),
    st.binary(min_size=4, max_size=4),
)
def test_messages_do_not_depend_on_how_they_are_cut(payloads: list[bytes], cuts: list[int], key: bytes) -> None:
    """Networks deliver bytes, not frames."""
    data = b"".join(frame(BINARY, payload, key=key) for payload in payloads)
    at = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [data[start:end] for start, end in pairwise(at)]
    assert received(*parts) == [(BINARY, payload) for payload in payloads]


def test_fragments_become_one_message() -> None:
    """Control frames may come between them."""
    data = frame(TEXT, b"on", final=False) + frame(PING, b"?") + frame(0, b"", final=False) + frame(0, b"e")
    assert received(data + frame(TEXT, b"two")) == [(PING, b"?"), (TEXT, b"one"), (TEXT, b"two")]


@pytest.mark.parametrize(
    "data",
    [
        sent(BINARY, b"not masked"),
        frame(TEXT, b"x", first=0x40),
        frame(TEXT, b"x", first=0x10),
        frame(0x3, b"x"),
        frame(0xB, b"x"),
        frame(PING, b"x", final=False),
        frame(PING, bytes(126)),
        frame(0, b"nothing to continue"),
        frame(TEXT, b"x", final=False) + frame(TEXT, b"y"),
        b"\x82\xfe\x00\x7d" + bytes(4 + 125),
        b"\x82\xff" + (65_535).to_bytes(8, "big"),
        b"\x82\xff" + (2**63 + 1).to_bytes(8, "big"),
    ],
    ids=["unmasked", "rsv1", "rsv3", "opcode 3", "opcode 11", "ping in parts", "long ping", "continuation", "nested",
         "length in 2 bytes", "length in 8 bytes", "negative length"],
)  # fmt: skip
def test_what_breaks_the_protocol_is_a_fault(data: bytes) -> None:
    """It is found as soon as it can be."""
    with pytest.raises(Fault) as found:
        received(data)
    assert found.value.code == (TOO_BIG if data[2:3] == b"\x80" else PROTOCOL_ERROR)


def test_a_message_beyond_the_limit_is_refused_by_its_header() -> None:
    """Before any of it is kept; in fragments, as soon as they are too much together."""
    assert received(frame(BINARY, bytes(10)), limit=10) == [(BINARY, bytes(10))]
    for data in (frame(BINARY, bytes(11))[:6], frame(BINARY, bytes(6), final=False) + frame(0, bytes(5))[:6]):
        with pytest.raises(Fault) as found:
            received(data, limit=10)
        assert found.value.code == TOO_BIG


def test_a_reason_for_closing_is_cut_to_what_a_frame_holds() -> None:
    """Between two characters."""
    [(opcode, payload)], _ = split(close_frame(1001, "é" * 100))
    assert (opcode, payload[:2], payload[2:].decode()) == (CLOSE, (1001).to_bytes(2, "big"), "é" * 61)


@pytest.mark.parametrize(("payload", "code"), [(b"", NORMAL), (b"\x03\xe9", 1001), (b"\x0f\xa0bye", 4000)])
def test_a_close_code_is_read(payload: bytes, code: int) -> None:
    """Without one the client had nothing to say."""
    assert closed_with(payload) == code


@pytest.mark.parametrize(
    "payload", [b"\x03", b"\x03\xec", b"\x03\xed", b"\x03\xee", b"\x03\xe7", b"\x13\x88", b"\x07\xd0"]
)
def test_close_codes_that_must_not_be_sent_are_faults(payload: bytes) -> None:
    """Half a code, those that only stand for what happened, and those of nobody."""
    with pytest.raises(Fault):
        closed_with(payload)


@pytest.mark.parametrize("wrong", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"half \xe2\x82"])
def test_a_text_is_utf8(wrong: bytes) -> None:
    """The reason of a close frame too."""
    assert text("grüße".encode()) == "grüße"
    for read in (text, lambda payload: closed_with(b"\x03\xe8" + payload)):
        with pytest.raises(Fault) as found:
            read(wrong)
        assert found.value.code == INVALID_TEXT
