"""The one for whom work of several ticks runs: whether they are still there, and how far behind they read."""

import asyncio
from collections.abc import AsyncIterator

from service.sessions.generation import Generated

BACKLOG = 64  # steps that a stream may be ahead of its reader


class ClientGone(Exception):
    """The client went away; the work stops with nothing committed."""


class Caller:
    """The one for whom a job runs: whether they are still there, and what they have been told but not yet read."""

    def __init__(self, patience_s: float) -> None:
        """``patience_s``: who reads nothing for so long is taken for gone."""
        self.gone = False
        self.told = 0  # steps
        self._begun = False
        self._unread: asyncio.Queue[Generated | None] = asyncio.Queue()
        self._stir = asyncio.Event()
        self._patience_s = patience_s

    def leave(self) -> None:
        """They have gone: a job that runs stops between two ticks."""
        self.gone = True
        self._stir.set()

    async def tell(self, generated: Generated) -> None:
        """Hand a step over, not too far ahead of the reader."""
        try:
            async with asyncio.timeout(self._patience_s):
                while self._unread.qsize() >= BACKLOG and not self.gone:
                    self._stir.clear()
                    await self._stir.wait()
        except TimeoutError:
            self.gone = True
        if generated.steps == 0 and self._begun:
            return  # that it began was told before another replica's move made it begin anew
        self._begun = True
        self.told += generated.steps
        self._unread.put_nowait(generated)

    def close(self) -> None:
        """Nothing more will be told."""
        self._unread.put_nowait(None)

    async def read(self) -> AsyncIterator[Generated]:
        """What is told, until it is closed."""
        while (generated := await self._unread.get()) is not None:
            self._stir.set()
            yield generated
