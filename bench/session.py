"""One session of the load: its connection, where it stands, one request in flight, and whether an answer is right.

Knows nothing of when to send: it is told to, and tells how it went.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

from bench.errors import BenchError
from bench.http import Link
from bench.options import Address

WRONG = "wrong-answer"
LOST = "connection-lost"


class Session:
    """A session at the service. ``done`` is called after each request: None, or the name of what went wrong."""

    def __init__(self, address: Address, model: str, chunks: Sequence[bytes], steps: int, first: int) -> None:
        self._link = Link(address)
        self._link.answered, self._link.lost = self._answered, self._lost
        self._model = model
        self._chunks = chunks
        self._steps = steps
        self._first = first
        self._path = b""
        self._resent = False
        self._dialling: asyncio.Task[None] | None = None
        self.position = 0
        self.certain = True  # False where the last request had no answer: it may have been applied
        self.busy = False
        self.began = 0.0  # from when the request is counted that is in flight, or was just answered
        self.done: Callable[[Session, str | None], None] = lambda session, problem: None

    async def create(self, **more: object) -> None:
        """Begin it at the service, with ``more`` wishes for it; BenchError where that is refused."""
        wanted = {"model": self._model} | more
        status, body = await self._link.call(b"POST", b"/v1/sessions", json.dumps(wanted).encode())
        if status != 201:
            self._link.close()
            raise BenchError(f"the server makes no session: {told(status, body)}")
        self._path = b"/v1/sessions/" + str(json.loads(body)["id"]).encode()

    async def attach(self, id: str) -> None:
        """Take up one that exists; BenchError where the service does not know it."""
        self._path = b"/v1/sessions/" + id.encode()
        status, body = await self._call(b"GET")
        if status != 200:
            raise BenchError(f"the server has no session {id}: {told(status, body)}")
        self.position = int(json.loads(body)["position"])

    def hang_up(self) -> None:
        """Let it be, at the service."""
        self._link.close()

    async def delete(self) -> str | None:
        """End it; the name of a problem where it does not stand where its answers said, or cannot be ended."""
        if not self._path:
            return None
        try:
            status, body = await self._call(b"GET")
            if status != 200:
                return kind_of(status, body)
            stands = json.loads(body).get("position")
            status, body = await self._call(b"DELETE")
        except (OSError, TimeoutError, ValueError):
            return "not-deleted"
        finally:
            self._link.close()
        if status != 204:
            return kind_of(status, body)
        return "wrong-position" if self.certain and stands != self.position else None

    async def _call(self, method: bytes) -> tuple[int, bytes]:
        """Once more where the server had hung up on an idle connection."""
        try:
            return await self._link.call(method, self._path)
        except OSError:
            return await self._link.call(method, self._path)

    def send(self, began: float) -> None:
        """Send the next steps; the time is kept for whoever asks when it is done."""
        self.busy, self.began, self._resent = True, began, False
        self._send()

    def give_up(self) -> list[float]:
        """Forget the request in flight; when it began."""
        began = [self.began] if self.busy else []
        if self._dialling is not None:
            self._dialling.cancel()
        self._link.close()
        self.busy, self.certain = False, self.certain and not began
        return began

    def _send(self) -> None:
        if not self._link.open:
            self._dialling = asyncio.ensure_future(self._dial())
            return
        body = b'{"position":%d,%b}' % (self.position, self._chunk(self.position))
        self._link.send(b"POST", self._path + b"/steps", body)

    def _chunk(self, position: int) -> bytes:
        """The same chunk for the same position: what is sent again is the same request, and is applied once."""
        return self._chunks[(self._first + position // self._steps) % len(self._chunks)]

    async def _dial(self) -> None:
        try:
            await self._link.connect()
        except OSError:
            self._finish("connection-refused")
        else:
            self._send()

    def _lost(self) -> None:
        if not self.busy:
            return  # the server hangs up on connections that were idle for some time
        self.certain = False
        if self._resent:
            self._finish(LOST)
        else:
            self._resent = True
            self._send()

    def _answered(self, status: int, body: bytes) -> None:
        if not self.busy:
            return
        self.certain = True
        problem = self._problem(status, body)
        if problem is None:
            self.position += self._steps
        self._finish(problem)

    def _problem(self, status: int, body: bytes) -> str | None:
        reached = self.position + self._steps
        if status == 200:
            if body.startswith(b'{"position":%d,"steps":%d,' % (reached, self._steps)):
                return None
            answer = document(body)
            return None if (answer.get("position"), answer.get("steps")) == (reached, self._steps) else WRONG
        return self._refused(status, body)

    def _refused(self, status: int, body: bytes) -> str:
        stands = document(body).get("position")
        if isinstance(stands, int):
            self.position = stands  # where another went on; counted all the same
        return kind_of(status, body)

    def _finish(self, problem: str | None) -> None:
        self.busy = False
        self.done(self, problem)


def document(body: bytes) -> dict[str, Any]:
    """A JSON object; an empty one for what is none."""
    try:
        told = json.loads(body)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def kind_of(status: int, body: bytes) -> str:
    """The last word of a problem's type, or the status."""
    kind = str(document(body).get("type", "")).rsplit(":", 1)[-1]
    return kind if kind not in ("", "blank") else f"status-{status}"


def told(status: int, body: bytes) -> str:
    """A refusal as its kind and the server's own sentence."""
    return f"{kind_of(status, body)}, {document(body).get('detail', 'no reason told')}"
