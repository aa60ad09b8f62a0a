"""An HTTP connection: uvicorn's own, with a short way for the steps of sessions.

For every request uvicorn makes a task, an event and a scope, and calls an ASGI app that receives and sends messages:
several times the price of a step. A plain ``POST .../steps`` therefore goes from the parser straight to the endpoint,
and its answer from the sessions straight to the transport, without a coroutine. Everything else (other routes, large or
chunked bodies, requests that were sent ahead) goes uvicorn's way, in the order in which it came.
"""

import asyncio
import re
from time import perf_counter
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.api.asgi import HANG_UP, JSON_HEADERS
from service.api.problems import Headers
from service.api.steps import StepsEndpoint, StepsReply

_END_OF_HEAD = b"\r\n\r\n"
_MOST_HEADS = 16  # that a connection remembers: they differ in the length of the body only
_MOST_HEAD = 65_536  # bytes of a head that does not come to its end
_KNOWN_HEAD = 2048  # bytes of a head that is remembered
_MOST_BYTES = 65_536  # of a body that goes the short way; larger ones are not what it was made for
_ARRIVAL_S = 120.0  # for a whole request to arrive in, from its first byte on, or for the first to begin
_STEPS = re.compile(rb"/v1/sessions/([\w-]+)/steps")
_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "


