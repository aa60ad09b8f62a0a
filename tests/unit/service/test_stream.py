"""A stream of steps: order, back-pressure, how it ends. The test is the client; the sessions are real."""

import json
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import pytest

from service.api.lifeline import CLOSE_S, FAILED_S, PING_S
from service.api.stepping import Counts
from service.api.stream import Stream
from service.api.streams import Limits, Streams
from tests.support.brain import Brain, Serve
from tests.support.fakes import turns
from tests.support.websocket import ANSWER, BINARY, CLOSE, PING, PONG, TEXT, frame, handshake, request, split

MOST, MAX_STEPS = 8, 200


class Wire:
    """The transport between a stream and the test, which is the client."""

    def __init__(self) -> None:
        self.sent = b""
        self.reading = True
        self.closed = ""
        self.ended = False

    def write(self, data: bytes) -> None:
        """See ``asyncio.Transport``."""
        assert not self.closed
        self.sent += data

    def pause_reading(self) -> None:
        """See ``asyncio.Transport``."""
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        """See ``asyncio.Transport``."""
        assert not self.reading
        self.reading = True

    def write_eof(self) -> None:
        """See ``asyncio.Transport``."""
        self.ended = True

    def close(self) -> None:
        """See ``asyncio.Transport``."""
        self.closed = self.closed or "closed"

    def abort(self) -> None:
        """See ``asyncio.Transport``."""
        self.closed = self.closed or "aborted"


class Counted(Counts):
    """What was counted."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.reasons: list[str] = []

    def refused(self, reason: str, status: int) -> None:
        """See ``Counts``."""
        self.reasons.append(reason)

    def answered(self, status: int, seconds: float) -> None:
        """See ``Counts``."""
        assert seconds >= 0
        self.statuses.append(status)


class Talk:
    """One client's stream."""

    def __init__(self, brain: Brain) -> None:
        self.brain, self.wire, self.counts = brain, Wire(), Counted()
        streams = Streams(brain.sessions, self.counts, Limits(1000, MAX_STEPS, MOST))
        self.connections: set[object] = set()
        config = SimpleNamespace(loaded_app=SimpleNamespace(streams=streams))
        self.stream = Stream(config, SimpleNamespace(connections=self.connections), {})
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.stream._set_timer = lambda after_s, call: self.timers.append((after_s, call))  # type: ignore[method-assign]
        self.stream.connection_made(self.wire)  # type: ignore[arg-type]
        self.head = b""

    async def open(self, id: str, query: str = "") -> None:
        """Shake hands."""
        self.stream.data_received(handshake(f"/v1/sessions/{id}/stream{query}"))
        assert self.stream._opening is not None
        await self.stream._opening
        self.head, _, self.wire.sent = self.wire.sent.partition(b"\r\n\r\n")

    def send(self, *frames: bytes) -> None:
        """These bytes come together."""
        self.stream.data_received(b"".join(frames))

    def heard(self) -> list[tuple[int, bytes]]:
        """The frames that have come so far."""
        found, self.wire.sent = split(self.wire.sent)
        return found

    async def hear(self, count: int) -> list[tuple[int, bytes]]:
        """So many frames."""
        found: list[tuple[int, bytes]] = []
        for _ in range(10_000):
            await turns()
            found += self.heard()
            if len(found) >= count:
                return found
        raise AssertionError(f"only {found} came")


def add(value: float, position: int = -1) -> bytes:
    """A frame that adds to a sum."""
    return frame(BINARY, request(value, position=position))


def sums(frames: list[tuple[int, bytes]]) -> list[float | int]:
    """The sums that answers tell; of a problem, its status."""
    return [request_sum(payload) if opcode == BINARY else json.loads(payload)["status"] for opcode, payload in frames]


def request_sum(payload: bytes) -> float:
    """The one number behind an answer's header."""
    return float(memoryview(payload)[ANSWER.size :].cast("B").cast("f")[0])


def code(payload: bytes) -> int:
    """Of a close frame."""
    return int.from_bytes(payload[:2], "big")


@pytest.fixture
async def talk(brain: Brain) -> AsyncIterator[Talk]:
    """A stream to a new session that sums."""
    made = Talk(brain)
    await made.open(await brain.create())
    assert made.head.startswith(b"HTTP/1.1 101 ")
    yield made
    made.stream.connection_lost(None)
    assert not made.connections


async def test_answers_come_in_order_whatever_they_are(talk: Talk) -> None:
    """A problem takes its place behind what was sent before it, and what follows applies by its own position."""
    gate = talk.brain.engines["adder"].gate
    gate.shut()
    talk.send(add(1), add(2), frame(BINARY, b"short"), frame(TEXT, b'{"inputs": [4], "position": 2}'), add(8, 9))
    await gate.reached()
    assert talk.heard() == []
    gate.open()
    frames = await talk.hear(5)
    assert [opcode for opcode, _ in frames] == [BINARY, BINARY, TEXT, TEXT, TEXT]
    assert sums(frames[:3]) == [1, 3, 422]
    assert json.loads(frames[3][1])["outputs"] == {"y": [7]}
    assert json.loads(frames[4][1])["position"] == 3
    assert talk.counts.statuses == [101, 422, 200, 200, 200, 409]
    assert sorted(talk.counts.reasons) == ["invalid-input", "position-conflict"]


