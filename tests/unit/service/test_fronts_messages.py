"""What front ends and the engine say to each other arrives whole and in order, however the socket cuts it."""

import asyncio
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.fronts.messages import (
    Answered,
    Counted,
    Failed,
    Find,
    Found,
    FromEngine,
    FromFront,
    Left,
    Refused,
    Step,
    Told,
    Wire,
)
from tests.support.fakes import turns

FRONT: list[FromFront] = [
    Find(1, "a", ""),
    Step(2, "a", "me", None, False, 0, 2, [b"\0" * 8, b""], False, 0),
    Step(3, "a", "", 2**63 - 1, True, 5, 1, [b"x" * 70_000], True, 16),
    Left(2),
    Refused("invalid-input", 422),
    Counted(200, 0.5),
]
ENGINE: list[FromEngine] = [
    Found(1, "f" * 64, None),
    Found(1, "f" * 64, "{}"),
    Answered(2, 200, b"{}", None),
    Answered(3, 503, b"", [(b"retry-after", b"1")]),
    Told(4, b"\x90", True),
    Failed(5, "PositionConflict", "elsewhere", "position", {"position": 3, "ratio": 0.5, "none": None, "s": "x"}),
]


class Transport:
    """Keeps what is written; may be closing."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closing = False

    def is_closing(self) -> bool:
        """See ``asyncio.Transport``."""
        return self.closing

    def write(self, data: bytes) -> None:
        """See ``asyncio.Transport``."""
        self.written.append(data)


class Ear(Wire[Any]):
    """An end that notes what it hears."""

    def __init__(self, kinds: Any) -> None:  # noqa: ANN401 - a union of messages
        super().__init__(msgspec.msgpack.Decoder(list[kinds]))
        self.all: list[object] = []

    def heard(self, message: object) -> None:
        """See ``Wire``."""
        self.all.append(message)


async def said(messages: list[Any], together: int) -> list[bytes]:
    """What is written of messages of which so many are said in one turn of the loop."""
    wire, transport = Ear(FromFront), Transport()
    wire.connection_made(cast(asyncio.Transport, transport))
    for start in range(0, len(messages), together):
        for message in messages[start : start + together]:
            wire.say(message)
        await turns()
    return transport.written


@pytest.mark.parametrize("together", [1, 2, 6])
@pytest.mark.parametrize(("kinds", "messages"), [(FromFront, FRONT), (FromEngine, ENGINE)])
async def test_messages_arrive_as_they_were_said(kinds: object, messages: list[object], together: int) -> None:
    """Of every kind; all that one turn of the loop brings goes in one write."""
    written = await said(messages, together)
    assert len(written) == -(-len(messages) // together)
    ear = Ear(kinds)
    ear.data_received(b"".join(written))
    assert ear.all == messages


@given(st.lists(st.integers(1, 40), min_size=1), st.integers(1, 5))
def test_it_may_be_cut_anywhere(cuts: list[int], together: int) -> None:
    """Frames are put together again from pieces of any sizes."""
    small = [message for message in FRONT if not (isinstance(message, Step) and message.raw)]

    async def cut() -> list[object]:
        whole, ear, n = b"".join(await said(small, together)), Ear(FromFront), 0
        while whole:
            size = cuts[n % len(cuts)]
            ear.data_received(whole[:size])
            whole, n = whole[size:], n + 1
        return ear.all

    assert asyncio.run(cut()) == small


async def test_nothing_is_written_to_who_has_gone() -> None:
    """What is said after the other end has hung up goes nowhere; and before there is one, too."""
    wire, transport = Ear(FromFront), Transport()
    wire.say(Left(1))
    await turns()
    wire.connection_made(cast(asyncio.Transport, transport))
    transport.closing = True
    wire.say(Left(1))
    await turns()
    assert transport.written == []


async def test_each_end_says_what_it_hears() -> None:
    """A wire alone understands nothing."""
    wire = Wire[FromFront](msgspec.msgpack.Decoder(list[FromFront]))
    with pytest.raises(AssertionError):
        wire.heard(Left(1))
    await wire.close()
