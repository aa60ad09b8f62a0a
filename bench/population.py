"""Sessions that are created, continued, deleted and left to expire, so that as many come as go.

Owns who lives how long. `hot` sessions last from the beginning to the end, `cold` ones, too, and are met so rarely that
they rest in the store in between; the others are born at random times, take steps for a while, and are then deleted or
abandoned. That an ended one is really over, and says why, is asked for each. When to send is the loops' business.
"""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field

from bench.errors import BenchError
from bench.figures import Tally, together
from bench.loops import ClosedLoop, Loop, OpenLoop, Times
from bench.options import Address
from bench.schedule import poisson
from bench.witness import Chunks, Witness
from bench.worker import a_few_at_once

EXPIRING = 0.5  # of the born ones; the others are deleted
CHUNKS = (1, 1, 1, 8)  # steps of a request, by session: mostly single steps
SWEPT_S = 1.0  # behind the end of its ttl a session is over, whether it was swept yet or not
_LOOK_S = 0.05


@dataclass(frozen=True)
class Plan:
    """How many sessions there are; ``life_s`` is the mean time in which a born one takes steps."""

    hot: int = 200
    cold: int = 5_000
    cold_rate: float = 50.0  # requests per second of all cold ones together
    births: float = 10.0  # per second
    life_s: float = 30.0
    ttl_s: float = 20.0  # of those that are left to expire


@dataclass
class Counts:
    """What became of the sessions that were born."""

    created: int = 0
    deleted: int = 0
    expired: int = 0
    problems: Counter[str] = field(default_factory=Counter)


class Population:
    """The sessions of a soak, all in this process."""

    def __init__(self, address: Address, plan: Plan, seed: int = 0) -> None:
        self._address = address
        self._plan = plan
        self._chance = random.Random(seed)
        self._chunks = [Chunks.drawn(steps, self._chance) for steps in CHUNKS]
        self._hot: list[Witness] = []  # with those that were born and live
        self._cold: list[Witness] = []
        self._loops: list[Loop] = []
        self._lives: set[asyncio.Task[None]] = set()
        self.counts = Counts()

    @property
    def stepping(self) -> int:
        """How many take steps all the time, now."""
        return len(self._hot)

    async def settle(self) -> None:
        """Create those that last; BenchError where one is refused."""
        self._hot = [self._drawn() for _ in range(self._plan.hot)]
        self._cold = [self._drawn() for _ in range(self._plan.cold)]
        await a_few_at_once([session.create() for session in (*self._hot, *self._cold)])
        for session in self._cold:
            session.hang_up()

    async def capacity(self, sessions: int, seconds: float) -> float:
        """Requests per second when so many of the hot ones always have one in flight."""
        begin = time.perf_counter()
        loop = ClosedLoop(self._hot[:sessions], Times(begin, begin + seconds / 4, begin + seconds * 5 / 4))
        for session in self._hot[:sessions]:
            session.done = loop.done
        tally = await loop.run()
        self.counts.problems.update(tally.problems)
        return tally.requests / tally.seconds

    async def live(self, rate: float, seconds: float) -> None:
        """Send ``rate`` requests per second for so long; those that are left at the end stand still."""
        begin = time.perf_counter()
        times = Times(begin, begin, begin + seconds)
        crowd = [(self._hot, rate - self._plan.cold_rate), (self._cold, self._plan.cold_rate)]
        loops = [OpenLoop(them, times, each / max(1, len(them)), self._chance) for them, each in crowd]
        self._loops = [*loops]
        for (them, _), loop in zip(crowd, loops, strict=True):
            for session in them:
                session.done = loop.done
        births = asyncio.create_task(self._births(loops[0]))
        try:
            await asyncio.gather(*(loop.run() for loop in loops))
        finally:
            for task in (births, *self._lives):
                task.cancel()
            await asyncio.gather(births, *self._lives, return_exceptions=True)

    def stop(self) -> None:
        """End it now."""
        for loop in self._loops:
            loop.stop()

    def window(self) -> Tally:
        """What was counted since this was asked last."""
        told = together(loop.tally for loop in self._loops)
        for loop in self._loops:
            loop.tally = Tally()
        self.counts.problems.update(told.problems)
        return told

    async def audit(self) -> int:
        """One step of each session that lasts: its sum tells of every step before; how many there were."""
        left = [session for session in (*self._hot, *self._cold) if not session.mortal]

        async def one(session: Witness) -> None:
            self._note(await session.step())
            session.hang_up()

        await a_few_at_once([one(session) for session in left])
        return len(left)

    def _drawn(self) -> Witness:
        return Witness(self._address, self._chance.choice(self._chunks), self._chance)

    def _note(self, problem: str | None) -> None:
        if problem is not None:
            self.counts.problems[problem] += 1

    async def _births(self, loop: OpenLoop) -> None:
        for at in poisson(self._plan.births, time.perf_counter(), self._chance):
            await asyncio.sleep(at - time.perf_counter())
            life = asyncio.create_task(self._life(loop))
            self._lives.add(life)
            life.add_done_callback(self._lives.discard)

    async def _life(self, loop: OpenLoop) -> None:
        """From its creation to the answer that it is over."""
        session = self._drawn()
        session.mortal = self._chance.random() < EXPIRING
        try:
            await session.create(**({"ttl": self._plan.ttl_s} if session.mortal else {}))
            self.counts.created += 1
            session.done = loop.done
            self._hot.append(session)
            await asyncio.sleep(self._chance.expovariate(1 / self._plan.life_s))
            self._hot.remove(session)
            while loop.owes(session):  # noqa: ASYNC110 - the loop has no event for one session
                await asyncio.sleep(_LOOK_S)
            await (self._abandon(session) if session.mortal else self._delete(session))
        except (BenchError, OSError):
            self._note("not-created")
        finally:
            session.hang_up()

    async def _abandon(self, session: Witness) -> None:
        self._note(await session.stands())
        session.hang_up()
        await asyncio.sleep(self._plan.ttl_s + SWEPT_S)
        self._note(await session.gone("expired"))
        self.counts.expired += 1

    async def _delete(self, session: Witness) -> None:
        self._note(await session.delete())
        self._note(await session.gone("deleted"))
        self.counts.deleted += 1
