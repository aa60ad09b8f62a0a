"""The engine's end: what front ends ask for goes to the sessions, what those answer goes back."""

import asyncio
import logging
from time import perf_counter
from typing import Any, cast

import msgspec
import numpy as np

from service.api.asgi import JSON_HEADERS
from service.api.problems import Headers
from service.api.stepping import Counts
from service.api.steps import StepsEndpoint, StepsReply
from service.artifact import Signature
from service.errors import ServiceError
from service.fronts.messages import Answered, Counted, Failed, Find, Found, FromFront, Left, Step, Told, Wire
from service.models import Model
from service.sessions.requests import Advance, one_token
from service.sessions.sessions import Sessions
from service.state import Answer, encode_answers
from service.views import View
from service.work import resolve

log = logging.getLogger(__name__)

_decoder = msgspec.msgpack.Decoder(list[FromFront])


class Hub(Wire[FromFront]):
    """The connection of one front end. Mutable state: ``_waiting``, its requests without an answer yet."""

    def __init__(self, steps: StepsEndpoint, streams: Counts, hubs: "set[Hub]") -> None:
        """``streams``: who counts their messages; ``hubs``: those that are connected."""
        super().__init__(_decoder)
        self._streams = streams
        self._hubs = hubs
        self._sessions = cast(Sessions, steps.sessions)  # this process has them
        self.steps = steps
        self._waiting: dict[int, JsonReply | RawReply] = {}
        self._told: set[str] = set()  # fingerprints whose signature this front end has
        self._tasks: set[asyncio.Task[None]] = set()
        self._behind: dict[tuple[str, str], list[tuple[Step, JsonReply | RawReply]]] = {}  # of sessions looked for

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        self._hubs.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The front end has gone, and with it everybody who waited there: what does not run yet is dropped."""
        super().connection_lost(exc)
        self._hubs.discard(self)
        while self._waiting:
            self._leave(next(iter(self._waiting)))

    def heard(self, message: FromFront) -> None:
        """See ``Wire``."""
        if isinstance(message, Step):
            self._step(message)
        elif isinstance(message, Find):
            self._start(self._find(message))
        elif isinstance(message, Left):
            self._leave(message.ref)
        elif isinstance(message, Counted):
            self._streams.answered(message.status, message.seconds)
        else:
            self.steps.counts.refused(message.reason, message.status)
            if not message.stream:
                self.steps.counts.answered(message.status, 0.0)

    def _leave(self, ref: int) -> None:
        if (reply := self._waiting.pop(ref, None)) is not None:
            reply.gone = True
            reply.count(0)

    def _step(self, step: Step) -> None:
        reply = self._waiting[step.ref] = (RawReply if step.raw else JsonReply)(self, step.ref)
        session = (step.id, step.owner)
        if session in self._behind:
            self._behind[session].append((step, reply))
            return
        try:
            live = self._sessions.at_hand(*session)
            if live is None:
                self._behind[session] = [(step, reply)]
                self._start(self._look_for(*session))
            else:
                self._sessions.advance_live(live, _advance(step, live.model.signature, reply), reply)
        except Exception as error:  # noqa: BLE001 - the front end tells its client, whatever it is
            resolve(reply, error)

    async def _look_for(self, id: str, owner: str) -> None:
        """Find a session's model; then all steps that came for it go on, in their order."""
        found: Model | Exception
        try:
            found = await self._sessions.model_of(id, owner)
        except Exception as error:  # noqa: BLE001 - see above
            found = error
        for step, reply in self._behind.pop((id, owner)):
            try:
                if isinstance(found, Exception):
                    raise found
                self._sessions.submit(id, _advance(step, found.signature, reply), owner, reply)
            except Exception as error:  # noqa: BLE001 - see above
                resolve(reply, error)

    async def _find(self, find: Find) -> None:
        try:
            model: Model = await self._sessions.model_of(find.id, find.owner)
        except Exception as error:  # noqa: BLE001 - see above
            self.say(failed(find.ref, error))
            return
        known = model.fingerprint in self._told
        self._told.add(model.fingerprint)
        self.say(Found(find.ref, model.fingerprint, None if known else model.signature.model_dump_json()))

    def _start(self, work: Any) -> None:  # noqa: ANN401 - a coroutine
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def answered(self, ref: int, message: object) -> None:
        """Send what a request came to."""
        del self._waiting[ref]
        self.say(message)


class JsonReply(StepsReply):
    """A reply that goes to a front end as the answer that its client gets."""

    __slots__ = ("_hub", "_ref", "_started", "gone")

    def __init__(self, hub: Hub, ref: int) -> None:
        super().__init__(hub.steps)
        self._hub, self._ref = hub, ref
        self._started = perf_counter()
        self.gone = False

    def done(self) -> bool:
        """See ``work.Reply``."""
        return self.gone

    def lose(self) -> None:
        """See ``StepsReply``: only a front end loses its engine."""

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """See ``StepsReply``."""
        self.gone = True
        self._hub.answered(self._ref, Answered(self._ref, status, body, None if headers is JSON_HEADERS else headers))
        self.count(status)

    def count(self, status: int) -> None:
        """Count the request; status 0: nobody was left to be answered."""
        self._steps.counts.answered(status, perf_counter() - self._started)


class RawReply:
    """A reply that goes to a front end as it is, for a client that gets something else than an HTTP answer."""

    __slots__ = ("_hub", "_ref", "gone", "signature")

    def __init__(self, hub: Hub, ref: int) -> None:
        self._hub, self._ref = hub, ref
        self.signature: Signature | None = None
        self.gone = False

    def done(self) -> bool:
        """See ``work.Reply``."""
        return self.gone

    def set_result(self, result: tuple[Answer, bool]) -> None:
        """See ``work.Reply``."""
        self.gone = True
        answer, repeated = result
        self._hub.answered(self._ref, Told(self._ref, encode_answers((answer,)), repeated))

    def set_exception(self, error: BaseException) -> None:
        """See ``work.Reply``."""
        self.gone = True
        self._hub.answered(self._ref, failed(self._ref, error))

    def count(self, status: int) -> None:
        """It is no HTTP request: who speaks of it counts it."""


def failed(ref: int, error: BaseException) -> Failed:
    """An error as a message. One that is not told by name is told to the log here, and to the client as nothing."""
    if isinstance(error, ServiceError):
        return Failed(ref, type(error).__name__, error.detail, error.field, error.facts)
    log.error("a front end's request failed", exc_info=error)
    return Failed(ref, "", "", None, {})


def _advance(step: Step, signature: Signature, reply: JsonReply | RawReply) -> Advance:
    reply.signature, view = signature, View.of(step.every, step.top_k)
    if step.steps == 1 and signature.symbols:
        token = int.from_bytes(step.inputs[0], "little")
        return one_token(token, signature.inputs[0].dtype, view, step.position, step.keep)
    named = zip(step.inputs, signature.inputs, strict=True)
    chunk = [np.frombuffer(raw, spec.dtype).reshape(step.steps, *spec.step_shape) for raw, spec in named]
    return Advance(tuple(chunk), view, step.position, step.keep)