class Connection(HttpToolsProtocol):
    """One client's connection.

    Mutable state beside uvicorn's own: ``_reading`` (the exchange whose request is being read), ``_answering`` (the
    exchange, or uvicorn's cycle, whose answer comes next), ``_quiet_since`` (loop time since which there was none),
    ``_served`` (whether there ever was one), ``_between`` (whether the parser waits for a request), ``_begun`` (loop
    time at which the one that it reads began), ``_heads`` (those of short requests that were parsed, each with its
    session and the length of its body), ``_head`` (bytes that came since a head began; -1 between heads),
    ``_upgrading`` (a stream waits for the answers that are due before it).
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*arguments, **options)
        self._steps = cast(StepsEndpoint, getattr(self.app, "steps"))  # noqa: B009 - the app is our Edge
        self._reading: Exchange | None = None
        self._parsed: Exchange | None = None
        self._answering: Exchange | RequestResponseCycle | None = None
        self._quiet_since = self._begun = 0.0
        self._between = True
        self._served = False
        self._heads: dict[bytes, tuple[str, int]] = {}
        self._head = -1
        self._upgrading = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        self._quiet_since = self.loop.time()
        self._look_again(_ARRIVAL_S)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``. A head that was parsed before means the same again: clients repeat theirs to the
        byte, and to parse one costs as much as to validate a step."""
        end = data.find(_END_OF_HEAD) + len(_END_OF_HEAD)
        between, head = self._between, data[:end]
        if between and head in self._heads and self._is_free():
            id, length = self._heads[head]
            if len(data) - end == length:
                exchange = self._begin(id, keep_alive=True)
                self._steps.begin(id, data[end:], exchange)
                return
        self._parsed = None
        super().data_received(data)
        parsed = self._parsed
        if self._head >= 0:
            self._head += len(data)
            if self._head > _MOST_HEAD:
                self.flow.pause_reading()
                self.send_400_response("the request's head is too large")
        if not (between and self._between and end <= _KNOWN_HEAD) or parsed is None:
            return
        if parsed.keep_alive and len(data) - end == len(parsed.body):
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            self._heads[head] = parsed.id, len(parsed.body)

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``: nobody waits for an answer any more.

        uvicorn tells only the newest request of it, which may be one that was sent ahead.
        """
        super().connection_lost(exc)
        answering, self._answering = self._answering, None
        if isinstance(answering, Exchange):
            answering.leave()
        elif answering is not None:
            answering.disconnected = True
            answering.message_event.set()
        self._let_go()

    def handle_websocket_upgrade(self) -> None:
        """The connection is somebody else's, as soon as no answer is to be written to it any more."""
        self._upgrading = self._answering is not None
        if self._upgrading:
            self.flow.pause_reading()
            return
        super().handle_websocket_upgrade()
        self._let_go()

    def _let_go(self) -> None:
        """Those that know us, as we know them, would else stay with us until cycles are looked for."""
        self._stop_timer()
        self._reading = self._parsed = self.cycle = self.parser = None  # type: ignore[assignment]

    def send_400_response(self, msg: str) -> None:
        """What came cannot be read. The answer to what came before goes first, and is the last."""
        if self._answering is None or self._answering.more_body:
            super().send_400_response(msg)
        else:
            self._answering.keep_alive = False

    # ---- the parser's callbacks

    def on_message_begin(self) -> None:
        """A request begins. What uvicorn prepares for it is made once it is known to go its way."""
        self._between = False
        self._begun = self.loop.time()
        self._head = 0
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        """Decide which way the request goes."""
        self._head = -1
        steps = _STEPS.fullmatch(self.url)
        if steps is not None and self._is_short():
            self._reading = self._parsed = self._begin(steps[1].decode(), keep_alive=self.parser.should_keep_alive())
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        self.scope["extensions"] = {HANG_UP: {"now": self.transport.abort}}
        super().on_headers_complete()

    def _begin(self, id: str, *, keep_alive: bool) -> "Exchange":
        self._answering = exchange = Exchange(self, id, keep_alive=keep_alive)
        self.cycle = cast(Any, exchange)  # so that uvicorn sees that the connection is busy
        return exchange

    def _is_free(self) -> bool:
        """Whether nothing is on its way, and what was answered is being read."""
        return (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused

    def _is_short(self) -> bool:
        return (
            self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and self._is_free()
            and not (self.expect_100_continue or self.parser.should_upgrade())
            and 0 <= self._length() <= min(_MOST_BYTES, self._steps.max_body_bytes)
        )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 - uvicorn's own
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _length(self) -> int:
        """What the request says of its body; -1 where it says nothing, as a chunked one."""
        for name, value in self.headers:
            if name == b"content-length":
                return int(value)
        return -1

    def on_body(self, body: bytes) -> None:
        """A part of the body: mostly all of it."""
        if self._reading is None:
            super().on_body(body)
        else:
            self._reading.body += body

    def on_message_complete(self) -> None:
        """The request is there."""
        self._between = True
        exchange, self._reading = self._reading, None
        if exchange is None:
            super().on_message_complete()
        else:
            self._steps.begin(exchange.id, exchange.body, exchange)

    # ---- between two requests

    def on_response_complete(self) -> None:
        """The connection is free for the next request."""
        self._answering = None
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        if self._upgrading:
            self.handle_websocket_upgrade()
            return
        self._quiet_since = self.loop.time()
        if not self._served:
            self._served = True
            self._stop_timer()
            self._look_again(self.timeout_keep_alive)

    def _unset_keepalive_if_required(self) -> None:
        """Leave the timer alone: to stop and start one costs as much as a tenth of a step, for each request."""

    def _stop_timer(self) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection whose client has been waited for too long; look again later at others."""
        self.timeout_keep_alive_task = None
        if self.transport.is_closing():
            return
        until = self._waits_until()
        if until is None or until > self.loop.time():
            self._look_again(self.timeout_keep_alive if until is None else until - self.loop.time())
        else:
            self.transport.close()

    def _waits_until(self) -> float | None:
        """Loop time until which the next request, or the rest of this one, is waited for; None: it is our turn."""
        answering = self._answering
        if self._between:
            return None if answering else self._quiet_since + (self.timeout_keep_alive if self._served else _ARRIVAL_S)
        if answering is not None:  # it may be that of the request before
            comes = answering is self.cycle and (self._reading is not None or answering.more_body)
            if not comes or self.flow.read_paused:
                return None
        return max(self._begun, self._quiet_since) + _ARRIVAL_S

    def _look_again(self, after_s: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(after_s, self.timeout_keep_alive_handler)


class Exchange(StepsReply):
    """A request for steps on a connection, and the reply to it. Stands where uvicorn keeps its own cycle."""

    __slots__ = ("_connection", "_started", "body", "disconnected", "id", "keep_alive", "response_complete")
    message_event = asyncio.Event()  # uvicorn sets a cycle's when the client goes; nobody waits for this one
    more_body = False  # of a body that says how long it is, no part can be malformed

    def __init__(self, connection: Connection, id: str, *, keep_alive: bool) -> None:
        super().__init__(connection._steps)
        self.id = id
        self.body = b""
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False
        self._connection = connection
        self._started = perf_counter()

    def done(self) -> bool:
        """See ``work.Reply``."""
        return self.response_complete or self.disconnected

    def leave(self) -> None:
        """The client has gone."""
        self.disconnected = True
        self._steps.sessions.leave(self)
        self._steps.counts.answered(0, perf_counter() - self._started)

    def lose(self) -> None:
        """See ``StepsReply``."""
        self._connection.transport.abort()

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Write the answer."""
        self.response_complete = True
        connection = self._connection
        transport = connection.transport
        if self.disconnected or transport.is_closing():
            status = 0
        else:
            if headers is JSON_HEADERS and self.keep_alive:
                transport.write(b"%b%d\r\n\r\n%b" % (_OK, len(body), body))
            else:
                transport.write(self._written(status, headers, body))
            if not self.keep_alive:
                transport.close()
        self._steps.counts.answered(status, perf_counter() - self._started)
        connection.on_response_complete()

    def _written(self, status: int, headers: Headers, body: bytes) -> bytes:
        lines = [*headers, (b"content-length", b"%d" % len(body))]
        if not self.keep_alive:
            lines.append((b"connection", b"close"))
        return b"".join((STATUS_LINE[status], *(b"%b: %b\r\n" % line for line in lines), b"\r\n", body))
