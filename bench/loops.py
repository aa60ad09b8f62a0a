"""When each session sends: closed loop (the next step when the last was answered) or open loop (when it is due).

Owns what is counted of it. In an open loop a latency begins when a request was due, whatever kept it from being sent:
an answer that was late, the session's request before it, or ourselves; so a stall is met by all who would have met it
(no "coordinated omission"). In a closed loop it begins at sending: what a stall kept from being sent is not seen.
"""

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from bench.figures import Tally
from bench.schedule import Timer, poisson

BACK_OFF_S = 0.1  # after a problem: refusals are not to be measured by the thousand
ANSWER_LIMIT_S = 10.0  # for what is in flight at the end


class Client(Protocol):
    """What a loop needs of a session, whatever the transport: it is told to send, and tells when that is done."""

    busy: bool  # it takes no request more
    began: float  # of the request that is over, when it is told

    def send(self, began: float) -> None:
        """Send the next steps."""

    def give_up(self) -> list[float]:
        """Forget what is in flight; when it began."""


@dataclass(frozen=True)
class Times:
    """When a stage begins, is measured from, and ends, in seconds of a clock that all processes share."""

    begin: float
    measure: float
    end: float


class Loop(ABC):
    """The part that both have: counting, backing off, ending."""

    def __init__(self, clients: Sequence[Client], times: Times, now: Callable[[], float] = time.perf_counter) -> None:
        self._clients = clients
        self._times = times
        self._now = now
        self._end = times.end
        self._idle = asyncio.Event()
        self._stopped = asyncio.Event()
        self._flying = 0
        self.tally = Tally()

    async def run(self) -> Tally:
        """From begin to end; then wait for what is in flight, and count what is not answered."""
        await self._wait(self._times.begin)
        self._start()
        await self._wait(self._times.measure)
        cpu = time.process_time()
        await self._wait(self._times.end)
        self._stop()
        self.tally.cpu_s = time.process_time() - cpu
        self.tally.seconds = max(0.0, self._end - self._times.measure)
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                while self._flying:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            for client in self._clients:
                for began in client.give_up():
                    self.tally.problems["no-answer"] += 1
                    self._leave(began)
        return self.tally

    def stop(self) -> None:
        """End now."""
        self._end = min(self._end, self._now())
        self._stopped.set()

    async def _wait(self, at: float) -> None:
        """Until then, or until it is told to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(at - self._now()):
                await self._stopped.wait()

    def done(self, client: Client, problem: str | None) -> None:
        """A request is over."""
        now = self._now()
        self._flying -= 1
        if problem is None:
            if self._times.measure <= now < self._end:
                self.tally.requests += 1
            if self._times.measure <= client.began < self._end:
                self.tally.latencies.add(now - client.began)
            self._next(client, now)
        else:
            self.tally.problems[problem] += 1
            asyncio.get_running_loop().call_later(BACK_OFF_S, lambda: self._next(client, self._now()))
        if not self._flying:
            self._idle.set()

    def _send(self, client: Client, began: float) -> None:
        self._flying += 1
        client.send(began)

    def _leave(self, began: float) -> None:
        """Count what was not answered with the time that it has waited: more than it is not known."""
        if self._times.measure <= began < self._end:
            self.tally.unanswered += 1
            self.tally.latencies.add(self._now() - began)

    @abstractmethod
    def _start(self) -> None:
        """Send what is to be sent first."""

    @abstractmethod
    def _stop(self) -> None:
        """Nothing is sent any more."""

    @abstractmethod
    def _next(self, client: Client, now: float) -> None:
        """Go on with a session whose request is over."""


class ClosedLoop(Loop):
    """Each session has as many requests in flight as it takes, always."""

    def _start(self) -> None:
        for client in self._clients:
            while not client.busy:
                self._send(client, self._now())

    def _stop(self) -> None:
        """Nothing is waiting: what is sent next is decided by answers."""

    def _next(self, client: Client, now: float) -> None:
        if now < self._end:
            self._send(client, now)


class OpenLoop(Loop):
    """Requests are due by a Poisson process, each for a session by chance; one that is busy takes them in order.

    ``rate`` is of each client as they are at the beginning: they may come and go, their requests together stay as many.
    """

    def __init__(
        self,
        clients: Sequence[Client],
        times: Times,
        rate: float,
        chance: random.Random,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(clients, times, now)
        self._rate = rate * len(clients)
        self._chance = chance
        self._waiting: dict[Client, deque[float]] = defaultdict(deque)
        self._backing_off: set[Client] = set()

    def _start(self) -> None:
        if not self._clients:
            return
        self._arrivals = poisson(self._rate, self._times.begin, self._chance)
        self._due = next(self._arrivals)
        self._timer = Timer(self.arrive)
        self._timer.set(self._due)

    def arrive(self) -> None:
        """Send all that is due, and wait for what is next."""
        now = self._now()
        while self._due <= now and self._due < self._end:
            client = self._chance.choice(self._clients)
            if client.busy or client in self._backing_off:
                self._waiting[client].append(self._due)
            else:
                if self._due >= self._times.measure:
                    self.tally.late.add(now - self._due)
                self._send(client, self._due)
            self._due = next(self._arrivals)
        if self._due < self._end:
            self._timer.set(self._due)

    def _stop(self) -> None:
        if self._clients:
            self._timer.close()
        for due in self._waiting.values():
            for began in due:
                self._leave(began)
        self._waiting.clear()

    def done(self, client: Client, problem: str | None) -> None:
        """A request is over; after a problem its session waits, and what is due for it waits with it."""
        if problem is not None:
            self._backing_off.add(client)
        super().done(client, problem)

    def _next(self, client: Client, now: float) -> None:
        self._backing_off.discard(client)
        if waiting := self._waiting.get(client):
            began = waiting.popleft()
            if not waiting:
                del self._waiting[client]
            self._send(client, began)

    def owes(self, client: Client) -> bool:
        """Whether a request of this one is in flight, or waits; a client that leaves the crowd is asked for it."""
        return client.busy or client in self._waiting or client in self._backing_off
