"""The little that plain ASGI endpoints need: reading a body within its limit, answering, noticing who has gone."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import Counter

from service.api.problems import Headers, problem, reason
from service.errors import TooLarge

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

WATCH_AFTER_S = 0.05  # ordinary steps are answered before; watching the connection costs more than a step
HANG_UP = "lstm_serve.hang_up"  # extension of a scope: {"now": break the connection, in the middle of an answer too}
JSON_HEADERS = [(b"content-type", b"application/json")]


class ClientDisconnected(Exception):
    """The client went away; nobody is left to be answered."""


def check_length(scope: Scope, limit: int) -> None:
    """TooLarge for a body that says itself that it is: nothing of it is read, and no 100-continue asks for it."""
    for name, value in scope.get("headers", ()):
        if name == b"content-length" and int(value) > limit:
            raise _too_large(limit)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than {limit} bytes", field="body")


async def read_body(receive: Receive, limit: int) -> bytes:
    """The request's body; TooLarge beyond the limit, ClientDisconnected when it ends half-way."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return b"".join((*parts, part)) if parts else part
        parts.append(part)


async def respond(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """Answer with a whole body; ClientDisconnected when the connection is closed."""
    length = (b"content-length", str(len(body)).encode())
    try:
        await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
        await send({"type": "http.response.body", "body": body})
    except (RuntimeError, OSError) as error:
        raise left(send, error) from error


async def refuse(send: Send, error: Exception, rejected: Counter) -> int:
    """Answer with an error's problem document and count it; the status, 0 where nobody was left to be answered."""
    status, body, headers = problem(error)
    rejected.labels(reason(error)).inc()
    try:
        await respond(send, status, body, headers)
    except ClientDisconnected:
        return 0
    return status


def left(send: Send, error: Exception) -> Exception:
    """What an error of ``send`` means: ClientDisconnected when the connection is closed, otherwise the error itself.

    Of requests that a client sent ahead on one connection, uvicorn marks only the newest when the client goes. The one
    that is being answered runs into the closed transport (a RuntimeError of uvloop's) and has to be marked here, or
    uvicorn complains of every answer that was not completed.
    """
    if not (isinstance(error, OSError) or "closed" in str(error)):
        return error
    cycle = getattr(send, "__self__", None)
    if hasattr(cycle, "disconnected"):
        with contextlib.suppress(AttributeError):
            cycle.disconnected = True  # type: ignore[union-attr]  # uvicorn's RequestResponseCycle
    return ClientDisconnected()


class watching:  # noqa: N801 - reads as the statement that it is: with watching(receive)
    """Cancel what runs inside when the client goes away, and raise ClientDisconnected.

    The connection is watched only once the answer is late, so that quick answers pay for nothing but a timer.
    """

    __slots__ = ("_gone", "_listener", "_receive", "_task", "_timer")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False
        self._listener: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._start)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()
        if self._gone and kind is asyncio.CancelledError and self._task is not None:
            self._task.uncancel()
            raise ClientDisconnected

    def _start(self) -> None:
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._task is not None:
            self._task.cancel()
