"""The outermost layer: bounds every body, times and counts every request by route and status.

It hands the hot path straight to its endpoint; everything else goes through FastAPI.
"""

import asyncio
from collections.abc import Callable
from functools import cache
from time import perf_counter

from service.api.asgi import (
    App,
    ClientDisconnected,
    Message,
    Receive,
    Scope,
    Send,
    check_length,
    left,
    read_body,
    refuse,
)
from service.api.steps import StepsEndpoint
from service.api.streams import Streams
from service.errors import ShuttingDown
from service.metrics import Metrics

_NO_ROUTE = "none"  # all unknown paths under one label, so that a scanner cannot make the metrics grow


class Edge:
    """ASGI middleware around the whole app."""

    def __init__(
        self,
        app: App,
        steps: StepsEndpoint,
        streams: Streams,
        metrics: Metrics,
        max_body_bytes: int,
        retire: Callable[[], None],
    ) -> None:
        """``retire``: see ``Readiness``; for the server, which is told to end."""
        self._app = app
        self.retire = retire
        self.steps = steps
        self.streams = streams
        self._timer = cache(metrics.requests.labels)  # by route and status: a lookup there costs as much as an answer
        self._max_body_bytes = max_body_bytes
        self._rejected = metrics.rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass on what is not HTTP."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        if self.steps.takes(scope):
            status = await self.steps(scope, receive, send)
            self.steps.counts.answered(status, perf_counter() - started)
            return
        reply = _Reply(send)
        try:
            await self._through_fastapi(scope, receive, reply)
        finally:
            route = getattr(scope.get("route"), "path", _NO_ROUTE)
            self._timer(route, reply.status).observe(perf_counter() - started)

    async def _through_fastapi(self, scope: Scope, receive: Receive, reply: "_Reply") -> None:
        """Whatever happens, the client is answered once; what leaves here as an error is half an answer."""
        try:
            check_length(scope, self._max_body_bytes)
            body = await read_body(receive, self._max_body_bytes)
            await self._app(scope, _replaying(body, receive), reply)
        except ClientDisconnected:
            return
        except asyncio.CancelledError:  # by the server, whose time to shut down has run out
            if not reply.complete:
                await self._refuse(reply, ShuttingDown("the service is shutting down"))
        except Exception as error:  # noqa: BLE001 - Starlette raises again what it has answered and problems.py logged
            if not reply.complete:
                await self._refuse(reply, error)

    async def _refuse(self, reply: "_Reply", error: Exception) -> None:
        if reply.gone:
            return
        if reply.status:
            raise error  # too late for another answer: uvicorn closes the connection, so that the client notices
        await refuse(reply, error, self._rejected)


class _Reply:
    """The ``send`` of one request, and what it has sent: the status (0: nothing), whether all, whether to nobody."""

    __slots__ = ("_send", "complete", "gone", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.complete = False
        self.gone = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        try:
            await self._send(message)
        except (RuntimeError, OSError) as error:
            known = left(self._send, error)
            if isinstance(known, ClientDisconnected):
                self.gone, self.status = True, 0
            raise known from error
        self.complete = message["type"] == "http.response.body" and not message.get("more_body", False)


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
