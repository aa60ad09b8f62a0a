"""One session of the load over a WebSocket: several requests in flight, sent again after a lost connection.

It is made and ended over HTTP, like every session.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from bench.errors import BenchError
from bench.messages import Format
from bench.options import Address
from bench.session import LOST, WRONG, Session, document, kind_of, told
from bench.websocket import Refused, StreamLink, frame


@dataclass(frozen=True)
class Way:
    """So many requests in flight, in this format."""

    in_flight: int
    format: Format


class StreamSession(Session):
    """``busy``: as many requests are in flight as may be; ``began`` is that of the one that was just answered."""

    def __init__(self, address: Address, model: str, chunks: Sequence[bytes], steps: int, first: int, way: Way) -> None:
        super().__init__(address, model, chunks, steps, first)
        self._way = way
        self._stream = StreamLink(address)
        self._stream.heard, self._stream.lost = self._heard, self._lost
        self._flying: deque[tuple[float, bytes]] = deque()  # when it began, and the frame

    async def create(self, **more: object) -> None:
        """Begin it, let go of the connection for that, and open the stream; BenchError where that is refused."""
        await super().create(**more)
        self._link.close()
        try:
            await self._connect()
        except Refused as refused:
            raise BenchError(f"the server opens no stream: {told(refused.status, refused.body)}") from None

    async def _connect(self) -> None:
        await self._stream.connect(self._path + b"/stream?in_flight=%d" % self._way.in_flight)

    async def delete(self) -> str | None:
        """Close the stream, and end the session."""
        self._stream.close()
        return await super().delete()

    def send(self, began: float) -> None:
        """Send the next steps, whatever is in flight."""
        chunk = self._chunk(position := self.position + self._steps * len(self._flying))
        message = frame(self._way.format.opcode, self._way.format.request(chunk, position))
        self._flying.append((began, message))
        self.busy = len(self._flying) >= self._way.in_flight
        if self._stream.open:
            self._stream.send(message)
        elif self._dialling is None:
            self._dialling = asyncio.ensure_future(self._dial())

    def give_up(self) -> list[float]:
        """Forget what is in flight."""
        if self._dialling is not None:
            self._dialling.cancel()
        self._stream.close()
        began = [began for began, _ in self._flying]
        self._flying.clear()
        self.busy, self.certain = False, self.certain and not began
        return began

    async def _dial(self) -> None:
        """Connect, and send all that is in flight: what was applied before is answered again, and nothing is twice."""
        try:
            await self._connect()
        except OSError as error:
            self._dialling = None
            self._fail(kind_of(error.status, error.body) if isinstance(error, Refused) else "connection-refused")
        else:
            self._dialling = None
            self._stream.send(b"".join(message for _, message in self._flying))

    def _lost(self) -> None:
        if not self._flying:
            return
        self.certain = False
        if self._resent:
            self._fail(LOST)
        else:
            self._resent = True
            self._dialling = asyncio.ensure_future(self._dial())

    def _fail(self, problem: str) -> None:
        for _ in range(len(self._flying)):
            self._over(problem)

    def _heard(self, opcode: int, payload: bytes) -> None:
        if not self._flying:
            return
        self.certain, self._resent = True, False
        reached = self.position + self._steps
        if self._way.format.answers(opcode, payload, reached, self._steps):
            self.position = reached
            self._over(None)
            return
        status = document(payload).get("status")
        self._over(self._refused(status, payload) if isinstance(status, int) else WRONG)

    def _over(self, problem: str | None) -> None:
        self.began, _ = self._flying.popleft()
        self._finish(problem)
