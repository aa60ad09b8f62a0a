"""``POST /v1/sessions/{id}/steps``: the hot path.

A plain ASGI endpoint inside the FastAPI app: routed, documented and validated like the others, without FastAPI's own
handling of a route, which costs more than the step.
"""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.routing import APIRoute

from service.api.asgi import JSON_HEADERS, ClientDisconnected, Receive, Scope, Send, read_body, respond, watching
from service.api.decoding import decode_chunk
from service.api.encoding import answer_bytes
from service.api.problems import Headers, problem, reason
from service.api.schemas import Steps, StepsAnswer
from service.artifact import Signature
from service.errors import InvalidInput
from service.metrics import Metrics
from service.sessions.requests import Advance
from service.sessions.sessions import Sessions
from service.views import View

ANYONE = ""  # the owner of every session, until there are API keys
DEFAULT_TOP_K = 5
_BEFORE, _AFTER = "/v1/sessions/", "/steps"
_REPEATED = [*JSON_HEADERS, (b"idempotent-replayed", b"true")]


def view_of(signature: Signature, returned: str, top_k: int | None) -> View:
    """What is to be shown, held against the model's task."""
    if signature.vocabulary is None:
        if top_k is not None:
            raise InvalidInput("top_k is for language models", field="top_k")
        return View(every=returned == "all")
    return View(every=returned == "all", top_k=min(top_k or DEFAULT_TOP_K, len(signature.vocabulary)))


class StepsEndpoint:
    """Decode, advance, encode."""

    path = f"{_BEFORE}{{id}}{_AFTER}"

    def __init__(self, sessions: Sessions, metrics: Metrics, max_body_bytes: int) -> None:
        self._sessions = sessions
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
            headers, body = await self._answer(scope["path"][len(_BEFORE) : -len(_AFTER)], receive)
            status = 200
        except ClientDisconnected:
            return 0
        except Exception as error:  # noqa: BLE001 - problems.py knows them all, and logs those it does not know
            self._rejected.labels(reason(error)).inc()
            status, body, headers = problem(error)
        await respond(send, status, body, headers)
        return status

    async def _answer(self, id: str, receive: Receive) -> tuple[Headers, bytes]:
        request = Steps.model_validate_json(await read_body(receive, self._max_body_bytes))
        with watching(receive):
            model = await self._sessions.model_of(id, ANYONE)
            chunk = decode_chunk(model.signature, request.inputs, request.text)
            view = view_of(model.signature, request.returned, request.top_k)
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
    body = {"required": True, "content": {"application/json": {"schema": Steps.model_json_schema(by_alias=True)}}}
    id_parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    routes.add_api_route(
        endpoint.path,
        endpoint,
        methods=["POST"],
        name="steps",
        response_model=StepsAnswer,
        openapi_extra={"parameters": [id_parameter], "requestBody": body},
    )
    return routes
