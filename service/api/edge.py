"""The outermost layer: bounds every body, times and counts every request by route and status.

It hands the hot path straight to its endpoint; everything else goes through FastAPI.
"""

from functools import cache
from time import perf_counter

from service.api.asgi import App, ClientDisconnected, Message, Receive, Scope, Send, read_body, respond
from service.api.problems import problem
from service.api.steps import StepsEndpoint
from service.errors import TooLarge
from service.metrics import Metrics

_NO_ROUTE = "none"  # all unknown paths under one label, so that a scanner cannot make the metrics grow


class Edge:
    """ASGI middleware around the whole app."""

    def __init__(self, app: App, steps: StepsEndpoint, metrics: Metrics, max_body_bytes: int) -> None:
        self._app = app
        self._steps = steps
        self._timer = cache(metrics.requests.labels)  # by route and status: a lookup there costs as much as an answer
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass on what is not HTTP."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        if self._steps.takes(scope):
            status = await self._steps(scope, receive, send)
            route = self._steps.path
        else:
            status = await self._through_fastapi(scope, receive, send)
            route = getattr(scope.get("route"), "path", _NO_ROUTE)
        self._timer(route, status).observe(perf_counter() - started)

    async def _through_fastapi(self, scope: Scope, receive: Receive, send: Send) -> int:
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            body = await read_body(receive, self._max_body_bytes)
        except ClientDisconnected:
            return status
        except TooLarge as error:
            status, answer, headers = problem(error)
            await respond(send, status, answer, headers)
            return status
        await self._app(scope, _replaying(body, receive), counted)
        return status


def _replaying(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the whole body at once, and then what comes: the client's leaving."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
