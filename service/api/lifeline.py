"""How long a stream lives: keep-alive, and the closing handshake of RFC 6455 from either side."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

from service.api.websocket import GOING_AWAY, PING, close_frame, frame

PING_S = 20.0  # of silence, after which a client is asked whether it is still there; as long again, and it has gone
CLOSE_S = 5.0  # for the client's part of the closing handshake
FAILED_S = 1.0  # for a client that broke the protocol to hang up, once it has been told so


class Lifeline(asyncio.Protocol, ABC):
    """The part of a stream that knows of its end, and nothing of what is said on it.

    Mutable state: ``_ending`` (the close frame, sent when nothing is in flight any more), ``_told`` (it was sent),
    ``_left`` (the client's has come), ``_failed`` (the client broke the protocol), ``_deaf`` (nothing is read from the
    client now), ``_heard`` (loop time at which something came last), ``_timer``, ``gone``.
    """

    def __init__(self, server_state: Any) -> None:  # noqa: ANN401 - uvicorn's own
        self._server_state = server_state
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._ending: bytes | None = None
        self._told = self._left = self._failed = self._deaf = self.gone = False
        self._timer: asyncio.TimerHandle | None = None

    @abstractmethod
    def _quiet(self) -> bool:
        """Whether the stream is open and nothing is in flight on it; what waits to be written is written."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = cast(asyncio.Transport, transport)
        self._server_state.connections.add(self)  # so that uvicorn calls ``shutdown``, and waits for the end

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self.gone = True
        self._server_state.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def shutdown(self) -> None:
        """The server ends: so does the stream, once all that is in flight has been answered."""
        self.end(GOING_AWAY, "the server is shutting down")

    def end(self, code: int, reason: str = "") -> None:
        """Take no message any more, and close the stream when those in flight have been answered."""
        if self._ending is None:
            self._ending = close_frame(code, reason)
            self._say_end()

    def fail(self, code: int, reason: str) -> None:
        """What came breaks the protocol: the client is told so, and its part of the handshake is not waited for."""
        self._failed = True
        self.end(code, reason)

    def _say_end(self) -> None:
        if self._ending is None or self._told or self.gone or not self._quiet():
            return
        self._told = True
        self._transport.write(self._ending)
        if self._left:
            self._transport.close()
        elif self._failed:  # not closed at once: what the client goes on sending would have it miss what it is told
            self._transport.write_eof()
            self._set_timer(FAILED_S, self._transport.abort)
        else:
            self._set_timer(CLOSE_S, self._transport.abort)

    def _client_left(self, code: int) -> None:
        """The client's close frame has come: the first one, or the answer to ours."""
        self._left = True
        if self._told:
            self._transport.close()
        self.end(code)

    def _look(self) -> None:
        """Now and then: a silent client is asked whether it is there, unless it is us who do not listen."""
        silent_s = 0.0 if self._deaf else self._loop.time() - self._heard
        if silent_s >= 2 * PING_S:
            self._transport.abort()
            return
        if silent_s >= PING_S:
            self._transport.write(frame(PING, b""))
        self._set_timer(PING_S, self._look)

    def _set_timer(self, after_s: float, call: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(after_s, call)
