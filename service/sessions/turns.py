"""Work that takes several ticks: long chunks, generation, reset. It has its session to itself while it runs.

Each runs in a task of its own, so that a client that goes away stops it between two ticks and never in the middle of a
commit. What is not streamed is computed as a draft and committed once, at the end: all of it, or nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from msgspec import structs

from service.clock import Clock
from service.errors import (
    NothingToContinue,
    OutcomeUnknown,
    PositionConflict,
    ServiceError,
    SessionEnded,
    ShuttingDown,
    StoreUnavailable,
    WriteConflict,
)
from service.items import GrowingAnswer, Item, Part, Stepped, next_record
from service.models import Model
from service.sessions.caller import Caller, ClientGone, Gatherer
from service.sessions.generation import Generated, Generation, Listener, Source, joined, retold
from service.sessions.live import MAX_TRIES, Live
from service.sessions.requests import Advance, Generate, Turn, bare, repeated
from service.settings import Settings
from service.state import Answer, Chunk, Record, leap
from service.stores.base import Store
from service.trace import begun, segment_steps
from service.views import View
from service.work import Reply, resolve

T = TypeVar("T")
Job = Callable[[Caller], Awaitable[T]]


@dataclass(frozen=True, slots=True)
class _Held(Generic[T]):
    """A job that has, or waits for, a session to itself."""

    task: "asyncio.Task[T]"
    turn: Turn
    caller: Caller

    def leave(self) -> None:
        """Its caller has gone: a job that runs stops between two ticks, one that waits never begins."""
        self.caller.leave()
        self.turn.reply.cancel()  # no effect where the turn has come


class Turns:
    """Runs the work of several ticks. Mutable state: ``_tasks``, so that none is lost at a shutdown."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        clock: Clock,
        io: Executor,
        renew: Callable[[Live], Awaitable[None]],
        replayed: Callable[[], None],
    ) -> None:
        """``renew`` takes a live session's record as the store has it; ``replayed`` is told of each repeat."""
        self._store = store
        self._renew = renew
        self._replayed = replayed
        self._settings = settings
        self._clock = clock
        self._io = io
        self._tasks: set[asyncio.Task[Any]] = set()

    async def hold(self, live: Live, deadline: float, job: "Job[T]") -> T:
        """Wait for the session's turn and run the job, to its end or until the caller goes away."""
        held = self._begin(live, deadline, job)
        try:
            return await asyncio.shield(held.task)
        except asyncio.CancelledError:
            held.leave()
            raise

    def _begin(self, live: Live, deadline: float, job: "Job[T]") -> "_Held[T]":
        """Take a place in the session's queue at once, and run the job when its turn has come."""
        caller = Caller(self._settings.queue_timeout_s)
        turn = live.turn(deadline)

        async def held() -> T:
            try:
                await turn.reply
                return await self._run(live, job, caller)
            except asyncio.CancelledError:  # by `leave`, and nobody hears of it, or by `close`
                raise ShuttingDown("the service is shutting down") from None
            except ClientGone:  # nobody hears of it but one whose session is deleted meanwhile
                raise SessionEnded("the session is being deleted", field="id", reason="deleted") from None

        task = asyncio.create_task(held())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return _Held(task, turn, caller)

    async def _run(self, live: Live, job: "Job[T]", caller: Caller) -> T:
        """Run the job in its turn; anew where another replica has moved the session, unless steps were told."""
        tries = 0
        live.interrupt = caller.leave
        try:
            while True:
                if caller.gone:
                    raise ClientGone
                if live.over is not None:
                    raise live.over
                try:
                    return await job(caller)
                except (PositionConflict, WriteConflict) as conflict:
                    if caller.told or tries >= (MAX_TRIES if isinstance(conflict, WriteConflict) else 1):
                        raise
                    tries += 1
                    await self._renew(live)
                except OutcomeUnknown:
                    with suppress(ServiceError):  # told to all who wait for the session, and it is live no more
                        await self._renew(live)
                    raise
        finally:
            live.interrupt = None
            live.release()

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller has been told, or has gone

    async def close(self, within_s: float) -> None:
        """Let what runs come to its end within the limit."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)
        for task in self._tasks:
            task.cancel()

    def advance(self, live: Live, request: Advance, deadline: float, reply: Reply) -> None:
        """A chunk longer than one tick takes, committed whole; it has its place in the queue when this returns."""
        digest, seen = request.digest, live.delivered

        async def job(caller: Caller) -> tuple[Answer, bool]:
            if bare(live.record, request):
                await self._renew(live)
            answer = repeated(live.record, request.position, digest)
            if answer is not None:
                self._replayed()
                return answer, True
            begin = Stepped(live.record.row, live.record.output, (), trace=live.record.trace)
            gone = lambda: caller.gone or reply.done()  # noqa: E731 - asked between two ticks
            done = await run_segments(live.model, begin, request.chunk, request.view, deadline, gone)
            part = Part(request.steps, request.view, digest, live.ordinal)
            keep_from = min(seen, live.ordinal + 1 - request.keep)
            record = await self._commit(live, Item(row=done.row, parts=(part,), keep_from=keep_from), done)
            return structs.replace(record.answers[-1], outputs=done.shown[0]), False

        held = self._begin(live, deadline, job)
        held.task.add_done_callback(lambda task: resolve(reply, _outcome(task)))

    async def generate(self, live: Live, request: Generate, deadline: float) -> Generated:
        """A whole generation; with ``advance`` committed at its end."""

        async def job(caller: Caller) -> Generated:
            gatherer = Gatherer(caller)
            generation = await self._generation(live, request, deadline, gatherer)
            if isinstance(generation, Generated):
                return generation
            if not await generation.run() or caller.gone:
                raise ClientGone
            whole = joined(gatherer.parts)
            if not request.advance:
                return structs.replace(whole, expires_at=live.record.expires_at)
            return await self._keep(live, request, generation.last, whole)

        return await self.hold(live, deadline, job)

    async def stream(self, live: Live, request: Generate, deadline: float) -> AsyncIterator[Generated]:
        """A generation told step by step; with ``advance`` each step is committed before it is told.

        The first one told holds no step: it says that the generation has begun.
        """

        async def job(caller: Caller) -> None:
            generation = await self._generation(live, request, deadline, caller, commits=request.advance)
            if isinstance(generation, Generated):
                caller.tell(generation)
            elif not await generation.run():
                raise ClientGone

        held = self._begin(live, deadline, job)
        try:
            async for generated in held.caller.read(held.task):
                yield generated
        finally:
            held.leave()

    async def _generation(
        self, live: Live, request: Generate, deadline: float, listener: Listener, *, commits: bool = False
    ) -> Generation | Generated:
        """The generation to run, or what an earlier one came to that this request repeats."""
        if not request.advance or not live.record.output:  # the last output may be in the store only
            await self._renew(live)  # no commit will find out whether another replica has moved the session
        record = live.record
        answer = repeated(record, request.position, request.digest)
        if answer is not None:
            return retold(answer, request, live.model.signature.vocabulary)
        if not record.output:
            raise NothingToContinue("the session has consumed no step yet: send it something to continue")
        trace = record.trace if request.advance else b""  # what is only a what-if leaves no trace
        source = Source(Stepped(record.row, record.output, (), trace=trace), record.position, live if commits else None)
        return Generation(live.model, request, source, listener, deadline)

    async def reset(self, live: Live, deadline: float) -> Record:
        """Back to the initial state; position 0, with no answers to repeat."""

        async def job(_: Caller) -> Record:
            old = live.record
            fresh = live.model.engine.initial_row
            expires_at, trace = self._clock.now() + old.identity.ttl_s, begun(old.identity.gates)
            revision = old.revision + (further := leap())
            return await self._put(live, Record(old.identity, 0, revision, fresh, b"", (), expires_at, trace, further))

        return await self.hold(live, deadline, job)

    async def _keep(self, live: Live, request: Generate, reached: Stepped, whole: Generated) -> Generated:
        answer = GrowingAnswer(live.record.position, request.digest, whole.seed)
        part = Part(whole.steps, View(), request.digest, live.ordinal)
        done = structs.replace(reached, shown=(whole.outputs or {},))
        record = await self._commit(live, Item(row=reached.row, parts=(part,), extends=answer), done)
        return structs.replace(whole, expires_at=record.expires_at)

    async def _commit(self, live: Live, item: Item, done: Stepped) -> Record:
        return await self._put(
            live, next_record(live.record, item, done, self._clock.now(), self._settings.keep_answer_bytes)
        )

    async def _put(self, live: Live, record: Record) -> Record:
        (kept,) = await asyncio.get_running_loop().run_in_executor(self._io, self._store.commit, [record])
        if isinstance(kept, StoreUnavailable):
            raise kept
        if not kept:
            raise WriteConflict("the session was moved by another replica")
        live.committed(record)
        return record


async def run_segments(
    model: Model, begin: Stepped, chunk: Chunk, view: View, deadline: float, gone: Callable[[], bool] = lambda: False
) -> Stepped:
    """Run a chunk of any length from where ``begin`` stands, a tick's share at a time, as a draft.

    So a long chunk does not hold up the single steps of other sessions; while there are none, the shares grow. That its
    answers are the same bit for bit, however it is cut, is what the probe has found out.
    """
    steps, start, shown, done = len(chunk[0]), 0, [], begin
    size = least = segment_steps(begin.trace, model.segment_steps)
    while start < steps:
        segment = tuple(a[start : start + size] for a in chunk)
        share, first = len(segment[0]), start == 0
        item = Item(row=done.row, chunk=segment, parts=(Part(share, view),), trace=done.trace)
        ran, began_s = model.batcher.ran, model.clock.monotonic()
        done = await model.run(item, share, deadline if first else float("inf"), admitted=not first)
        shown.append(done.shown[0])
        if gone():
            raise ClientGone
        alone = model.batcher.ran == ran + 1 and not model.batcher.waiting
        longer = not begin.trace and 2 * (model.clock.monotonic() - began_s) < model.lone_segment_s
        start, size = start + share, (2 * size if longer else size) if alone else least
    return structs.replace(done, shown=(view.join(shown),))


def _outcome(task: "asyncio.Task[T]") -> T | BaseException:
    return ShuttingDown("the service is shutting down") if task.cancelled() else task.exception() or task.result()
