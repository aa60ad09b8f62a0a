"""``POST /v1/sessions/{id}/steps``: the hot path.

A plain ASGI endpoint inside the FastAPI app: routed, documented and validated like the others, without FastAPI's own
handling of a route, which costs more than the step. Served by our own process, most requests do not even become ASGI:
their connection (``connection.py``) calls ``begin`` and writes the answer.
"""

import asyncio
import math
from abc import ABC, abstractmethod
from functools import cache, partial
from typing import Any

from fastapi import APIRouter, Response
from fastapi.routing import APIRoute

from service.api.asgi import (
    JSON_HEADERS,
    ClientDisconnected,
    Receive,
    Scope,
    Send,
    check_length,
    read_body,
    respond,
    watching,
)
from service.api.decoding import decode_chunk, single_token
from service.api.encoding import answer_bytes
from service.api.problems import Headers, problem, reason
from service.api.schemas import Steps, StepsAnswer, described, parse
from service.api.stepping import Counts, Stepping
from service.artifact import Signature
from service.errors import InvalidInput, ShuttingDown, TooLarge
from service.metrics import Metrics
from service.sessions.requests import Advance, one_token
from service.state import Answer
from service.views import View
from service.work import resolve

ANYONE = ""  # the owner of every session, until there are API keys
DEFAULT_TOP_K = 5
MAX_NUMBERS = 1_000_000  # in one answer: about what is written as JSON in the time of a tick, while all others wait
_PER_SYMBOL = 3  # its token, its text, its log-probability
_BEFORE, _AFTER = "/v1/sessions/", "/steps"
PATH = f"{_BEFORE}{{id}}{_AFTER}"
_REPEATED = [*JSON_HEADERS, (b"idempotent-replayed", b"true")]


def view_of(signature: Signature, returned: str, top_k: int | None) -> View:
    """What is to be shown, held against the model's task."""
    if signature.vocabulary is None:
        if top_k is not None:
            raise InvalidInput("top_k is for language models", field="top_k")
        return View.of(returned == "all", 0)
    return View.of(returned == "all", min(top_k or DEFAULT_TOP_K, len(signature.vocabulary)))


def check_answer(signature: Signature, view: View, shown: int) -> None:
    """TooLarge for an answer that would take long to write; ``shown``: of how many steps it tells."""
    if view.top_k:
        numbers, field = shown * view.top_k * _PER_SYMBOL, "top_k"
    else:
        numbers, field = shown * sum(math.prod(o.step_shape) for o in signature.outputs), "return"
    if numbers > MAX_NUMBERS:
        raise TooLarge(
            f"the answer would hold {numbers} values, at most {MAX_NUMBERS} are told: ask for less", field=field
        )


def advance_of(signature: Signature, request: Steps, max_steps: int, keep: int = 0) -> Advance:
    """A request's body in the terms of the sessions, held against the model; ``keep``: see ``Advance``."""
    view = view_of(signature, request.returned, request.top_k)
    if request.text is None and (token := single_token(signature, request.inputs)) >= 0:
        return one_token(token, signature.inputs[0].dtype, view, request.position, keep)
    chunk = decode_chunk(signature, request.inputs, request.text, max_steps=max_steps)
    if view.every:
        check_answer(signature, view, len(chunk[0]))
    return Advance(chunk, view, request.position, keep)


class StepsCounts:
    """A route's part of the service's metrics."""

    def __init__(self, metrics: Metrics, path: str = PATH) -> None:
        self._rejected = metrics.rejected
        self._timer = cache(partial(metrics.requests.labels, path))

    def refused(self, reason: str, status: int) -> None:
        """See ``Counts``."""
        self._rejected.labels(reason).inc()

    def answered(self, status: int, seconds: float) -> None:
        """See ``Counts``."""
        self._timer(status).observe(seconds)


class StepsReply(ABC):
    """The reply to a request for steps, as the sessions know it (``work.Reply``): it becomes an HTTP answer."""

    __slots__ = ("_steps", "signature")

    def __init__(self, steps: "StepsEndpoint") -> None:
        self._steps = steps
        self.signature: Signature | None = None  # of the session's model, once it is known

    @abstractmethod
    def done(self) -> bool:
        """See ``work.Reply``."""

    @abstractmethod
    def lose(self) -> None:
        """Hang up: what became of the request cannot be known here."""

    @abstractmethod
    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send the answer."""

    def set_result(self, result: tuple[Answer, bool]) -> None:
        """The session's answer, and whether it is that of an earlier request."""
        answer, repeated = result
        try:
            assert self.signature is not None  # noqa: S101 - nothing is submitted without it
            body = answer_bytes(self.signature, answer)
        except Exception as error:  # noqa: BLE001 - the client is told that something went wrong, whatever it is
            self.set_exception(error)
        else:
            self.answer(200, _REPEATED if repeated else JSON_HEADERS, body)

    def set_exception(self, error: BaseException) -> None:
        """What went wrong, as a problem document."""
        status, body, headers = self._steps.refusal(error)
        self.answer(status, headers, body)


