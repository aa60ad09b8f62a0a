"""``WS /v1/sessions/{id}/stream``: a chunk in, an answer out, in order, with several in flight.

A connection that uvicorn has accepted and found to ask for a WebSocket is handed to ``Stream``, which speaks it without
ASGI: from the frame straight to the sessions, and from the tick straight to the transport. Owns the order of answers,
back-pressure, and how a stream ends; frames, handshake and messages are read and written beside it.

    handshake -> 101 -> message -> sessions.submit ... answer -> message
        \\                   \\
      problem, closed     problem in its place, the stream goes on (closed behind it where the session is over)
"""

import asyncio
from collections import deque
from time import perf_counter
from typing import Any, cast

from service.api import handshake
from service.api.handshake import Handshake
from service.api.lifeline import PING_S, Lifeline
from service.api.messages import Messages
from service.api.steps import ANYONE
from service.api.streams import Streams
from service.api.websocket import (
    CLOSE,
    PING,
    PONG,
    RESTART,
    TEXT,
    Fault,
    Receiver,
    closed_with,
    frame,
    text,
)
from service.artifact import Signature
from service.errors import ShuttingDown
from service.state import Answer
from service.work import resolve

SESSION_OVER = (404, 410)  # answers after which nothing can follow
_PRIVATE = 4000  # close codes from here on are an application's own: ours are the status on top of it
_OK, _SWITCHED = 200, 101


class Stream(Lifeline):
    """One client's stream, made by uvicorn's HTTP protocol, which hands on the request that asked for it.

    Mutable state: ``_receiver`` (None before the handshake, and when what comes is not to be understood), ``_open``
    (the handshake is done), ``_flying`` (what is not answered yet, in its order) and ``_steps`` (theirs together),
    ``_out`` (answers that are not written yet), ``_choked`` (the client reads too slowly), ``_live`` (the session,
    while what has come is read).
    """

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any]) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(server_state)
        self._streams = cast(Streams, config.loaded_app.streams)
        self.refusal = self._streams.refusal
        self._sessions, self._count = self._streams.sessions, self._streams.counts.answered
        self._opening: asyncio.Task[None] | None = None
        self._receiver: Receiver | None = None
        self._messages: Messages
        self._open = False
        self._flying: deque[Message] = deque()
        self._out: list[bytes] = []
        self._steps = 0
        self._choked = False
        self._live: Any = None
        self._began = perf_counter()

    # ---- as asyncio's protocol

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: what it was not answered is dropped, if it does not run already."""
        super().connection_lost(exc)
        for message in self._flying:
            self._sessions.leave(message)
        if self._opening is not None:
            self._opening.cancel()

    def pause_writing(self) -> None:
        """See ``asyncio.Protocol``: the client reads more slowly than it is answered."""
        self._choked = True

    def resume_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        self._choked = False
        self._read()

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``; first comes the request, as uvicorn hands it on."""
        self._heard = self._loop.time()
        if self._receiver is not None:
            self._receiver.feed(data)
            self._read()
        elif self._opening is None:
            self._transport.pause_reading()  # until it is open; there is nothing to be sent before
            self._opening = self._loop.create_task(self._shake_hands(data))

    # ---- opening

    async def _shake_hands(self, request: bytes) -> None:
        try:
            asked = handshake.read(request, self._streams.limits.in_flight)
            model = await self._sessions.model_of(asked.id, ANYONE)
            if self._ending is not None:
                raise ShuttingDown("the service is shutting down")
        except Exception as error:  # noqa: BLE001 - problems.py knows them all, and logs those it does not know
            status, body, headers = self._streams.refusal(error)
            self._transport.write(handshake.refused(status, headers, body))
            self._transport.close()
        else:
            status = _SWITCHED
            self._accept(asked, model.signature)
        self._count(status, perf_counter() - self._began)

    def _accept(self, asked: Handshake, signature: Signature) -> None:
        limits = self._streams.limits
        self._id, self._in_flight, self._most_steps = asked.id, asked.in_flight, limits.steps
        self._messages, self._open = Messages(signature, limits.steps, asked.in_flight), True
        self._receiver = Receiver(limits.message_bytes)
        self._transport.write(handshake.accepted(asked.accept))
        self._transport.resume_reading()
        self._set_timer(PING_S, self._look)

    # ---- messages

    def _read(self) -> None:
        """Take what has come, as far as there is room; beyond it, the client is kept from sending more."""
        receiver = self._receiver
        if receiver is None or self.gone:
            return
        try:
            while self._room() and (message := receiver.next()) is not None:
                opcode, payload = message
                if opcode >= CLOSE:
                    self._control(opcode, payload)
                elif self._ending is None:
                    self._submit(opcode, payload)
        except Fault as fault:
            self._receiver = None
            self.fail(fault.code, fault.reason)
        self._live = None
        full = receiver.waiting and not self._room() and self._receiver is not None
        if full != self._deaf:
            self._deaf = full
            self._heard = self._loop.time()
            if full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _room(self) -> bool:
        return len(self._flying) < self._in_flight and self._steps < self._most_steps and not self._choked

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self._transport.write(frame(PONG, payload))
        elif opcode == CLOSE:
            code = closed_with(payload)
            self._receiver = None
            self._client_left(code)

    def _submit(self, opcode: int, payload: bytes) -> None:
        messages = self._messages
        message = Message(self, messages, opcode)
        if opcode == TEXT:
            text(payload)
        self._flying.append(message)
        try:
            request = messages.from_text(payload) if opcode == TEXT else messages.from_binary(payload)
            message.steps = request.steps
            self._steps += message.steps
            if self._live is None:
                self._live = self._sessions.at_hand(self._id, ANYONE)
            if self._live is not None:
                self._sessions.advance_live(self._live, request, message)
            else:
                self._sessions.submit(self._id, request, ANYONE, message)
        except Exception as error:  # noqa: BLE001 - see above
            resolve(message, error)

    def answered(self, message: "Message", status: int) -> None:
        """A message has its answer: all are sent whose turn it is."""
        self._steps -= message.steps
        self._count(status, perf_counter() - message.began)
        flying, out = self._flying, self._out
        first = not out
        while flying and (answer := flying[0].answer):
            flying.popleft()
            out.append(answer)
        if not flying:
            self._write()
        elif first and out:  # a tick tells all its answers before the loop goes on: they are written together
            self._loop.call_soon(self._write)
        if status in SESSION_OVER:
            self.end(_PRIVATE + status, "the session is over")
        if self._deaf or self._ending:
            self._loop.call_soon(self._go_on)  # not now: the session is still busy with telling its answers

    def _write(self) -> None:
        if self._out and not self.gone:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _go_on(self) -> None:
        self._say_end()
        self._read()

    def _quiet(self) -> bool:
        """See ``Lifeline``."""
        if self._flying or not self._open:
            return False
        self._write()
        return True

    def lose(self) -> None:
        """What became of all that is in flight is not known: the client has to come again and ask."""
        self._flying.clear()
        self.end(RESTART, "the service is being started again")
        self._say_end()


