"""One live session: its committed record, and the requests that wait for it, first in, first out.

It is the work that waits in the model's batcher. Exactly-once is decided when a tick is formed, against the record as
it then is; what waits behind is folded into the same chunk as far as it fits.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import TypeGuard

from msgspec.structs import replace

from service.clock import Clock
from service.errors import DeadlineExceeded, NotFinite, OutcomeUnknown, Overloaded, ServiceError, WriteConflict
from service.items import Item, Part, Stepped
from service.models import Model
from service.sessions.requests import Advance, Turn, Waiting, bare, folded, outdated, repeated
from service.state import Record, Tensors
from service.trace import segment_steps
from service.work import Reply, resolve

log = logging.getLogger(__name__)

_MAY_HAVE_MOVED = (WriteConflict, OutcomeUnknown)  # after these a session is not where it was thought to be
MAX_TRIES = 5  # how often a request is tried again because another replica moved the session


class Phase(Enum):
    """Where a live session is: nothing waits; in the batcher's queue; in a tick; taken by a turn."""

    IDLE = 0
    QUEUED = 1
    RUNNING = 2
    HELD = 3


class Live:
    """The state of one session in memory.

    Mutable state, touched on the event loop's thread only: ``record`` (always as committed), ``phase``, ``_waiting``,
    ``_taken`` (the requests of the tick that is being formed or runs), ``_alone`` (so many requests are not folded:
    they failed together), ``delivered`` (answers delivered), ``ordinal`` (the next answer's), ``over``.
    """

    __slots__ = (
        "_alone", "_clock", "_item", "_max_waiting", "_renew", "_renewal", "_taken", "_waiting", "delivered",
        "interrupt", "model", "ordinal", "over", "phase", "record",
    )  # fmt: skip

    def __init__(
        self, record: Record, model: Model, clock: Clock, max_waiting: int, renew: Callable[["Live"], Awaitable[None]]
    ) -> None:
        """``renew`` takes ``record`` as the store has it, where another replica may have moved the session."""
        self.record = record
        self.model = model
        self.phase = Phase.IDLE
        self.over: ServiceError | None = None
        self.delivered = 0
        self.ordinal = 0
        self._waiting: deque[Waiting | Turn] = deque()
        self._taken: list[Waiting] = []
        self._alone = 0
        self._item: Item | None = None
        self._clock = clock
        self._max_waiting = max_waiting
        self._renew = renew
        self._renewal: asyncio.Future[None] | None = None
        self.interrupt: Callable[[], None] | None = None  # stops who holds the turn, between two ticks

    def takes(self, request: Advance) -> bool:
        """Whether one tick can take the request's chunk."""
        return request.steps == 1 or request.steps <= segment_steps(self.record.trace, self.model.whole_steps)

    @property
    def busy(self) -> bool:
        """Whether somebody waits for it."""
        return self.phase is not Phase.IDLE or bool(self._waiting)

    def advance(self, request: Advance, deadline: float, reply: Reply) -> None:
        """Queue a chunk of at most one tick's length; the answer comes with whether it was a repeat's.

        Raises:
            Overloaded, or whatever the session ended with: the reply is left alone.
        """
        self._admit()
        waiting = Waiting(request, reply, deadline, self.delivered, self._clock.monotonic())
        self._waiting.append(waiting)
        if self.phase is Phase.IDLE and len(self._waiting) == 1:
            self._queue(waiting, admitted=False)
        elif self.phase is Phase.HELD:
            self._watch(reply, deadline)

    def turn(self, deadline: float) -> Turn:
        """Queue for having the session to oneself; ``release`` gives it back."""
        self._admit()
        turn = Turn(asyncio.get_running_loop().create_future(), deadline)
        self._waiting.append(turn)
        self.proceed()
        if self.phase is Phase.HELD:
            self._watch(turn.reply, deadline)
        return turn

    def release(self) -> None:
        """The holder of the turn is done."""
        self.phase = Phase.IDLE
        if self._waiting:
            self.proceed()

    def committed(self, record: Record) -> None:
        """The record as a turn has committed it."""
        self.record = record
        self.delivered = self.ordinal = self.ordinal + 1

    def _refresh(self) -> None:
        """The session may have moved: its record is loaded anew before the next one goes on."""
        self.phase = Phase.HELD
        self._renewal = asyncio.ensure_future(self._renew(self))
        self._renewal.add_done_callback(self._refreshed)

    def _refreshed(self, renewal: "asyncio.Future[None]") -> None:
        self._renewal = None
        if not renewal.cancelled() and (error := renewal.exception()) is not None and self.over is None:
            log.error("a session could not be loaded anew", exc_info=error)
        self.release()

    def end(self, error: ServiceError) -> None:
        """The session is over: whoever waits is told, and whoever comes."""
        self.over = error
        while self._waiting:
            resolve(self._waiting.popleft().reply, error)

    def proceed(self, *, admitted: bool = True) -> None:
        """If nothing runs, let the first one that still waits go on; ``admitted``: it was accepted before."""
        while self.phase is Phase.IDLE and self._waiting:
            first = self._waiting[0]
            if self._gone(first):
                self._waiting.popleft()
            elif isinstance(first, Turn):
                self._waiting.popleft()
                self.phase = Phase.HELD
                resolve(first.reply, None)
            else:
                self._queue(first, admitted=admitted)

    def _admit(self) -> None:
        if self.over is not None:
            raise self.over
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded("too many requests are waiting for this session", retry_after_s=1)

    def _queue(self, first: Waiting, *, admitted: bool) -> None:
        try:
            self.model.batcher.submit(self, admitted=admitted)
        except ServiceError as error:
            self._waiting.popleft()
            resolve(first.reply, error)
        else:
            self.phase = Phase.QUEUED

    def _watch(self, reply: Reply, deadline: float) -> None:
        """Behind a turn nobody is claimed, however long it lasts: who waits there is looked at when the time is up."""
        if not reply.done():
            left_s = max(0.0, deadline - self._clock.monotonic())
            asyncio.get_running_loop().call_later(left_s + 0.001, self._drop_late)

    def _drop_late(self) -> None:
        self._waiting = deque(waiting for waiting in self._waiting if not self._gone(waiting))

    def _gone(self, waiting: Waiting | Turn) -> bool:
        """Whether nobody waits any more; who waited too long is told so."""
        if self._clock.monotonic() <= waiting.deadline and not waiting.reply.done():
            return False
        self.model.metrics.dropped()
        resolve(waiting.reply, DeadlineExceeded("the request waited too long and was dropped before it ran"))
        return True

    @property
    def since(self) -> float:
        """See ``work.Work``."""
        return self._taken[0].since

    @property
    def item(self) -> Item:
        """See ``models.ItemWork``."""
        assert self._item is not None, "asked for before start()"  # noqa: S101 - an invariant, not a check of input
        return self._item

    def claim(self) -> int:
        """Decide which of the waiting requests apply now, together; answer those that do not. See ``work.Work``."""
        if len(self._waiting) == 1 and self._plainly_applies(first := self._waiting[0]):
            self._taken = [first]
            return first.request.steps
        self._taken = []
        position, total, kept = self.record.position, 0, deque[Waiting | Turn]()
        limit = 1 if self._alone or not self.model.folds else len(self._waiting)
        now = self._clock.monotonic()
        while self._waiting:
            waiting = self._waiting[0]
            if (now > waiting.deadline or waiting.reply.done()) and self._gone(waiting):
                self._waiting.popleft()
                continue
            if isinstance(waiting, Turn) or len(self._taken) >= limit:
                break
            steps, at = waiting.request.steps, waiting.request.position
            if self._taken and (total + steps > self.model.segment_steps or at not in (None, position)):
                break  # it cannot be folded behind those
            if not self._taken and outdated(self.record, waiting):
                waiting.renewed = True
                self._refresh()
                return 0
            self._waiting.popleft()
            if not self._taken and not self._applies(waiting):
                continue
            self._taken.append(waiting)
            kept.append(waiting)
            position, total = position + steps, total + steps
        self._waiting.extendleft(reversed(kept))
        if not self._taken:
            self.phase = Phase.IDLE
            self.proceed()
        return total

    def _plainly_applies(self, waiting: Waiting | Turn) -> TypeGuard[Waiting]:
        """Whether it is steps that apply without a further look: by far the most do."""
        return (
            isinstance(waiting, Waiting)
            and waiting.request.position in (None, self.record.position)
            and not (bare(self.record, waiting.request) or waiting.reply.done())
            and self._clock.monotonic() <= waiting.deadline
        )

    def _applies(self, waiting: Waiting) -> bool:
        """Whether the first request applies; if not, it gets its answer or its error here."""
        try:
            answer = repeated(self.record, waiting.request.position, waiting.request.digest)
        except ServiceError as error:
            resolve(waiting.reply, error)
            return False
        if answer is not None:
            self.model.metrics.replayed.inc()
            resolve(waiting.reply, (answer, True))
            return False
        return True

    def start(self) -> None:
        """See ``work.Work``."""
        self.phase = Phase.RUNNING
        record, taken, ordinal, keep = self.record, self._taken, self.ordinal, 0
        parts: tuple[Part, ...] = ()
        for request in [waiting.request for waiting in taken]:
            self._waiting.popleft()
            parts += (Part(request.steps, request.view, request.digest, ordinal),)
            ordinal, keep = ordinal + 1, max(keep, request.keep)
        # The first one came before the others: of no other was less delivered when it came.
        keep_from = min(taken[0].seen, ordinal - keep)
        self._item = Item(record.row, parts, folded(taken), None, record, keep_from, None, record.trace)

    def deliver(self, outcome: Stepped | Exception) -> None:
        """See ``work.Work``."""
        taken, self._taken, self._item = self._taken, [], None
        if self._alone:
            self._alone -= 1
        if isinstance(outcome, Stepped) and outcome.record is not None:
            self._delivered(taken, outcome.shown, outcome.record)
        elif isinstance(outcome, NotFinite) and len(taken) > 1:
            self._again(taken)
            self._alone = len(taken)  # one of them is to blame: each runs by itself, so that the others go through
        elif isinstance(outcome, WriteConflict):
            self._conflicted(taken, outcome)
        else:
            for waiting in taken:
                resolve(waiting.reply, outcome)
        if isinstance(outcome, _MAY_HAVE_MOVED):
            self._refresh()
        else:
            self.release()

    def _delivered(self, taken: list[Waiting], shown: tuple[Tensors, ...], record: Record) -> None:
        self.record = record
        self.ordinal += len(taken)
        for waiting, outputs, answer in zip(taken, shown, record.answers[-len(taken) :], strict=True):
            whole = answer if answer.outputs is not None else replace(answer, outputs=outputs)  # too large to keep
            resolve(waiting.reply, (whole, False))
        self.delivered = self.ordinal

    def _again(self, taken: list[Waiting]) -> None:
        for waiting in taken:
            waiting.tries += 1
        self._waiting.extendleft(reversed(taken))

    def _conflicted(self, taken: list[Waiting], error: WriteConflict) -> None:
        """Another replica moved the session: when it has been looked at anew, it is decided again."""
        self._again([w for w in taken if w.tries < MAX_TRIES])
        for waiting in taken:
            if waiting.tries >= MAX_TRIES:
                resolve(waiting.reply, error)
