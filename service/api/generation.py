"""Routes that generate: whole, or streamed as server-sent events that OpenAI-compatible clients read."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response

from service.api.asgi import ClientDisconnected, Receive, Scope, Send, watching
from service.api.decoding import decode_chunk
from service.api.encoding import EventWriter, dumps, generation_document, outputs_of
from service.api.problems import problem_document
from service.api.schemas import GenerateAnswer, GeneratePrompt, GenerateSession, described, sent
from service.api.steps import ANYONE
from service.errors import InvalidInput, ShuttingDown
from service.models import Model
from service.sampling import Sampling
from service.sessions.generation import Generated, joined
from service.sessions.requests import Generate
from service.sessions.sessions import Sessions

MAX_STOPS, MAX_STOP_LENGTH = 8, 256
SSE = "text/event-stream"
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {SSE: {}}, "description": "server-sent events when `stream` is true"}
}


def router(sessions: Sessions, max_steps: int) -> APIRouter:
    """The routes; ``max_steps`` is the limit of a prompt."""
    routes = APIRouter(prefix="/v1", tags=["generation"])

    @routes.post(
        "/sessions/{id}/generate",
        response_model=GenerateAnswer,
        responses=_STREAM,
        openapi_extra=described(GenerateSession),
    )
    async def generate_in_session(
        id: str, body: Annotated[GenerateSession, sent(GenerateSession)], request: Request
    ) -> Response:
        """Continue a session: text that becomes part of it, or a forecast that leaves it where it was."""
        model = await sessions.model_of(id, ANYONE)
        asked = _asked(model, body, advance=body.advance, position=body.position)
        if body.stream:
            return await _streaming(model, sessions.generate_stream(id, asked, ANYONE))
        with watching(request.receive):
            generated = await sessions.generate(id, asked, ANYONE)
        headers = {"idempotent-replayed": "true"} if generated.repeated else None
        return _whole(model, generated, headers)

    @routes.post(
        "/models/{model}/generate",
        response_model=GenerateAnswer,
        responses=_STREAM,
        openapi_extra=described(GeneratePrompt),
    )
    async def generate_from_prompt(
        model: str, body: Annotated[GeneratePrompt, sent(GeneratePrompt)], request: Request
    ) -> Response:
        """Continue a prompt, without a session."""
        found = sessions.models.find(model, body.version)
        asked = _asked(found, body, advance=None, position=None)
        prompt = decode_chunk(found.signature, body.inputs, body.text, max_steps=max_steps)
        steps = sessions.generate_from(found, prompt, asked)
        if body.stream:
            return await _streaming(found, steps)
        with watching(request.receive):
            return _whole(found, joined([step async for step in steps]))

    return routes


def _asked(
    model: Model, body: GenerateSession | GeneratePrompt, *, advance: bool | None, position: int | None
) -> Generate:
    """The request in the terms of the sessions, held against the model's task."""
    language = model.signature.vocabulary is not None
    stop = tuple([body.stop] if isinstance(body.stop, str) else body.stop or ())
    if not language:
        for field in ("temperature", "top_k", "top_p", "seed", "stop"):
            if getattr(body, field) is not None:
                raise InvalidInput(f"{field} is for language models: a forecast is not drawn", field=field)
        return Generate(body.max_steps, advance=bool(advance), position=position)
    if len(stop) > MAX_STOPS or any(not 0 < len(s) <= MAX_STOP_LENGTH for s in stop):
        raise InvalidInput(f"at most {MAX_STOPS} stop texts of 1 to {MAX_STOP_LENGTH} characters", field="stop")
    sampling = Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=secrets.randbits(63) if body.seed is None else body.seed,
    )
    return Generate(
        body.max_steps, sampling, body.seed is not None, stop, True if advance is None else advance, position
    )


def _whole(model: Model, generated: Generated, headers: dict[str, str] | None = None) -> Response:
    document = generation_document(generated)
    document["outputs"] = outputs_of(model.signature, document["outputs"])
    return Response(dumps(document), 200, headers, "application/json")


async def _streaming(model: Model, steps: AsyncIterator[Generated]) -> Response:
    first = await anext(steps)  # what is refused is refused before the answer has begun
    headers = {"cache-control": "no-store"}
    if first.repeated:
        headers["idempotent-replayed"] = "true"
    return _EventStream(EventWriter(model.name, model.signature), first, steps, headers)


class _EventStream(Response):
    """``data: {...}`` for each step, then ``data: [DONE]``; after the first byte a fault is an error event.

    Starlette's own stream does not tell a client that leaves from a server that stops.
    """

    def __init__(
        self, writer: EventWriter, first: Generated, steps: AsyncIterator[Generated], headers: dict[str, str]
    ) -> None:
        super().__init__(None, 200, headers, SSE)
        del self.headers["content-length"]
        self._writer = writer
        self._first = first
        self._steps = steps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            with watching(receive):
                await self._tell(send)
            last = b"data: [DONE]\n\n"
        except ClientDisconnected:
            return
        except asyncio.CancelledError:  # by the server, whose time to shut down has run out
            last = _fault(ShuttingDown("the service is shutting down"))
        except Exception as error:  # noqa: BLE001 - the answer has begun: problems.py knows or logs it, the stream tells it
            last = _fault(error)
        await send({"type": "http.response.body", "body": last})

    async def _tell(self, send: Send) -> None:
        event = self._writer.event
        if self._first.outputs is not None:
            await send({"type": "http.response.body", "body": event(self._first), "more_body": True})
        async for generated in self._steps:
            await send({"type": "http.response.body", "body": event(generated), "more_body": True})


def _fault(error: Exception) -> bytes:
    """A fault after the first byte of a stream, as the event that OpenAI-compatible clients know."""
    _, document = problem_document(error)
    document |= {"message": document["detail"], "code": document["status"]}
    return b"event: error\ndata: " + dumps({"error": document}) + b"\n\n"
