"""Open and closed loop, with clients and a clock of the test; the reader of answers, fed as networks do."""

import asyncio
import random

import pytest

from bench import loops
from bench.http import MOST_HEAD, NotHttp, Reader
from bench.loops import ClosedLoop, Loop, OpenLoop, Times

STALL_AT, STALL_S, ANSWER_S = 5.0, 0.1, 0.0005


class Clock:
    """A time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.now


class StallingServer:
    """Answers each request after half a millisecond, but nobody for 100 ms, once."""

    def answers_at(self, sent: float) -> float:
        """When the answer comes to what is sent now."""
        at = sent + ANSWER_S
        return at if not STALL_AT <= at < STALL_AT + STALL_S else STALL_AT + STALL_S + ANSWER_S


class FakeClient:
    """A client of that server, without a network."""

    def __init__(self) -> None:
        self.busy = False
        self.began = 0.0
        self.due: float | None = None
        self.clock = Clock()

    def send(self, began: float) -> None:
        """Sent: the answer will come."""
        assert not self.busy
        self.busy, self.began = True, began
        self.due = StallingServer().answers_at(self.clock.now)

    def give_up(self) -> list[float]:
        """Nothing comes any more."""
        began = [self.began] if self.busy else []
        self.busy, self.due = False, None
        return began


def play(loop: Loop, clients: list[FakeClient], clock: Clock, until: float) -> None:
    """Let the time go by from event to event, without waiting."""
    loop._start()
    while True:
        answers = [(client.due, i) for i, client in enumerate(clients) if client.due is not None]
        arrival = loop._due if isinstance(loop, OpenLoop) else until
        at, i = min([*answers, (arrival, -1)])
        if at >= until:
            break
        clock.now = at
        if i < 0:
            assert isinstance(loop, OpenLoop)
            loop.arrive()
        else:
            clients[i].busy, clients[i].due = False, None
            loop.done(clients[i], None)
    clock.now = until
    loop._stop()


def crowd(clock: Clock, n: int) -> list[FakeClient]:
    """Clients that look at this clock."""
    clients = [FakeClient() for _ in range(n)]
    for client in clients:
        client.clock = clock
    return clients


class NoTimer:
    """The test moves the time itself."""

    def __init__(self, fire: object) -> None:
        self.closed = False

    def set(self, at: float) -> None:
        """Not needed."""

    def close(self) -> None:
        """Not needed."""


@pytest.fixture(autouse=True)
def _no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "Timer", NoTimer)


async def test_a_stall_shows_in_the_open_loop() -> None:
    """1 % of ten seconds nobody was answered: p99.9 says 90 ms or more, for all who were due then."""
    clock = Clock()
    clients = crowd(clock, 20)
    loop = OpenLoop(clients, Times(0.0, 0.0, 10.0), 10.0, random.Random(0), clock)
    play(loop, clients, clock, 10.0)
    latencies = loop.tally.latencies
    assert latencies.total == pytest.approx(2000, rel=0.1)
    assert latencies.quantile(0.5) < 0.001
    assert 0.09 <= latencies.quantile(0.999) <= STALL_S + 0.01


async def test_a_stall_hides_in_the_closed_loop() -> None:
    """Each client meets it once, among thousands: which is why this loop's percentiles are told with a reservation."""
    clock = Clock()
    clients = crowd(clock, 2)
    loop = ClosedLoop(clients, Times(0.0, 0.0, 10.0), clock)
    play(loop, clients, clock, 10.0)
    assert loop.tally.latencies.quantile(0.999) < 0.001
    assert loop.tally.latencies.longest >= STALL_S


async def test_what_is_due_for_a_busy_session_waits_and_counts() -> None:
    """From when it was due; what is never sent is counted with the time it had waited."""
    clock = Clock()
    clients = crowd(clock, 1)
    loop = OpenLoop(clients, Times(0.0, 0.0, 4.0), 5000.0, random.Random(0), clock)  # twice what it can do
    play(loop, clients, clock, 4.0)
    assert loop.tally.requests == pytest.approx(4.0 / ANSWER_S, rel=0.01)
    assert loop.tally.unanswered > 10_000
    assert loop.tally.latencies.quantile(0.5) > 0.5
    assert loop.tally.latencies.quantile(0.999) > 2.0


async def test_only_the_measured_seconds_count() -> None:
    """What began in the warm-up is not told, but its problems are."""
    clock = Clock()
    clients = crowd(clock, 1)
    loop = ClosedLoop(clients, Times(0.0, 2.0, 3.0), clock)
    play(loop, clients, clock, 3.0)
    assert loop.tally.latencies.total == pytest.approx(1.0 / ANSWER_S, rel=0.01)


async def test_after_a_problem_a_session_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted by its name, and the next request follows when the pause is over."""
    monkeypatch.setattr(loops, "BACK_OFF_S", 0.0)
    clock = Clock()
    clients = crowd(clock, 1)
    loop = ClosedLoop(clients, Times(0.0, 0.0, 3.0), clock)
    loop._start()
    clients[0].busy = False
    loop.done(clients[0], "overloaded")
    assert not clients[0].busy
    await asyncio.sleep(0.01)
    assert clients[0].busy
    assert loop.tally.problems == {"overloaded": 1}
    assert loop.tally.latencies.total == 0


async def test_what_is_never_answered_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage ends all the same."""
    monkeypatch.setattr(loops, "ANSWER_LIMIT_S", 0.0)
    clients = crowd(Clock(), 3)
    loop = ClosedLoop(clients, Times(0.0, 0.0, 1e9))
    loop.stop()
    tally = await loop.run()
    assert (tally.problems, tally.unanswered) == ({"no-answer": 3}, 0)
    assert not any(client.busy for client in clients)


ANSWERS = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nContent-Length: 5\r\n\r\nhello"
    b"HTTP/1.1 204 No Content\r\n\r\n"
    b"HTTP/1.1 409 Conflict\r\ncontent-length: 2\r\nx: y\r\n\r\n\r\n"
)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_answers_are_read_however_they_are_cut(size: int) -> None:
    """Byte by byte, or all at once."""
    reader = Reader()
    told = [answer for i in range(0, len(ANSWERS), size) for answer in reader.feed(ANSWERS[i : i + size])]
    assert told == [(200, b"hello"), (204, b""), (409, b"\r\n")]
    assert reader.empty


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0 hello\r\n\r\n", b"HTTP/1.1 abc\r\ncontent-length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n",
     b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", b"x" * (MOST_HEAD + 1)],
)  # fmt: skip
def test_what_is_no_answer_is_refused(answer: bytes) -> None:
    """Instead of waiting for its end for ever."""
    with pytest.raises(NotHttp):
        Reader().feed(answer)