async def test_what_is_in_flight_together_shares_ticks(talk: Talk) -> None:
    """One tick for the first, one for all that came while it ran."""
    gate = talk.brain.engines["adder"].gate
    gate.shut()
    talk.send(add(1))
    await gate.reached()
    talk.send(*(add(1) for _ in range(MOST - 1)))
    gate.open()
    assert sums(await talk.hear(MOST)) == list(range(1, MOST + 1))
    assert talk.brain.engines["adder"].ticks[-1] == [MOST - 1]


async def test_a_repeat_gets_the_same_answer(talk: Talk) -> None:
    """And says that it is one."""
    talk.send(add(5, 0))
    [(_, first)] = await talk.hear(1)
    talk.send(add(5, 0))
    [(_, again)] = await talk.hear(1)
    assert (first[1], again[1]) == (0, 1)
    assert first[2:] == again[2:]


@pytest.mark.parametrize("in_flight", [1, 3, MOST])
async def test_as_many_answers_are_kept_as_may_be_in_flight(brain: Brain, in_flight: int) -> None:
    """A client that lost its connection with so many unanswered gets every one of them; older ones are gone."""
    id = await brain.create()
    talk = Talk(brain)
    await talk.open(id, f"?in_flight={in_flight}")
    for position in range(in_flight + 2):
        talk.send(add(1, position))
        await talk.hear(1)
    talk.stream.connection_lost(None)
    talk = Talk(brain)
    await talk.open(id, f"?in_flight={in_flight}")
    talk.send(*(add(1, position) for position in range(2, in_flight + 2)))
    assert sums(await talk.hear(in_flight)) == list(range(3, in_flight + 3))
    talk.send(add(1, 1))
    assert sums(await talk.hear(1)) == [409]


async def test_beyond_what_may_be_in_flight_nothing_is_read(brain: Brain) -> None:
    """It is not refused: it waits in the client's own buffers, and is taken as soon as there is room."""
    talk = Talk(brain)
    await talk.open(await brain.create(), "?in_flight=2")
    gate = brain.engines["adder"].gate
    gate.shut()
    talk.send(add(1), add(1))
    await gate.reached()
    assert talk.wire.reading
    talk.send(add(1), add(1), add(1))
    assert not talk.wire.reading
    gate.open()
    assert sums(await talk.hear(5)) == [1, 2, 3, 4, 5]
    assert talk.wire.reading
    talk.stream.connection_lost(None)


async def test_long_chunks_count_by_their_steps(talk: Talk) -> None:
    """So that what is in flight stays bounded in bytes, too."""
    gate = talk.brain.engines["adder"].gate
    gate.shut()
    talk.send(frame(BINARY, request(*[1] * MAX_STEPS)), add(1))
    assert not talk.wire.reading
    gate.open()
    assert sums(await talk.hear(2)) == [MAX_STEPS, MAX_STEPS + 1]


async def test_a_slow_reader_is_not_read_from(talk: Talk) -> None:
    """Until it has read what it was sent."""
    talk.stream.pause_writing()
    talk.send(add(1))
    assert not talk.wire.reading
    await turns()
    assert talk.heard() == []
    talk.stream.resume_writing()
    assert talk.wire.reading
    assert sums(await talk.hear(1)) == [1]


async def test_who_has_gone_is_not_computed_for(talk: Talk) -> None:
    """What waits is dropped; what runs is committed."""
    gate, id = talk.brain.engines["adder"].gate, talk.stream._id
    gate.shut()
    talk.send(add(1))
    await gate.reached()
    talk.send(add(2))
    talk.stream.connection_lost(None)
    gate.open()
    assert await talk.brain.add(id, 10) == [11]


async def test_a_ping_is_answered(talk: Talk) -> None:
    """Between two answers; a pong that nobody asked for is nothing."""
    talk.send(frame(PING, b"there?"), frame(PONG, b"yes"))
    assert talk.heard() == [(PONG, b"there?")]


async def test_a_silent_client_is_asked_and_then_taken_for_gone(talk: Talk) -> None:
    """But not where it is us who do not listen."""
    after_s, look = talk.timers.pop()
    assert after_s == PING_S
    look()
    assert talk.heard() == []
    talk.stream._heard -= PING_S
    look()
    assert talk.heard() == [(PING, b"")]
    talk.stream._heard -= PING_S
    talk.stream._deaf = True
    look()
    assert not talk.wire.closed
    talk.stream._deaf = False
    look()
    assert talk.wire.closed == "aborted"