class _Awaited(StepsReply):
    """A reply that a coroutine waits for."""

    __slots__ = ("future",)

    def __init__(self, steps: "StepsEndpoint") -> None:
        super().__init__(steps)
        self.future: asyncio.Future[tuple[int, Headers, bytes]] = asyncio.get_running_loop().create_future()

    def done(self) -> bool:
        return self.future.done()

    def lose(self) -> None:
        self.future.set_exception(ClientDisconnected())

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        self.future.set_result((status, headers, body))


class StepsEndpoint:
    """Decode, advance, encode."""

    def __init__(self, sessions: Stepping, counts: Counts, max_body_bytes: int, max_steps: int) -> None:
        self.sessions = sessions
        self.counts = counts
        self._max_steps = max_steps
        self.max_body_bytes = max_body_bytes
        self._looking: set[asyncio.Task[None]] = set()  # so that none is lost

    def takes(self, scope: Scope) -> bool:
        """Whether a request is for this endpoint."""
        path: str = scope["path"]
        return (
            path.endswith(_AFTER)
            and path.startswith(_BEFORE)
            and scope["method"] == "POST"
            and "/" not in path[len(_BEFORE) : -len(_AFTER)]
        )

    def begin(self, id: str, body: bytes, reply: StepsReply) -> None:
        """Decode and submit a request; whatever comes of it, the reply is answered."""
        try:
            request = parse(Steps, body)
            live = self.sessions.at_hand(id, ANYONE)
            if live is not None:
                advance = self._decoded(live.model.signature, request, reply)
                self.sessions.advance_live(live, advance, reply)
                return
        except Exception as error:  # noqa: BLE001 - problems.py knows them all, and logs those it does not know
            resolve(reply, error)
            return
        task = asyncio.create_task(self._look_for(id, request, reply))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _look_for(self, id: str, request: Steps, reply: StepsReply) -> None:
        try:
            model = await self.sessions.model_of(id, ANYONE)
            advance = self._decoded(model.signature, request, reply)
            self.sessions.submit(id, advance, ANYONE, reply)
        except Exception as error:  # noqa: BLE001 - see above
            resolve(reply, error)

    def _decoded(self, signature: Signature, request: Steps, reply: StepsReply) -> Advance:
        reply.signature = signature
        return advance_of(signature, request, self._max_steps)

    def refusal(self, error: BaseException) -> tuple[int, bytes, Headers]:
        """Status, body and headers of the answer to what was refused or failed; counted."""
        status, body, headers = problem(error)
        self.counts.refused(reason(error), status)
        return status, body, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Answer one request as an ASGI app and return the status (0: nobody was left to be answered)."""
        try:
            status, headers, body = await self._awaited(scope, receive)
        except ClientDisconnected:
            return 0
        except asyncio.CancelledError:  # by the server, whose time to shut down has run out
            status, body, headers = self.refusal(ShuttingDown("the service is shutting down"))
        except Exception as error:  # noqa: BLE001 - see above
            status, body, headers = self.refusal(error)
        try:
            await respond(send, status, body, headers)
        except ClientDisconnected:
            return 0
        return status

    async def _awaited(self, scope: Scope, receive: Receive) -> tuple[int, Headers, bytes]:
        check_length(scope, self.max_body_bytes)
        id = scope["path"][len(_BEFORE) : -len(_AFTER)]
        body = await read_body(receive, self.max_body_bytes)
        reply = _Awaited(self)
        with watching(receive):
            self.begin(id, body, reply)
            return await reply.future


class _PlainRoute(APIRoute):
    """A documented route whose requests go straight to an ASGI endpoint."""

    def __init__(self, path: str, endpoint: StepsEndpoint, **options: Any) -> None:  # noqa: ANN401 - FastAPI's own
        super().__init__(path, _documentation, **options)
        self.app = endpoint  # type: ignore[assignment]  # it also returns the status, which nobody reads here


def _documentation() -> Response:
    """Send one time step or many.

    Without `position` the steps apply wherever the session stands. With it they are applied exactly once: a repeat of
    the last request gets the same bytes again (and the header `idempotent-replayed`), anything else 409.
    """
    raise AssertionError("never called: the route's requests go to its ASGI endpoint")


def router(endpoint: StepsEndpoint) -> APIRouter:
    """The endpoint's route, for the OpenAPI document and for who calls the app without its edge."""
    routes = APIRouter(route_class=_PlainRoute, tags=["sessions"])
    id_parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    routes.add_api_route(
        PATH,
        endpoint,
        methods=["POST"],
        name="steps",
        response_model=StepsAnswer,
        openapi_extra=described(Steps, parameters=[id_parameter]),
    )
    return routes
