"""Who, and in which order: create, advance, generate, reset, end, expire.

The one class that every transport talks to. Its arguments and results are plain values (arrays, numbers, frozen
dataclasses), so that a socket could carry them. Whatever changes a session goes through its queue (``Live``); work of
one tick is folded there, work of several ticks takes a turn (``Turns``).
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from service.clock import Clock
from service.errors import (
    GatesNotKept,
    InvalidInput,
    ModelNotLoaded,
    Overloaded,
    ServiceError,
    StoreUnavailable,
    UndecodableState,
)
from service.metrics import Metrics
from service.models import Model, Models
from service.sessions.arena import Arena, ended, unknown
from service.sessions.generation import Generated
from service.sessions.live import Live
from service.sessions.requests import Advance, Generate
from service.sessions.stateless import Stateless
from service.sessions.turns import Turns
from service.settings import Settings
from service.state import Answer, Identity, Record
from service.stores.base import Ended, EndReason, Listed, Store
from service.trace import Layer, begun
from service.work import Reply, resolve

log = logging.getLogger(__name__)

MAX_LOOKS = 32  # requests for gates that are computed or wait for it; each may take a second
SWEEP_BATCH = 200  # sessions that one sweep transaction ends: short enough that no commit waits long behind it
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Woken:
    """A session that is being loaded, and the requests that wait for it, first in, first out."""

    task: "asyncio.Task[None]"
    waiting: list[tuple[Advance, Reply]]


class Sessions(Stateless):
    """All sessions of the service."""

    def __init__(self, models: Models, store: Store, settings: Settings, clock: Clock, metrics: Metrics) -> None:
        super().__init__(settings, clock)
        self.models = models
        self._store = store
        self._metrics = metrics
        self._arena = Arena(models, store, settings, clock, metrics)
        self._io = ThreadPoolExecutor(2, thread_name_prefix="store")
        self._looks = ThreadPoolExecutor(1, thread_name_prefix="gates")  # its own, so that no commit waits behind one
        self._looking = 0
        self._waking: dict[tuple[str, str], _Woken] = {}  # sessions that are being loaded, with what waits for that
        self._turns = Turns(store, settings, clock, self._io, self._arena.renew, metrics.replayed.inc)
        self._sweeper: asyncio.Task[None] | None = None
        self.warnings: list[str] = []  # of the store, as of the last sweep
        metrics.count_sessions(lambda: len(self._arena), store.count)

    # ---- life of the service

    def start(self) -> None:
        """Start serving, in the running event loop."""
        self.models.start()
        self._arena.start()
        self._sweeper = asyncio.create_task(self._sweep_forever())

    async def close(self) -> None:
        """Finish what was accepted within the limit that the settings name; then let go of the store."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
        until = self._clock.monotonic() + self._settings.drain_s
        for part in (self._turns, self.models, self._arena):
            await part.close(max(0.0, until - self._clock.monotonic()))
        self._looks.shutdown(wait=True, cancel_futures=True)
        self._io.shutdown(wait=True)
        self._store.close()

    async def check(self) -> None:
        """Whether a step could be served now; StoreUnavailable, or ServiceError where a loop has ended."""
        if not (self.models.alive and self._arena.alive):
            raise ServiceError("a loop of the service has ended; restart it")
        await self._in_io(self._store.check)

    # ---- sessions

    async def create(self, model: str, version: str | None, ttl_s: float | None, owner: str, gates: int = 0) -> Record:
        """A new session at position 0, committed. ``gates``: of so many last steps the gates can be asked for."""
        chosen = self.models.find(model, version)
        self._check_gates(chosen, gates)
        ttl_s = self._settings.default_ttl_s if ttl_s is None else ttl_s
        if ttl_s > self._settings.max_ttl_s:
            raise InvalidInput(f"ttl is at most {self._settings.max_ttl_s:.0f} seconds", field="ttl")
        now = self._clock.now()
        id, of = secrets.token_hex(16), (chosen.name, chosen.version, chosen.fingerprint)
        identity = Identity(id, owner, *of, ttl_s, now, gates)
        record = Record(identity, 0, 0, chosen.engine.initial_row, b"", (), now + ttl_s, begun(gates))
        await self._in_io(self._store.create, [record])
        self._arena.add(record, chosen)
        chosen.metrics.created.inc()
        return record

    async def get(self, id: str, owner: str) -> Record:
        """A session as it is committed."""
        return await self._arena.record(id, owner)

    async def gates(self, id: str, last: int | None, owner: str) -> tuple[int, list[Layer]]:
        """The position, and what happened in each recurrent operator at the last steps (all that are kept unless told).

        Raises:
            UnsupportedTask, GatesNotKept: the model cannot, or the session was not asked to when it was created.
            Overloaded: too many others look inside.
        """
        record = await self._arena.record(id, owner)
        model, kept = self._arena.model_of(record), record.identity.gates
        model.check_gates()
        if not kept:
            raise GatesNotKept("the session was created without gates: it does not keep what shows them")
        if last is not None and not 1 <= last <= kept:
            raise InvalidInput(f"last is from 1 to {kept}: of so many steps this session keeps the gates", field="last")
        return record.position, await self._look(model, record.trace, last or kept)

    async def page(self, owner: str, model: str | None, after: str, limit: int) -> list[Listed]:
        """Sessions in the order of their ids, from the first beyond ``after`` on."""
        return await self._in_io(self._store.page, owner, model, after, limit, self._clock.now())

    async def model_of(self, id: str, owner: str) -> Model:
        """The model that a session is pinned to: what its inputs have to look like."""
        return (await self._arena.get(id, owner)).model

    def at_hand(self, id: str, owner: str) -> Live | None:
        """A session that can be advanced at once; None where it has to be looked for."""
        return None if self._waking and (id, owner) in self._waking else self._arena.at_hand(id, owner)

    async def advance(self, id: str, request: Advance, owner: str) -> tuple[Answer, bool]:
        """Consume a chunk, exactly once; the answer, and whether it is that of an earlier request that this repeats."""
        reply: asyncio.Future[tuple[Answer, bool]] = asyncio.get_running_loop().create_future()
        self.submit(id, request, owner, reply)
        return await reply

    def submit(self, id: str, request: Advance, owner: str, reply: Reply) -> None:
        """``advance`` for who does not wait in a coroutine: the reply gets what that returns, or raises.

        What can be refused at once is raised here. A request whose reply is done before it runs is dropped. Those of
        one session apply in the order in which they are submitted, also where it has to be loaded first.
        """
        live = self.at_hand(id, owner)
        if live is not None:
            self.advance_live(live, request, reply)
            return
        self._check_steps(request.steps)
        woken = self._waking.get((id, owner))
        if woken is None:
            woken = self._waking[id, owner] = _Woken(asyncio.create_task(self._wake(id, owner)), [])
        if len(woken.waiting) >= self._settings.max_session_queue:
            raise Overloaded("too many requests are waiting for this session", retry_after_s=1)
        woken.waiting.append((request, reply))

    def advance_live(self, live: Live, request: Advance, reply: Reply) -> None:
        """``submit`` for a session that is ``at_hand``: right after that call, before anything else runs."""
        self._check_steps(request.steps)
        if live.takes(request):
            live.advance(request, self._deadline(), reply)
        else:
            self._turns.advance(live, request, self._deadline(), reply)

    def leave(self, reply: Reply) -> None:
        """Nobody waits for this reply any more: it is done, which is asked before it runs."""

    async def _wake(self, id: str, owner: str) -> None:
        """Load a session once for all that came for it meanwhile; nothing overtakes them, as it is not at hand."""
        found: Live | Exception
        try:
            found = await self._arena.get(id, owner)
        except Exception as error:  # noqa: BLE001 - who asked is told, whatever it is
            found = error
        for request, reply in self._waking.pop((id, owner)).waiting:
            try:
                if isinstance(found, Exception):
                    raise found
                self.advance_live(found, request, reply)
            except Exception as error:  # noqa: BLE001 - see above
                resolve(reply, error)

    async def generate(self, id: str, request: Generate, owner: str) -> Generated:
        """Continue a session, all or nothing: with ``advance`` committed once, at the end."""
        live = await self._arena.get(id, owner)
        self._check_generation(live.model, request)
        generated = await self._turns.generate(live, request, self._deadline())
        if generated.repeated:
            self._metrics.replayed.inc()
        return generated

    async def generate_stream(self, id: str, request: Generate, owner: str) -> "AsyncIterator[Generated]":
        """Continue a session step by step: with ``advance`` each step is committed before it is told.

        The first item holds no step: what can be refused is refused before it. The last one says why it is over.
        """
        live = await self._arena.get(id, owner)
        self._check_generation(live.model, request)
        async for generated in self._turns.stream(live, request, self._deadline()):
            yield generated

    async def reset(self, id: str, owner: str) -> Record:
        """Back to the model's initial state and position 0."""
        live = await self._arena.get(id, owner)
        return await self._turns.reset(live, self._deadline())

    async def delete(self, id: str, owner: str) -> None:
        """End a session. What waits for it before this call still runs; a long generation is stopped for it."""
        try:
            live = await self._arena.get(id, owner)
        except (ModelNotLoaded, UndecodableState):  # told to its owner only, who can end what cannot be made live
            await self._end(id, owner)
            return
        if live.interrupt is not None:
            live.interrupt()
        await self._turns.hold(live, self._deadline(), lambda _: self._end(id, owner))

    # ---- inside

    def _check_gates(self, model: Model, gates: int) -> None:
        if gates:
            model.check_gates()
        if gates > self._settings.max_gates:
            raise InvalidInput(f"gates is at most {self._settings.max_gates} steps", field="gates")

    async def _look(self, model: Model, trace: bytes, last: int) -> list[Layer]:
        """The layers, one request after the other: they cost a thousand times a step's time."""
        if self._looking >= MAX_LOOKS:
            raise Overloaded("too many requests for gates are waiting", retry_after_s=1)
        self._looking += 1
        try:
            layers = model.inspector.layers
            return await asyncio.get_running_loop().run_in_executor(self._looks, layers, trace, last)
        finally:
            self._looking -= 1

    async def _end(self, id: str, owner: str) -> None:
        if not await self._in_io(self._store.end, id, "deleted", self._clock.now()):
            known = (await self._in_io(self._store.load, [id])).get(id)
            lost = known if isinstance(known, StoreUnavailable) else unknown(id)
            raise ended(id, known) if isinstance(known, Ended) else lost
        self._forget(id, owner, "deleted")

    def _forget(self, id: str, owner: str, reason: EndReason) -> None:
        self._arena.drop(id, ended(id, Ended(id, owner, reason, self._clock.now())))
        self._metrics.ended.labels(reason).inc()

    async def _sweep_forever(self) -> None:
        await self._try(self._heed)
        while True:
            await asyncio.sleep(self._settings.sweep_interval_s)
            await self._try(self.sweep)

    async def _try(self, housekeeping: Callable[[], Awaitable[None]]) -> None:
        try:
            await housekeeping()
        except ServiceError as error:
            log.warning("the sessions could not be looked after: %s", error.detail)
        except Exception:
            log.exception("the sessions could not be looked after")  # the next time it may go well

    async def _heed(self) -> None:
        """Log what the store warns of, once."""
        before, self.warnings = self.warnings, await self._in_io(self._store.warnings)
        self._metrics.store_warnings.set(len(self.warnings))
        for warning in self.warnings:
            if warning not in before:
                log.warning("%s", warning)

    async def sweep(self) -> None:
        """End what has expired, forget what ended long ago, tidy up the store."""
        now = self._clock.now()
        while gone := await self._in_io(self._store.expire, now, SWEEP_BATCH):
            for id in gone:
                self._forget(id, "", "expired")
        before = now - self._settings.tombstone_s
        while await self._in_io(self._store.forget, before, SWEEP_BATCH) == SWEEP_BATCH:
            pass  # a short transaction at a time
        await self._in_io(self._store.maintain)
        await self._heed()

    async def _in_io(self, call: "Callable[..., T]", *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._io, call, *arguments)