class Message:
    """A message that waits for its answer, and the reply to it as the sessions know it (``work.Reply``)."""

    __slots__ = ("_messages", "_opcode", "_stream", "answer", "began", "steps")

    def __init__(self, stream: Stream, messages: Messages, opcode: int) -> None:
        self._stream = stream
        self._messages = messages
        self._opcode = opcode  # it is answered in kind
        self.began = perf_counter()
        self.steps = 0
        self.answer = b""  # its frame, once it is there

    def done(self) -> bool:
        """See ``work.Reply``."""
        return bool(self.answer) or self._stream.gone

    def set_result(self, result: tuple[Answer, bool]) -> None:
        """The session's answer, and whether it is that of an earlier request."""
        answer, repeated = result
        write = self._messages.to_text if self._opcode == TEXT else self._messages.to_binary
        try:
            payload = write(answer, repeated=repeated)
        except Exception as error:  # noqa: BLE001 - the client is told that something went wrong, whatever it is
            self.set_exception(error)
            return
        self.answer = frame(self._opcode, payload)
        self._stream.answered(self, _OK)

    def lose(self) -> None:
        """Nobody here can know whether it was applied, as in ``StepsReply``."""
        self._stream.lose()

    def set_exception(self, error: BaseException) -> None:
        """What went wrong, as a problem document."""
        status, body, _ = self._stream.refusal(error)
        self.answer = frame(TEXT, body)
        self._stream.answered(self, status)
