"""Routes that make, show, reset and end sessions."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.api.encoding import dumps, gates_bytes, record_document, session_document
from service.api.schemas import CreateSession, GatesAnswer, Session, SessionPage, described, sent
from service.api.steps import ANYONE, MAX_NUMBERS
from service.errors import TooLarge
from service.sessions.sessions import Sessions
from service.state import Record

MAX_PAGE = 1000


def router(sessions: Sessions) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/sessions", tags=["sessions"])

    def answer(record: Record, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        model = sessions.models.of(record)
        body = dumps(record_document(record, model.signature if model is not None else None))
        return Response(body, status, headers, "application/json")

    @routes.post("", status_code=201, response_model=Session, openapi_extra=described(CreateSession))
    async def create_session(request: Annotated[CreateSession, sent(CreateSession)]) -> Response:
        """Begin a session at position 0, with the model's highest version unless told."""
        record = await sessions.create(request.model, request.version, request.ttl, ANYONE, request.gates or 0)
        return answer(record, 201, {"location": f"/v1/sessions/{record.identity.id}"})

    @routes.get("", response_model=SessionPage, response_model_exclude_unset=True)
    async def list_sessions(
        model: str | None = None,
        cursor: Annotated[str, Query(max_length=64, description="from the page before")] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    ) -> dict[str, Any]:
        """List sessions, in the order of their ids."""
        listed = await sessions.page(ANYONE, model, cursor, limit)
        return {
            "sessions": [session_document(s.identity, s.position, s.expires_at) for s in listed],
            "cursor": listed[-1].identity.id if len(listed) == limit else None,
        }

    @routes.get("/{id}", response_model=Session)
    async def get_session(id: str) -> Response:
        """Show a session, with the steps of its last request."""
        return answer(await sessions.get(id, ANYONE))

    @routes.get("/{id}/gates", response_model=GatesAnswer)
    async def get_gates(
        id: str,
        last: Annotated[int | None, Query(description="of so many steps, from 1 on; of all kept unless told")] = None,
    ) -> Response:
        """Show the gates of the last steps of a session that was created with `gates`, recomputed from the weights."""
        position, layers = await sessions.gates(id, last, ANYONE)
        numbers = sum(layer.numbers for layer in layers)
        if numbers > MAX_NUMBERS:
            raise TooLarge(
                f"the answer would hold {numbers} values, at most {MAX_NUMBERS} are told: ask for less", field="last"
            )
        body = await asyncio.to_thread(gates_bytes, position, layers)  # megabytes: everybody else goes on
        return Response(body, media_type="application/json")

    @routes.delete("/{id}", status_code=204)
    async def delete_session(id: str) -> None:
        """End a session."""
        await sessions.delete(id, ANYONE)

    @routes.post("/{id}/reset", response_model=Session)
    async def reset_session(id: str, request: Request) -> Response:
        """Go back to the model's initial state and position 0."""
        return answer(await sessions.reset(id, ANYONE))

    return routes
