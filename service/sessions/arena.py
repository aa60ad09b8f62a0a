"""The arena: the live sessions, and the way of the others out of the store.

Losing a session from here loses nothing: its record is committed. Only sessions that nobody waits for are let go.
"""

from collections.abc import Callable, Sequence
from itertools import islice

from service.batching import Batcher
from service.clock import Clock
from service.errors import (
    ModelNotLoaded,
    ServiceError,
    SessionEnded,
    UndecodableState,
    UnknownSession,
)
from service.metrics import Metrics
from service.models import Model, Models
from service.sessions.live import Live
from service.sessions.packing import Packed
from service.settings import Settings
from service.state import Record
from service.stores.base import Ended, Store
from service.work import Call

LOAD_BATCH = 256
READY = 1024  # live sessions that are kept unpacked


class _Silent:
    """Loads are not ticks of a model: their batcher reports nothing but a fault."""

    def __init__(self, loop_ended: Callable[[], None]) -> None:
        self.loop_ended = loop_ended

    def waited(self, seconds: float) -> None: ...

    def tick_failed(self, works: int) -> None: ...


class Arena:
    """Live sessions by id, the least recently used first.

    Mutable state, touched on the event loop's thread only: ``_live`` (the most recently used ones) and ``_packed`` (all
    others; no session is in both).
    """

    def __init__(self, models: Models, store: Store, settings: Settings, clock: Clock, metrics: Metrics) -> None:
        self._models = models
        self._store = store
        self._settings = settings
        self._ready = min(READY, settings.max_live)
        self._clock = clock
        self._rested, self._moved = (metrics.loads.labels(why).inc for why in ("resting", "moved"))
        self._live: dict[str, Live] = {}
        self._packed = Packed()
        self._loads: Batcher[Call[str]] = Batcher(
            self._load_batch,
            name="load",
            max_batch=LOAD_BATCH,
            capacity=settings.max_queue,
            like=lambda size: size,
            clock=clock,
            observer=_Silent(metrics.loops_ended.inc),
        )

    def __len__(self) -> int:
        return len(self._live) + len(self._packed)

    def start(self) -> None:
        """Start loading, in the running event loop."""
        self._loads.start()

    async def close(self, within_s: float) -> None:
        """End loading."""
        await self._loads.close(within_s)

    @property
    def alive(self) -> bool:
        """Whether sessions can be loaded."""
        return self._loads.alive

    async def get(self, id: str, owner: str) -> Live:
        """The live session of this id, loaded if it rests.

        Raises:
            UnknownSession, SessionEnded, ModelNotLoaded, UndecodableState, StoreUnavailable.
        """
        live = self.at_hand(id, owner)
        if live is None:
            record = await self.record(id, owner)
            self._rested()
            live = self.at_hand(id, owner)  # another request may have been quicker
            if live is None:
                live = self._live[id] = self._made_live(record, self._fitting(record))
                self._make_room(live)
        return live

    def at_hand(self, id: str, owner: str) -> Live | None:
        """The session of this id where it is live; UnknownSession and SessionEnded as ``get``."""
        live = self._live.pop(id, None) or self._unpacked(id)
        if live is None:
            return None
        self._live[id] = live  # the most recently used are last
        if live.record.identity.owner != owner:
            raise unknown(id)
        if live.record.expires_at <= self._clock.now() and not live.busy:
            raise expired(id)
        if len(self._live) > self._ready:
            self._make_room(live)
        return live

    async def record(self, id: str, owner: str) -> Record:
        """A session's record as the store has it, whichever replica committed it."""
        try:
            return self._checked(id, await self._load(id), owner)
        except UndecodableState as error:
            raise error if error.owner == owner else unknown(id) from None

    def add(self, record: Record, model: Model) -> None:
        """A session that was just created."""
        self._live[record.identity.id] = self._made_live(record, model)
        self._make_room()

    def drop(self, id: str, error: ServiceError) -> None:
        """A session that has ended: whoever waits for it is told."""
        self._packed.pop(id)
        live = self._live.pop(id, None)
        if live is not None:
            live.end(error)

    def _checked(self, id: str, known: Record | Ended | None, owner: str) -> Record:
        if isinstance(known, Ended) and known.owner == owner:
            raise ended(id, known)
        if not isinstance(known, Record) or known.identity.owner != owner:
            raise unknown(id)
        if known.expires_at <= self._clock.now():
            raise expired(id)
        return known

    def _made_live(self, record: Record, model: Model) -> Live:
        return Live(record, model, self._clock, self._settings.max_session_queue, self.renew)

    def _unpacked(self, id: str) -> Live | None:
        packed = self._packed.pop(id)
        return self._made_live(*packed) if packed is not None else None

    def _fitting(self, record: Record) -> Model:
        """The model of a record that comes from the store; UndecodableState where the row is not one of its rows."""
        model = self.model_of(record)
        if len(record.row) != model.engine.layout.row_bytes:
            raise UndecodableState(
                f"the stored row has {len(record.row)} bytes, the model's rows have {model.engine.layout.row_bytes}"
            )
        return model

    def model_of(self, record: Record) -> Model:
        """The model that a session is pinned to; ModelNotLoaded where it is not in the repository."""
        model, i = self._models.of(record), record.identity
        if model is None:
            raise ModelNotLoaded(
                f"the session belongs to {i.model} version {i.version} with fingerprint {i.fingerprint[:12]}, "
                "which is not in the repository; its state is kept"
            )
        return model

    def _make_room(self, but: Live | None = None) -> None:
        """Pack idle sessions, and let the oldest of those go beyond ``max_live``.

        Not ``but``, whose caller is about to wait for it: two lives would share a tick.
        """
        if len(self._live) <= self._ready:
            return
        idle = (id for id, live in self._live.items() if not live.busy and live is not but)
        for id in list(islice(idle, len(self._live) - self._ready)):
            live = self._live.pop(id)
            self._packed.add(live.record, live.model)
        self._packed.drop_oldest(len(self) - self._settings.max_live)

    async def _load(self, id: str, *, admitted: bool = False) -> Record | Ended | None:
        """What the store knows of an id; that it cannot be decoded is raised, as every error among outcomes is."""
        call = Call(id, 1, self._clock, self._clock.monotonic() + self._settings.queue_timeout_s)
        self._loads.submit(call, admitted=admitted)
        found: Record | Ended | None = await call.future
        return found

    def _load_batch(self, calls: Sequence[Call[str]]) -> list[Record | Ended | ServiceError | None]:
        found = self._store.load(list({call.item for call in calls}))
        return [found.get(call.item) for call in calls]

    async def renew(self, live: Live) -> None:
        """Take a live session's record as the store has it now: another replica may have moved the session.

        Whatever the store says instead (that it has ended, say) is raised, and told to all who wait for the session.
        """
        i = live.record.identity
        self._moved()
        try:
            live.record = self._checked(i.id, await self._load(i.id, admitted=True), i.owner)
        except ServiceError as error:
            if self._live.get(i.id) is live:
                del self._live[i.id]
            live.end(error)
            raise


def unknown(id: str) -> UnknownSession:
    """The error for an id that nobody knows, or that is another owner's."""
    return UnknownSession(f"there is no session {id!r}", field="id")


def expired(id: str) -> SessionEnded:
    """The error for a session whose ttl ran out."""
    return SessionEnded(f"session {id!r} expired: no step came within its ttl", field="id", reason="expired")


def ended(id: str, how: Ended) -> SessionEnded:
    """The error for a session that is over, with the reason."""
    if how.reason == "expired":
        return expired(id)
    return SessionEnded(f"session {id!r} was {how.reason}", field="id", reason=how.reason)
