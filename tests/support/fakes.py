"""Parts of the service that a test holds in its hand: a gate, a clock, a store that fails, a watched engine."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal

from service.engine.runtime import Engine, Run
from service.errors import OutcomeUnknown, StoreUnavailable, UndecodableState
from service.state import Chunk, Record
from service.stores.base import Ended, EndReason, Listed, Store

PATIENCE_S = 10.0  # how long a test waits for what has to happen before it fails; nothing waits this long in a good run
_LOOP_TURNS = 8


class Clock:
    """Both of the service's times; they stand still until ``move``."""

    def __init__(self) -> None:
        self.time = 1_000_000.0
        self._moving = threading.Lock()

    def now(self) -> float:
        """See ``service.clock.Clock``."""
        return self.time

    def monotonic(self) -> float:
        """See ``service.clock.Clock``."""
        return self.time

    def move(self, seconds: float) -> None:
        """Let time pass, in whatever thread."""
        with self._moving:
            self.time += seconds


class Gate:
    """Holds threads that come by, from ``shut`` until ``open``; it is open at first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = True
        self._let = 0  # so many may pass though it is shut
        self._arrivals = threading.Semaphore(0)

    def shut(self) -> None:
        """Hold whoever comes from now on."""
        self._arrivals = threading.Semaphore(0)
        self._open = False

    def open(self) -> None:
        """Let everybody go."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    async def next(self) -> None:
        """Let the one go who stands at the gate, and wait until another does."""
        with self._changed:
            self._let += 1
            self._changed.notify_all()
        await self.reached()

    def pass_through(self) -> None:
        """Called by the thread that is to be held."""
        self._arrivals.release()
        with self._changed:
            assert self._changed.wait_for(lambda: self._open or self._let, PATIENCE_S), "the test never opened the gate"
            self._let = max(0, self._let - 1)

    async def reached(self) -> None:
        """Wait until a thread stands at the gate."""
        assert await asyncio.to_thread(self._arrivals.acquire, timeout=PATIENCE_S), "nobody came to the gate"


class WatchedEngine:
    """An engine whose ticks are counted, and held at a gate."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.bit_exact = engine.bit_exact
        self.gate = Gate()
        self.ticks: list[list[int]] = []  # of each tick: the steps of each of its rows
        self.rows: list[list[bytes]] = []  # of each tick: the row that each session came with
        self.broken: Exception | None = None  # raised instead of running
        self.before_run: Callable[[], object] = lambda: None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the engine has
        return getattr(self._engine, name)

    def begin(self, rows: Sequence[bytes], chunks: Sequence[Chunk]) -> Callable[[], Run]:
        """See ``Engine``."""
        self.ticks.append([len(chunk[0]) for chunk in chunks])
        self.rows.append(list(rows))
        self.gate.pass_through()
        self.before_run()
        if self.broken is not None:
            raise self.broken
        return self._engine.begin(rows, chunks)


class FaultyStore(Store):
    """A store that does what another does, until it is told to fail."""

    def __init__(self, store: Store) -> None:
        self.inner = store
        self.gate = Gate()  # commits pass through it
        self.commits: list[list[Record]] = []  # what each commit was asked to keep
        self.loads: list[list[str]] = []
        self.commits_fail = False
        self.lost: Literal["before", "after", None] = None  # whether commits are kept, and nobody hears of it
        self.closed = False
        self.maintained = 0
        self.loads_fail = False
        self.crash: Exception | None = None  # raised by commits: a fault that no store should have
        self.before_commit: Callable[[], object] = lambda: None

    def create(self, records: Sequence[Record]) -> None:
        """See ``Store``."""
        self._check(self.commits_fail)
        self.inner.create(records)

    def load(self, ids: Sequence[str]) -> Mapping[str, Record | Ended | UndecodableState | StoreUnavailable]:
        """See ``Store``."""
        self.loads.append(list(ids))
        self._check(self.loads_fail)
        return self.inner.load(ids)

    def commit(self, records: Sequence[Record]) -> Sequence[bool | StoreUnavailable]:
        """See ``Store``."""
        self.commits.append(list(records))
        self.gate.pass_through()
        self.before_commit()
        self._check(self.commits_fail)
        if self.crash is not None:
            raise self.crash
        kept = self.inner.commit(records) if self.lost != "before" else []
        if self.lost is not None:
            raise OutcomeUnknown("the answer is lost on demand")
        return kept

    def end(self, id: str, reason: EndReason, now: float) -> bool:
        """See ``Store``."""
        self._check(self.commits_fail)
        return self.inner.end(id, reason, now)

    def expire(self, now: float, limit: int) -> list[str]:
        """See ``Store``."""
        self._check(self.commits_fail)
        return self.inner.expire(now, limit)

    def forget(self, before: float, limit: int) -> int:
        """See ``Store``."""
        return self.inner.forget(before, limit)

    def page(self, owner: str, model: str | None, after: str, limit: int, now: float) -> list[Listed]:
        """See ``Store``."""
        return self.inner.page(owner, model, after, limit, now)

    def walk(self, cursor: str, limit: int) -> tuple[list[str], str]:
        """See ``Store``."""
        return self.inner.walk(cursor, limit)

    def remove(self, id: str, revision: int) -> bool:
        """See ``Store``."""
        return self.inner.remove(id, revision)

    def count(self) -> int:
        """See ``Store``."""
        return self.inner.count()

    def maintain(self) -> None:
        """See ``Store``."""
        self.maintained += 1
        self.inner.maintain()

    def check(self) -> None:
        """See ``Store``."""
        self._check(self.commits_fail)
        self.inner.check()

    def warnings(self) -> list[str]:
        """See ``Store``."""
        return self.inner.warnings()

    def close(self) -> None:
        """See ``Store``."""
        self.closed = True  # only told: the store that does the work may be shared

    def _check(self, fails: bool) -> None:
        if fails:
            raise StoreUnavailable("the store fails on demand")


async def started(*calls: Coroutine[Any, Any, Any]) -> list["asyncio.Task[Any]"]:
    """Tasks that have run as far as they come by themselves, in this order."""
    tasks = [asyncio.create_task(call) for call in calls]
    await turns()
    return tasks


async def turns() -> None:
    """Let everything on the event loop run as far as it comes by itself."""
    for _ in range(_LOOP_TURNS):
        await asyncio.sleep(0)


async def outcome(waiting: "asyncio.Future[Any]") -> Any:  # noqa: ANN401 - whatever it waited for
    """What a task or future came to: its result, or its exception as a value."""
    done = await asyncio.wait_for(asyncio.gather(waiting, return_exceptions=True), PATIENCE_S)
    return done[0]
