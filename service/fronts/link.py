"""A front end's end: the sessions, as far as steps need them, in another process."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from service import errors
from service.api.asgi import JSON_HEADERS
from service.api.steps import StepsReply
from service.api.stream import Message
from service.artifact import Signature, parse_signature
from service.errors import EngineUnavailable, ServiceError
from service.fronts.messages import Answered, Counted, Failed, Find, Found, FromEngine, Left, Refused, Step, Told, Wire
from service.sessions.requests import Advance
from service.state import decode_answers
from service.work import Reply, resolve

log = logging.getLogger(__name__)

_AGAIN_S = 0.05  # between two tries to reach the engine
_KNOWN = 100_000  # sessions whose model a front end remembers
_decoder = msgspec.msgpack.Decoder(list[FromEngine])


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """What a front end knows of a model."""

    fingerprint: str
    signature: Signature


@dataclass(frozen=True, slots=True)
class RemoteSession:
    """A session whose model is known: it never changes."""

    id: str
    owner: str
    model: RemoteModel


class Link(Wire[FromEngine]):
    """The connection to the engine. Mutable state: ``waiting``, the replies to what was asked, by its number."""

    def __init__(self, models: dict[str, RemoteModel]) -> None:
        super().__init__(_decoder)
        self._models = models
        self.waiting: dict[int, Reply] = {}

    def connection_lost(self, exc: Exception | None) -> None:
        """What became of the requests that were sent nobody here can know."""
        super().connection_lost(exc)
        replies, self.waiting = self.waiting, {}
        for reply in replies.values():
            if reply.done():
                continue
            if isinstance(reply, StepsReply | Message):
                reply.lose()
            else:
                resolve(reply, EngineLost())

    def heard(self, message: FromEngine) -> None:
        """See ``Wire``."""
        if isinstance(message, Found) and message.signature is not None:  # told once, whoever still waits for it
            model = RemoteModel(message.fingerprint, parse_signature(message.signature))
            self._models[message.fingerprint] = model
        reply = self.waiting.pop(message.ref, None)
        if reply is None or reply.done():
            return
        if isinstance(message, Answered):
            cast(StepsReply, reply).answer(message.status, message.headers or JSON_HEADERS, message.body)
        elif isinstance(message, Told):
            reply.set_result((decode_answers(message.answers)[0], message.repeated))
        elif isinstance(message, Failed):
            reply.set_exception(_error(message))
        else:
            reply.set_result(self._models[message.fingerprint])


class EngineLost(Exception):
    """The engine's process ended while it had a request: whether it was applied is not known here."""


class RemoteSessions:
    """See ``api.stepping``. Mutable state: ``_link``, ``_known`` (the least recently found first), ``_last``."""

    def __init__(self, path: Path) -> None:
        self.connected = asyncio.Event()  # for the first time
        self._path = path
        self._link: Link | None = None
        self._known: dict[str, RemoteSession] = {}
        self._models: dict[str, RemoteModel] = {}
        self._last = 0

    async def connect(self) -> None:
        """Try to reach the engine, once."""
        connecting = asyncio.get_running_loop().create_unix_connection(lambda: Link(self._models), str(self._path))
        with suppress(OSError):
            _, self._link = await connecting
            self.connected.set()

    async def keep_connected(self) -> None:
        """Reach the engine, again whenever it has gone, for ever."""
        while True:
            if self._link is None:
                await self.connect()
            if self._link is None:
                await asyncio.sleep(_AGAIN_S)
            else:
                await self._link.lost.wait()
                self._link = None
                log.warning("the engine's process has gone")

    def at_hand(self, id: str, owner: str) -> RemoteSession | None:
        """A session whose model is known."""
        session = self._known.get(id)
        return session if session is not None and session.owner == owner else None

    async def model_of(self, id: str, owner: str) -> RemoteModel:
        """The model that a session is pinned to."""
        found: asyncio.Future[RemoteModel] = asyncio.get_running_loop().create_future()
        self._ask(Find, found, id, owner)
        try:
            model = await found
        except EngineLost:  # nothing was to be applied
            raise self.unavailable() from None
        if len(self._known) >= _KNOWN:
            del self._known[next(iter(self._known))]
        self._known[id] = RemoteSession(id, owner, model)
        return model

    def advance_live(self, session: RemoteSession, request: Advance, reply: Reply) -> None:
        """See ``submit``."""
        self.submit(session.id, request, session.owner, reply)

    def submit(self, id: str, request: Advance, owner: str, reply: Reply) -> None:
        """Send a request; the reply is resolved when the engine has answered."""
        view, inputs = request.view, [array.tobytes() for array in request.chunk]
        asked = (id, owner, request.position, view.every, view.top_k, request.steps, inputs)
        self._ask(Step, reply, *asked, not isinstance(reply, StepsReply), request.keep)

    def leave(self, reply: Reply) -> None:
        """Nobody waits for this reply any more."""
        if self._link is not None:
            for ref, waiting in self._link.waiting.items():
                if waiting is reply:
                    del self._link.waiting[ref]
                    self._link.say(Left(ref))
                    return

    def unavailable(self) -> EngineUnavailable:
        """The error of what the engine has not been asked."""
        return EngineUnavailable("the engine's process is being started again")

    def refused(self, reason: str, status: int) -> None:
        """See ``api.stepping.Counts``: the metrics are the engine's."""
        self.tell(Refused(reason, status))

    def answered(self, status: int, seconds: float) -> None:
        """See ``api.stepping.Counts``: what came further than here the engine counts by itself."""

    def tell(self, message: Refused | Counted) -> None:
        """Tell the engine, if there is one, what is only for its metrics."""
        if self._link is not None:
            self._link.say(message)

    def _ask(self, kind: Any, reply: Reply, *arguments: object) -> None:  # noqa: ANN401 - a kind of message
        if self._link is None or self._link.lost.is_set():  # the second is known a turn of the event loop earlier
            raise self.unavailable()
        self._last += 1
        self._link.waiting[self._last] = reply
        self._link.say(kind(self._last, *arguments))


class StreamCounts:
    """See ``api.stepping.Counts``: those of streams, whose messages the engine knows as steps only."""

    def __init__(self, sessions: RemoteSessions) -> None:
        self._sessions = sessions

    def refused(self, reason: str, status: int) -> None:
        """See ``api.stepping.Counts``."""
        self._sessions.tell(Refused(reason, status, stream=True))

    def answered(self, status: int, seconds: float) -> None:
        """See ``api.stepping.Counts``."""
        self._sessions.tell(Counted(status, seconds))


def _error(failed: Failed) -> Exception:
    kind = getattr(errors, failed.name, None) if failed.name else None
    if not (isinstance(kind, type) and issubclass(kind, ServiceError)):
        return RuntimeError("the engine's log says more")
    error = kind.__new__(kind)
    ServiceError.__init__(error, failed.detail, field=failed.field, **failed.facts)
    return error