async def test_the_client_ends_the_stream(talk: Talk) -> None:
    """What is in flight is answered first; then its close frame is answered by the same code."""
    gate = talk.brain.engines["adder"].gate
    gate.shut()
    talk.send(add(1), frame(CLOSE, b"\x03\xe9bye"), add(2))
    await gate.reached()
    gate.open()
    frames = await talk.hear(2)
    assert [opcode for opcode, _ in frames] == [BINARY, CLOSE]
    assert frames[1][1] == b"\x03\xe9"
    assert talk.wire.closed == "closed"


async def test_the_server_ends_the_stream(talk: Talk) -> None:
    """What is in flight is answered, what comes later is not taken; the client's close frame is waited for."""
    gate = talk.brain.engines["adder"].gate
    gate.shut()
    talk.send(add(1))
    await gate.reached()
    talk.stream.shutdown()
    talk.send(add(2))
    gate.open()
    frames = await talk.hear(2)
    assert sums(frames[:1]) == [1]
    assert (frames[1][0], code(frames[1][1])) == (CLOSE, 1001)
    assert not talk.wire.closed
    assert talk.timers[-1][0] == CLOSE_S
    talk.send(add(4), frame(CLOSE, b"\x03\xe9"))
    assert talk.wire.closed == "closed"


async def test_a_client_that_does_not_close_is_hung_up_on(talk: Talk) -> None:
    """After some seconds."""
    talk.stream.shutdown()
    talk.timers[-1][1]()
    assert talk.wire.closed == "aborted"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (frame(TEXT, b"\xff"), 1007),
        (frame(BINARY, bytes(1001)), 1009),
        (frame(0x5), 1002),
        (frame(CLOSE, b"\x03"), 1002),
        (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    ],
)
async def test_a_fault_closes_the_stream_behind_what_was_right(talk: Talk, data: bytes, expected: int) -> None:
    """With the code that says why; nothing that comes after it is read, and the end is not put off."""
    talk.send(add(1), data, add(2))
    talk.send(add(4))
    frames = await talk.hear(2)
    assert sums(frames[:1]) == [1]
    assert (frames[1][0], code(frames[1][1])) == (CLOSE, expected)
    assert talk.wire.ended
    assert talk.timers[-1][0] == FAILED_S
    talk.timers[-1][1]()
    assert talk.wire.closed == "aborted"


async def test_a_session_that_is_deleted_ends_its_stream(talk: Talk) -> None:
    """Whoever was waiting is told by a problem; then the stream is closed with that status above 4000."""
    await talk.brain.sessions.delete(talk.stream._id, "")
    talk.send(add(1), add(2))
    frames = await talk.hear(3)
    assert sums(frames[:2]) == [410, 410]
    assert (frames[2][0], code(frames[2][1])) == (CLOSE, 4410)


async def test_a_session_that_rests_is_woken(brain: Brain, serve: Serve) -> None:
    """In the order in which its messages came."""
    id = await brain.create()
    other = serve()  # it has not seen the session yet
    talk = Talk(other)
    await talk.open(id)
    other.sessions._arena._live.clear()
    other.sessions._arena._packed.drop_oldest(9)
    talk.send(add(1), add(2))
    talk.send(add(4))
    assert sums(await talk.hear(3)) == [1, 3, 7]
    talk.stream.connection_lost(None)


async def test_no_stream_to_a_session_that_is_not_there(brain: Brain) -> None:
    """The handshake is refused with the problem."""
    talk = Talk(brain)
    await talk.open("nobody")
    assert talk.head.startswith(b"HTTP/1.1 404 ")
    assert json.loads(talk.wire.sent)["type"].endswith("unknown-session")
    assert talk.wire.closed == "closed"
    assert (talk.counts.statuses, talk.counts.reasons) == ([404], ["unknown-session"])


async def test_no_stream_while_the_server_ends(brain: Brain) -> None:
    """Where the handshake had come before."""
    talk = Talk(brain)
    id = await brain.create()
    talk.stream.data_received(handshake(f"/v1/sessions/{id}/stream"))
    talk.stream.shutdown()
    assert talk.stream._opening is not None
    await talk.stream._opening
    assert talk.wire.sent.startswith(b"HTTP/1.1 503 ")
    assert talk.counts.reasons == ["shutting-down"]


async def test_an_engine_that_is_lost_ends_the_stream_at_once(talk: Talk) -> None:
    """Nobody knows what became of what was in flight: the client comes again, and repeats it."""
    gate = talk.brain.engines["adder"].gate
    gate.shut()
    talk.send(add(1), add(2))
    talk.stream._flying[0].lose()
    [(opcode, payload)] = talk.heard()
    assert (opcode, code(payload)) == (CLOSE, 1012)
    gate.open()


async def test_an_answer_that_cannot_be_written_is_a_problem(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours: told as such, and the stream goes on."""

    def broken(*_: object, **__: object) -> bytes:
        raise RuntimeError("a fault")

    with monkeypatch.context() as patched:
        patched.setattr(type(talk.stream._messages), "to_binary", broken)
        talk.send(add(1))
        assert sums(await talk.hear(1)) == [500]
    talk.send(add(2))
    assert sums(await talk.hear(1)) == [3]
