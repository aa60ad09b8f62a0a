"""Liveness, readiness and metrics."""

from collections.abc import Sequence

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.api.problems import UNAVAILABLE
from service.api.schemas import Ready
from service.errors import ServiceError, ShuttingDown
from service.metrics import Metrics
from service.sessions.sessions import Sessions


class Readiness:
    """Whether steps should be sent here. Mutable state: whether the service is retired."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._retired = False

    def retire(self) -> None:
        """Serve on, but say from now on that the service is about to end."""
        self._retired = True

    async def check(self) -> None:
        """See ``Sessions.check``; ShuttingDown where the service is retired."""
        if self._retired:
            raise ShuttingDown("the service is about to shut down, and serves on until then")
        await self._sessions.check()


def router(sessions: Sessions, readiness: Readiness, metrics: Metrics, problems: Sequence[str]) -> APIRouter:
    """The routes; ``problems``: one sentence for each artifact that was left out."""
    routes = APIRouter(tags=["operation"])

    @routes.get("/health/live")
    async def live() -> dict[str, str]:
        """Whether the process answers at all."""
        return {"status": "live"}

    @routes.get("/health/ready", response_model=Ready, responses={UNAVAILABLE: {"model": Ready}})
    async def ready() -> JSONResponse:
        """Whether steps can be served and committed now, and which artifacts had to be left out."""
        status, found = 200, list(problems)
        try:
            await readiness.check()
        except ServiceError as error:
            status, found = UNAVAILABLE, [error.detail, *found]
        models = [f"{m.name}/{m.version}" for m in sessions.models.all]
        word = "ready" if status != UNAVAILABLE else "unavailable"
        return JSONResponse(
            {"status": word, "models": models, "problems": found, "warnings": sessions.warnings}, status
        )

    @routes.get("/metrics", include_in_schema=False)
    def scrape() -> Response:
        """Every metric, in Prometheus' text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return routes
