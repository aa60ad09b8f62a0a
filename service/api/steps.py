"""``POST /v1/sessions/{id}/steps``: the hot path.

A plain ASGI endpoint inside the FastAPI app: routed, documented and validated like the others, without FastAPI's own
handling of a route, which costs more than the step.
"""

import asyncio
import math
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
    refuse,
    respond,
    watching,
)
from service.api.decoding import decode_chunk
from service.api.encoding import answer_bytes
from service.api.problems import Headers
from service.api.schemas import Steps, StepsAnswer, described, parse
from service.artifact import Signature
from service.errors import InvalidInput, ShuttingDown, TooLarge
from service.metrics import Metrics
from service.sessions.requests import Advance
from service.sessions.sessions import Sessions
from service.views import View

ANYONE = ""  # the owner of every session, until there are API keys
DEFAULT_TOP_K = 5
MAX_NUMBERS = 1_000_000  # in one answer: about what is written as JSON in the time of a tick, while all others wait
_PER_SYMBOL = 3  # its token, its text, its log-probability
_BEFORE, _AFTER = "/v1/sessions/", "/steps"
_REPEATED = [*JSON_HEADERS, (b"idempotent-replayed", b"true")]


def view_of(signature: Signature, returned: str, top_k: int | None) -> View:
    """What is to be shown, held against the model's task."""
    if signature.vocabulary is None:
        if top_k is not None:
            raise InvalidInput("top_k is for language models", field="top_k")
        return View(every=returned == "all")
    return View(every=returned == "all", top_k=min(top_k or DEFAULT_TOP_K, len(signature.vocabulary)))


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


class StepsEndpoint:
    """Decode, advance, encode."""

    path = f"{_BEFORE}{{id}}{_AFTER}"

    def __init__(self, sessions: Sessions, metrics: Metrics, max_body_bytes: int, max_steps: int) -> None:
        self._sessions = sessions
        self._max_steps = max_steps
        self._max_body_bytes = max_body_bytes
        self._rejected = metrics.rejected

    def takes(self, scope: Scope) -> bool:
        """Whether a request is for this endpoint."""
        path: str = scope["path"]
        return (
            path.endswith(_AFTER)
            and path.startswith(_BEFORE)
            and scope["method"] == "POST"
            and "/" not in path[len(_BEFORE) : -len(_AFTER)]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Answer one request and return the status (0: nobody was left to be answered)."""
        try:
            headers, body = await self._answer(scope, receive)
        except ClientDisconnected:
            return 0
        except asyncio.CancelledError:  # by the server, whose time to shut down has run out
            return await refuse(send, ShuttingDown("the service is shutting down"), self._rejected)
        except Exception as error:  # noqa: BLE001 - problems.py knows them all, and logs those it does not know
            return await refuse(send, error, self._rejected)
        try:
            await respond(send, 200, body, headers)
        except ClientDisconnected:
            return 0
        return 200

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[Headers, bytes]:
        check_length(scope, self._max_body_bytes)
        id = scope["path"][len(_BEFORE) : -len(_AFTER)]
        request = parse(Steps, await read_body(receive, self._max_body_bytes))
        with watching(receive):
            model = await self._sessions.model_of(id, ANYONE)
            chunk = decode_chunk(model.signature, request.inputs, request.text, max_steps=self._max_steps)
            view = view_of(model.signature, request.returned, request.top_k)
            if view.every:
                check_answer(model.signature, view, len(chunk[0]))
            answer, repeated = await self._sessions.advance(id, Advance(chunk, view, request.position), ANYONE)
        return _REPEATED if repeated else JSON_HEADERS, answer_bytes(model.signature, answer)


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
        endpoint.path,
        endpoint,
        methods=["POST"],
        name="steps",
        response_model=StepsAnswer,
        openapi_extra=described(Steps, parameters=[id_parameter]),
    )
    return routes
