"""The one for whom work of several ticks runs: whether they are still there, and how far behind they read."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from service.sessions.generation import Generated

BACKLOG = 64  # steps that a stream may be ahead of its reader


class ClientGone(Exception):
    """The client went away; the work stops with nothing committed."""


class Caller:
    """The one for whom a job runs: whether they are still there, and what they have been told but not yet read.

    Mutable state, touched on the event loop's thread only: ``gone``, ``told``, ``_unread``, ``_closed``, ``_reader``
    (wakes who waits for more to read), ``_go_on`` (lets the job tell more) and ``_patience`` (its timer).
    """

    def __init__(self, patience_s: float) -> None:
        """``patience_s``: who reads nothing for so long is taken for gone."""
        self.gone = False
        self.told = 0  # steps
        self._begun = False
        self._closed = False
        self._unread: deque[Generated] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._go_on: Callable[[], None] | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._patience_s = patience_s

    def leave(self) -> None:
        """They have gone: a job that runs stops between two ticks."""
        self.gone = True
        self._stir()

    def tell(self, generated: Generated) -> bool:
        """Hand over what there is to read; False where that is as far ahead of the reader as it may be."""
        if generated.steps > 0 or not self._begun:  # that it began may be told again, after another replica's move
            self._begun = True
            self.told += generated.steps
            self._unread.append(generated)
            self._wake()
        return self.gone or len(self._unread) < BACKLOG

    def when_ready(self, go_on: Callable[[], None]) -> None:
        """Call this, once, when the reader has read or has gone."""
        self._go_on = go_on
        self._patience = asyncio.get_running_loop().call_later(self._patience_s, self.leave)

    def close(self) -> None:
        """Nothing more will be told."""
        self._closed = True
        self._wake()

    async def read(self, job: "asyncio.Future[Any]") -> AsyncIterator[Generated]:
        """What is told until the job is done; raises what it failed with. Who reads no further has gone."""
        job.add_done_callback(lambda _: self.close())
        try:
            while self._unread or not self._closed:
                while self._unread:
                    generated = self._unread.popleft()
                    if self._go_on is not None:
                        self._stir()
                    yield generated
                if not self._closed:
                    self._reader = asyncio.get_running_loop().create_future()
                    await self._reader
            job.result()
        finally:
            self.leave()

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)

    def _stir(self) -> None:
        go_on, self._go_on = self._go_on, None
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if go_on is not None:
            go_on()


class Gatherer:
    """Listens, for a caller, to a generation that is told once it is over."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.parts: list[Generated] = []

    @property
    def gone(self) -> bool:
        """See ``generation.Listener``."""
        return self._caller.gone

    def tell(self, generated: Generated) -> bool:
        """See ``generation.Listener``."""
        self.parts.append(generated)
        return True

    def when_ready(self, go_on: Callable[[], None]) -> None:
        """See ``generation.Listener``: it always is."""
        go_on()
